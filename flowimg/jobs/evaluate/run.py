"""`flowimg evaluate`: score a run's samples, print the scores with how they were made, and keep them."""

from functools import partial
from typing import Any

from flowimg.build.data import cache_of
from flowimg.build.sampler import build_sampler, settle
from flowimg.errors import GateError, MachineError, SettingsError
from flowimg.evaluation.record import describe, figures_of, finite, keep, protocol, text_of
from flowimg.jobs.evaluate.engine import ENGINES, Asked, Engine
from flowimg.jobs.evaluate.sweep import Sweep, ways_of
from flowimg.machine.compiling import compiled_for
from flowimg.machine.precision import autocast
from flowimg.machine.processes import leave_together, processes, share
from flowimg.runs.opening import check_guidance, made_by, open_run
from flowimg.settings.evaluate import Evaluate

LIMITS = ("max_off", "max_sw2", "max_mass_ratio", "max_frechet")


def evaluate(settings: Evaluate) -> dict[str, Any] | None:
    """Score a run's samples, print the scores with how they were made, and keep them in RUN/evaluations.jsonl."""
    state = processes("evaluate")
    run = open_run(settings.run, settings.weights, settings.step, state.device)
    settings = settle(settings, run.config)
    kind = ENGINES[type(run.space)]
    kind.check(settings, run.facts)
    sweeps = settings.sweep_nfe or settings.sweep_guidance
    if sweeps and any(getattr(settings, name) is not None for name in LIMITS):
        raise SettingsError("a sweep has no one figure to hold to a limit: leave --max-... out, or the sweep")
    for scale in (settings.guidance, *settings.sweep_guidance):
        check_guidance(scale, run.facts, run.config)
    if not kind.shared and state.num_processes > 1:
        raise MachineError("points are scored on one process: start flowimg evaluate without a launcher")
    count = settings.count or kind.count
    mine = len(share(range(count), state.process_index, state.num_processes))
    size, cache = settings.batch_size or run.space.at_once, cache_of(run.config)
    field = compiled_for(run.field, settings.compile, mine, size, settings.num_steps, cache)
    ways = ways_of(settings) if settings.sweep_nfe else []  # refuses before anything is trained or looked through
    asked = Asked(settings.features, settings.inception, settings.download, run.data)
    engine: Engine = kind.find(run.config, run.facts, run.space, asked, state)
    seeds = range(settings.seed, settings.seed + count)
    precision = partial(autocast, state.device, settings.precision)
    if sweeps:
        found = Sweep(settings, run, field, engine, seeds, precision, state.is_main_process).run(ways)
        leave_together()
        return found
    sampler = build_sampler(field, run.config, run.space, settings, precision, settings.batch_size)
    scores = engine(sampler, settings, seeds)
    leave_together()
    if scores is None:
        return None
    engine.show(run, f"Step {run.step:,}, {describe(settings.record)}.")
    record = {**scores, **made_by(run, settings.weights, settings.precision)}
    keep(run.folder.evaluations, record)
    print(protocol(settings.run, record))
    for name, value in figures_of(record).items():
        print(f"  {name:<32} {text_of(name, value)}")
    _gate(settings, record, engine)
    return {"run": settings.run, **finite(record)}


def _gate(settings: Evaluate, found: dict[str, Any], engine: Engine) -> None:
    """Fail where a limit is not kept.

    Raises:
        GateError: With everything that is above its limit.
    """
    if broken := engine.broken(settings, found):
        raise GateError(f"{settings.run} fails: {'; '.join(broken)}")
    if any(getattr(settings, name) is not None for name in LIMITS):
        print("  within all limits")
