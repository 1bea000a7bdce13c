"""`flowimg figures`, which every run also does at its end: figures of the flow and the training, in RUN/figures."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from flowimg.data.batches import Batches
from flowimg.evaluation.record import describe
from flowimg.figures.record import Drawable, Figure, add_figures
from flowimg.flow.irreducible import Irreducible
from flowimg.jobs.drawing import check_places, opened, sampler_of
from flowimg.jobs.figures.irreducible import OF_PICTURES, find_irreducible
from flowimg.jobs.figures.pictures import SEEDS as PICTURES
from flowimg.jobs.figures.pictures import picture_figures
from flowimg.jobs.figures.points import CROWD, point_figures
from flowimg.machine.device import pick_device
from flowimg.machine.processes import one_process
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import OpenRun, check_guidance
from flowimg.sampling.sampler import Sampler, seeds_from
from flowimg.settings.run import Config
from flowimg.settings.sampling import Solving
from flowimg.settings.verbs import Figures
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points
from flowimg.spaces.space import chosen

FLOWS: dict[type, Callable[..., Iterator[Drawable]]] = {Points: point_figures, Pixels: picture_figures}
"""The figures of the flow in each space."""
SEEDS: dict[type, int] = {Points: CROWD, Pixels: PICTURES}
"""The number of seeds that they draw."""


def figures(settings: Figures) -> dict[str, Any]:
    """Draw all figures of a run and print their paths."""
    one_process("figures")
    settings, run = opened(settings, pick_device())
    check_guidance(settings.guidance, run.facts, run.config)
    check_places(run.folder.figures / "figures.json")
    seeds_from(settings.seed, chosen(SEEDS, run.space))
    drawn = draw_figures(run, settings, settings.seed, None, sampler_of(run, settings))
    paths = [str(run.folder.figures / figure.file) for figure in drawn]
    for path, figure in zip(paths, drawn, strict=True):
        print(f"{path}   {figure.title}")
    return {"run": settings.run, "step": run.step, "figures": paths}


def draw_figures(run: OpenRun, how: Solving, seed: int, batches: Batches | None, sampler: Sampler) -> list[Figure]:
    """Draw all figures of a run.

    Args:
        run: The run with its field, on its device.
        how: How the flow is followed.
        seed: Seed of the first particle or picture.
        batches: The run's data if loaded; else they are loaded if the irreducible loss has to be estimated.
        sampler: A sampler of the run that follows the flow in this way.
    """
    irreducible = find_irreducible(run.folder, run.config, batches)
    said = describe(how.record)
    made = f"Step {run.step:,}, {said}, seeds from {seed}."
    of_flow = chosen(FLOWS, run.space)(run, sampler, said, seed)
    jobs = [*((figure._replace(how=made), draw) for figure, draw in of_flow), *_curves(run.folder, irreducible)]
    return _draw(run.folder, tqdm(jobs, unit="figure", leave=False, disable=None, desc="figures"))


def draw_curves(folder: RunFolder, config: Config, batches: Batches | None) -> None:
    """Draw the figures that need no field."""
    _draw(folder, _curves(folder, find_irreducible(folder, config, batches)))


def _draw(folder: RunFolder, jobs: Iterable[Drawable]) -> list[Figure]:
    """Draw figures and add them to the list of the run's figures."""
    drawn = []
    for figure, draw in jobs:
        draw(folder.figures / figure.file)
        drawn.append(figure)
    add_figures(folder.figures, drawn)
    return drawn


def _curves(folder: RunFolder, irreducible: Irreducible | None) -> Iterator[Drawable]:
    """The figures that need only the metrics; a run draws them during training too."""
    from flowimg.figures.curves import loss_by_t_figure, loss_figure, training_figure

    records = folder.records()
    caption = "The loss does not reach zero, since the target depends on noise that cannot be inferred from x_t."
    if irreducible:
        caption += f" The best possible field has a loss of {irreducible.mean:.3f}."
        if irreducible.of.startswith(OF_PICTURES):
            caption += " It would generate training pictures only; a field that generates new ones has a higher loss."
    loss = Figure("loss.png", "Training loss and irreducible loss", caption, curve=True)
    yield loss, lambda path: loss_figure(records, irreducible, path)
    by_t = Figure("loss_by_t.png", "Loss over flow time", "A line per stage of training, early to late.", curve=True)
    yield by_t, lambda path: loss_by_t_figure(records, irreducible, path)
    course = Figure("training.png", "Course of training", "Means between lines of metrics.jsonl.", curve=True)
    yield course, lambda path: training_figure(records, path)
