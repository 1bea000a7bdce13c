"""`flowimg evaluate`: score a run's samples, print the scores with how they were made, and record them."""

from typing import Any

from flowimg.errors import GateError, MachineError, SettingsError
from flowimg.evaluation.record import describe, finite, keep, protocol, score_text, scores_of
from flowimg.jobs.drawing import check_places, compiled, opened, sampler_of
from flowimg.jobs.evaluate.comparison import ComparisonOptions
from flowimg.jobs.evaluate.engine import ENGINES
from flowimg.jobs.evaluate.sweep import Sweep, settings_to_try
from flowimg.machine.processes import leave_together, processes
from flowimg.runs.opening import check_guidance, made_by
from flowimg.sampling.sampler import seeds_from
from flowimg.settings.evaluate import Evaluate
from flowimg.spaces.space import chosen


def evaluate(settings: Evaluate) -> dict[str, Any] | None:
    """Score a run's samples, print the scores with how they were made, and add them to RUN/evaluations.jsonl.

    Raises:
        GateError: If a limit is exceeded.
    """
    state = processes("evaluate")
    settings, run = opened(settings, state.device)
    kind = chosen(ENGINES, run.space)
    kind.check(settings, run.facts)
    sweeps = settings.sweep_nfe or settings.sweep_guidance
    if sweeps and settings.limited:
        raise SettingsError("a sweep has more than one score, so no limit applies: leave out --max-... or the sweep")
    for scale in (settings.guidance, *settings.sweep_guidance):
        check_guidance(scale, run.facts, run.config)
    if not kind.shared and state.num_processes > 1:
        raise MachineError("points are scored on one process: start flowimg evaluate without a launcher")
    seeds = seeds_from(settings.seed, settings.count or kind.count)
    figures, places = run.folder.figures / "figures.json", [] if sweeps else [run.folder.evaluations]
    check_places(*places, *([figures] if sweeps or kind.shows else []))
    field = compiled(run, settings, len(seeds), state)
    tried = settings_to_try(settings) if settings.sweep_nfe else []  # may refuse, so it comes before the slow part
    options = ComparisonOptions(settings.features, settings.inception, settings.download, run.data)
    engine = kind(run.config, run.facts, options, state)
    if sweeps:
        sweep = Sweep(settings, run, field, engine, seeds)
        results = sweep.over_nfe(tried) if tried else sweep.over_guidance()
        leave_together()
        return results
    scores = engine(sampler_of(run, settings, field, settings.batch_size), settings, seeds)
    leave_together()
    if scores is None:
        return None
    engine.show(run, f"Step {run.step:,}, {describe(settings.record)}.")
    record = {**scores, **made_by(run, settings.weights, settings.precision)}
    keep(run.folder.evaluations, record)
    print(protocol(settings.run, record))
    for name, value in scores_of(record).items():
        print(f"  {name:<32} {score_text(name, value)}")
    if exceeded := engine.exceeded(settings, record):
        raise GateError(f"{settings.run} fails: {'; '.join(exceeded)}")
    if settings.limited:
        print("  within all limits")
    return {"run": settings.run, **finite(record)}
