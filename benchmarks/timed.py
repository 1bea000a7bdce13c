"""Runs whose training is timed once, for the benchmarks that compare recipes."""

import json
import time
from pathlib import Path

from flowimg.config import Config, Evaluate
from flowimg.jobs.evaluate import evaluate
from flowimg.jobs.folder import RunFolder
from flowimg.jobs.train import train


def cpu_seconds(config: Config) -> float:
    """CPU seconds that training took; trained where that is not done."""
    spent = Path(str(config.run)) / "cpu_seconds.json"
    if not spent.exists():
        before = time.process_time()
        train(config)
        spent.write_text(json.dumps(time.process_time() - before) + "\n")
    return float(json.loads(spent.read_text()))


def scores_of(how: Evaluate) -> dict[str, float]:
    """The last scores of these weights, samples and steps; evaluated where that is not done."""
    same = ("weights", "num_steps", *(["count"] if how.count else []))
    for found in reversed(RunFolder(Path(how.run)).evaluated()):
        if all(found.get(name) == getattr(how, name) for name in same):
            return found
    found = evaluate(how)
    assert found is not None
    return found
