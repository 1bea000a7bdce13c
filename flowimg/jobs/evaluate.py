"""`flowimg evaluate`: a run's samples against its data, in figures; with limits, a gate; with a sweep, a curve."""

from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from flowimg.config import Config, Evaluate, SettingsError, Solving
from flowimg.evaluation.distances import NEAREST
from flowimg.evaluation.points import PointScores, failures, score_points
from flowimg.flow.randomness import generator
from flowimg.jobs.build import DataFacts, build_toy
from flowimg.jobs.draw import draw, quickened, turns
from flowimg.jobs.figures import Figure, add_figures
from flowimg.jobs.folder import RunFolder, Trained, check_guidance, open_run
from flowimg.jobs.machine import MachineError, autocast, leave_together, processes, settle
from flowimg.jobs.scores import describe, figures_of, finite, keep, made_by, made_how, protocol, text_of

COUNT = {"points": 20_000, "images": 1000}
"""Samples, by kind of data."""
SHOWN = 8
"""Samples whose nearest training pictures are shown."""


class GateError(Exception):
    """The samples are worse than a limit allows; the message says by how much."""

    exit_status = 1


def evaluate(settings: Evaluate) -> dict[str, Any] | None:
    """Score a run's samples, print the scores with how they were made, and keep them in RUN/evaluations.jsonl."""
    state = processes("evaluate")
    run = open_run(settings.run, settings.weights, settings.step, state.device)
    settings = settle(settings, run.config)
    points = run.config.data.kind == "points"
    _check(settings, run, points)
    if points and state.num_processes > 1:
        raise MachineError("points are scored on one process: start flowimg evaluate without a launcher")
    count = settings.count or COUNT[run.config.data.kind]
    run = quickened(run, settings, count, state)
    if settings.sweep_nfe or settings.sweep_guidance:
        from flowimg.jobs.sweep import sweep

        return sweep(settings, run, state)
    seeds = range(settings.seed, settings.seed + count)
    found = (_points if points else _pictures)(settings, run, seeds, state)
    leave_together()
    if found is None:
        return None
    record = {**found, **made_by(settings, run)}
    keep(run.folder, record)
    print(protocol(settings.run, record))
    for name, value in figures_of(record).items():
        print(f"  {name:<32} {text_of(name, value)}")
    _gate(settings, record, points)
    return {"run": settings.run, **finite(record)}


def _check(settings: Evaluate, run: Trained, points: bool) -> None:
    """Refuse what does not go together.

    Raises:
        SettingsError: With the first of it.
    """
    for_points = ("max_off", "max_sw2", "max_mass_ratio")
    if not points and any(getattr(settings, name) is not None for name in for_points):
        raise SettingsError("--max-off, --max-sw2 and --max-mass-ratio are for runs on points")
    if points and (settings.max_frechet is not None or settings.features != "proxy" or settings.inception):
        raise SettingsError("--max-frechet, --features and --inception are for runs on images")
    limits = ("max_off", "max_sw2", "max_mass_ratio", "max_frechet")
    if (settings.sweep_nfe or settings.sweep_guidance) and any(getattr(settings, name) is not None for name in limits):
        raise SettingsError("a sweep has no one figure to hold to a limit: leave --max-... out, or the sweep")
    if settings.inception and settings.features != "inception":
        raise SettingsError(f"--inception {settings.inception} needs --features inception")
    if settings.sweep_guidance and (points or not run.facts.classes):
        raise SettingsError(f"--sweep-guidance needs a conditional run on images, and {settings.run} is not one")
    if settings.sweep_guidance and (settings.count or COUNT["images"]) <= NEAREST:
        raise SettingsError(f"--count {settings.count} is too few for --sweep-guidance: give more than {NEAREST}")
    for scale in (settings.guidance, *settings.sweep_guidance):
        check_guidance(scale, run.facts, run.config)


def _gate(settings: Evaluate, found: dict[str, Any], points: bool) -> None:
    """Fail where a limit is not kept.

    Raises:
        GateError: With everything that is above its limit.
    """
    limits = (settings.max_off, settings.max_sw2, settings.max_mass_ratio)
    most = settings.max_frechet
    broken: list[str] = []
    if points:
        broken = failures(PointScores(*(found[name] for name in PointScores._fields)), *limits)
    elif most is not None:
        if not found["frechet"] <= most:
            broken = [f"{found['distance']} is {found['frechet']:.4g}, more than {most:g}"]
        if found.get("not_finite"):
            broken.append(f"{found['not_finite']} samples are not finite")
    if broken:
        raise GateError(f"{settings.run} fails: {'; '.join(broken)}")
    if any(limit is not None for limit in (*limits, most)):
        print("  within all limits")


def measure_points(
    field: nn.Module, config: Config, facts: DataFacts, how: Solving, seeds: range, batch_size: int | None = None
) -> dict[str, Any]:
    """Scores of points, and how they were made."""
    drawn = draw(field, config, facts, how, seeds, turns(seeds, facts.classes), batch_size)
    toy = build_toy(config)
    data = toy.sample(torch.rand(len(seeds), 3, generator=generator("evaluation")))
    scores = score_points(drawn.x_1, data, toy.part(drawn.x_1), toy.parts)._asdict()
    return {**scores, **made_how(how, seeds, drawn.nfe)}


def _points(settings: Evaluate, run: Trained, seeds: range, state: PartialState) -> dict[str, Any] | None:
    with autocast(state.device, settings.precision):
        return measure_points(run.field, run.config, run.facts, settings, seeds, settings.batch_size)


def find_yard(
    features: str,
    config: Config,
    facts: DataFacts,
    state: PartialState,
    inception: str | None = None,
    download: bool = False,
    learned: str | None = None,
) -> Any:
    """What samples of a run on pictures are measured with; see `measure.find_extractor` and `find_yardstick`."""
    from flowimg.jobs import measure

    with state.main_process_first():  # before anything slow: it may not be there; one fetches it for all
        extractor = measure.find_extractor(features, facts.shape, state.device, inception, download)
    return measure.find_yardstick(config, facts, extractor, state, learned)


def yard_of(settings: Evaluate, run: Trained, state: PartialState) -> Any:
    """The same, by the settings of the verb."""
    asked = settings.features, run.config, run.facts, state, settings.inception, settings.download
    return find_yard(*asked, run.data)


def _pictures(settings: Evaluate, run: Trained, seeds: range, state: PartialState) -> dict[str, Any] | None:
    from flowimg.jobs import measure

    yard = yard_of(settings, run, state)
    inside = [autocast(state.device, settings.precision)]
    drawn = measure.draw_all(
        run.field, run.config, run.facts, settings, seeds, yard.extractor, state, inside, settings.batch_size
    )
    if drawn is None:
        return None
    scores, near = measure.score(drawn, yard)
    show_nearest(run.folder, run.facts, drawn, near, yard, f"Step {run.step:,}, {describe(settings.model_dump())}.")
    return {**scores, **made_how(settings, seeds, drawn.nfe), **measure.told(yard, drawn)}


def show_nearest(folder: RunFolder, facts: DataFacts, drawn: Any, near: Any, yard: Any, made: str) -> None:
    """Some samples beside the training pictures nearest to them, for the report."""
    from flowimg.figures.pictures import picture_table

    rows = near.row[:SHOWN]
    table = torch.cat([drawn.pixels[: len(rows), None], yard.reference.pictures.pixels[rows]], dim=1)
    names = ["new", *(str(place + 1) for place in range(rows.shape[1]))]
    who = [""] * len(rows) if drawn.labels is None else [facts.classes[label] for label in drawn.labels[: len(rows)]]
    figure = Figure(
        "nearest.png",
        "Is it a copy?",
        "Samples, and to their right the training pictures nearest to them by pixels, from near to far"
        + (", mirrored ones too." if yard.reference.mirrored else "."),
        made,
    )
    picture_table(table, who, names, folder.figures / figure.file, "Samples, and the training pictures nearest to each")
    add_figures(folder, [figure])
