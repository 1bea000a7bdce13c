"""Runs whose training is timed once, for the benchmarks that compare recipes."""

import json
import time
from pathlib import Path

from flowimg.build.sampler import settle
from flowimg.evaluation.record import made_how
from flowimg.jobs.evaluate.run import evaluate
from flowimg.jobs.train.launch import settled
from flowimg.jobs.train.run import train
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import weights_name
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import load
from flowimg.settings.run import Config


def cpu_seconds(config: Config) -> float:
    """CPU seconds that training took; trained where that is not done.

    Raises:
        SystemExit: If the run's folder holds another recipe, or a run that was cut, whose seconds nobody knows.
    """
    folder = RunFolder(Path(str(config.run)))
    spent = folder.path / "cpu_seconds.json"
    if folder.config.exists() and load(str(folder.config)) != settled(config):
        raise SystemExit(f"{folder.path} is a run of other settings: delete it, or give another OUT")
    if not spent.exists():
        if folder.checkpoints.exists():
            raise SystemExit(f"{folder.path} was cut, and what it took is not known: delete it")
        before = time.process_time()
        train(config)
        spent.write_text(json.dumps(time.process_time() - before) + "\n")
    return float(json.loads(spent.read_text()))


def scores_of(how: Evaluate) -> dict[str, float]:
    """The scores of these weights, samples and ways of drawing them; evaluated where that is not done."""
    folder = RunFolder(Path(how.run))
    how = settle(how, load(str(folder.config)))
    for found in reversed(folder.evaluated()):
        seeds = range(how.seed, how.seed + (how.count or found["count"]))
        asked = {
            **made_how(how.record, seeds, found["nfe"]),
            "weights": weights_name(how.weights),
            "arithmetic": how.precision,
            "step": load(str(folder.config)).train.steps,
        }
        if {name: found.get(name) for name in asked} == asked:
            return found
    found = evaluate(how)
    assert found is not None
    return found
