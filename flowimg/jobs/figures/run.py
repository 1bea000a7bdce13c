"""`flowimg figures`, and the end of every run: the flow made visible, in RUN/figures."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowimg.build.sampler import build_sampler, settle
from flowimg.data.batches import Batches
from flowimg.evaluation.record import describe
from flowimg.figures.record import Figure, add_figures
from flowimg.flow.irreducible import Irreducible
from flowimg.jobs.figures.irreducible import find_irreducible
from flowimg.jobs.figures.pictures import picture_figures
from flowimg.jobs.figures.points import point_figures
from flowimg.machine.device import pick_device
from flowimg.machine.precision import autocast
from flowimg.machine.processes import alone
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import Run, check_guidance, open_run
from flowimg.settings.run import Config
from flowimg.settings.sampling import Solving
from flowimg.settings.verbs import Figures
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points

Job = Callable[[Path], object]

FLOWS: dict[type, Callable[..., Iterator[tuple[Figure, Job]]]] = {Points: point_figures, Pixels: picture_figures}
"""The figures of the flow in each space."""


def figures(settings: Figures) -> dict[str, Any]:
    """Draw all figures of a run and say where they are."""
    alone("figures")
    device = pick_device()
    run = open_run(settings.run, settings.weights, settings.step, device)
    settings = settle(settings, run.config)
    check_guidance(settings.guidance, run.facts, run.config)
    drawn = draw_figures(run, settings, settings.seed, None, partial(autocast, device, settings.precision))
    for figure in drawn:
        print(f"{run.folder.figures / figure.file}   {figure.title}")
    return {"run": settings.run, "step": run.step, "figures": [str(run.folder.figures / f.file) for f in drawn]}


def draw_figures(
    run: Run,
    how: Solving,
    seed: int,
    batches: Batches | None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Figure]:
    """Draw all figures of a run.

    Args:
        run: The run and its field, on its device.
        how: How the flow is followed.
        seed: Seed of the first particle or picture.
        batches: The run's data where they are loaded; else they are, if the irreducible loss is not known yet.
        precision: Gives a context to evaluate the field in.
    """
    irreducible = find_irreducible(run.folder, run.config, batches)
    made = f"Step {run.step:,}, {describe(how.record)}, seeds from {seed}."
    sampler = build_sampler(run.field, run.config, run.space, how, precision)
    seen = FLOWS[type(run.space)](run, sampler, how, seed)
    jobs = [*((figure._replace(how=made), job) for figure, job in seen), *curve_figures(run.folder, irreducible)]
    drawn = []
    for figure, job in tqdm(jobs, unit="figure", leave=False, disable=None, desc="figures"):
        job(run.folder.figures / figure.file)
        drawn.append(figure)
    add_figures(run.folder.figures, drawn)
    return drawn


def draw_curves(folder: RunFolder, config: Config, batches: Batches | None) -> None:
    """Draw what needs no field, and note it beside the figures that are there."""
    drawn = []
    for figure, job in curve_figures(folder, find_irreducible(folder, config, batches)):
        job(folder.figures / figure.file)
        drawn.append(figure)
    add_figures(folder.figures, drawn)


def curve_figures(folder: RunFolder, floor: Irreducible | None) -> Iterator[tuple[Figure, Job]]:
    """The curves, which need nothing but the metrics: they are drawn while a run goes on, too."""
    from flowimg.figures.curves import loss_by_t_figure, loss_figure, training_figure

    records = folder.records()
    explained = (
        "The loss does not go to zero: the target of a single example holds noise that nobody can know from x_t."
    )
    if floor:
        explained += f" Even the best of all fields has a loss of {floor.mean:.3f}."
        if "heart" in floor.of:
            explained += " It would draw the training pictures alone: a field that draws new ones stays above it."
    yield (
        Figure("loss.png", "The loss, and what of it can be learned", explained, curve=True),
        lambda path: loss_figure(records, floor, path),
    )
    yield (
        Figure(
            "loss_by_t.png", "Where along the way the loss is", "A line a stage of training, early to late.", curve=True
        ),
        lambda path: loss_by_t_figure(records, floor, path),
    )
    yield (
        Figure("training.png", "How the run went", "Means between lines of metrics.jsonl.", curve=True),
        lambda path: training_figure(records, path),
    )
