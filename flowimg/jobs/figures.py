"""`flowimg figures`, and the end of every run: the flow made visible, in RUN/figures."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine
from tqdm import tqdm

from flowimg.config import Config, Figures, Solving
from flowimg.data.batches import ImageBatches, Pictures, PointBatches
from flowimg.data.store import to_unit
from flowimg.fields.guidance import guided
from flowimg.flow.floor import BINS, Floor, loss_floor, means_by_time, tenth_of
from flowimg.flow.objective import NO_CLASS, Draw, Objective
from flowimg.flow.randomness import generator
from flowimg.flow.solvers import integrate
from flowimg.flow.times import shift_times
from flowimg.jobs.build import Batches, build_objective, build_solver, build_source, build_times, build_toy
from flowimg.jobs.draw import BATCH, show, turns
from flowimg.jobs.folder import RunFolder, Trained, check_guidance, open_run, write_text
from flowimg.jobs.machine import alone, autocast, pick_device, settle
from flowimg.jobs.scores import describe
from flowimg.sampling.generate import between, noise, to_uint8

PARTICLES, FRAMES = 1500, 91
"""Particles in the animation, and its frames."""
CROWD = 100_000
"""Points whose density is shown."""
SHOWN, SEEDS = 12, 8
"""Classes and seeds in a table at most."""
FLOOR_DRAWS, FLOOR_DATA = 4096, 262_144
"""Points: x_t that the floor of the loss is a mean over, and data that may have made them."""
FLOOR_PICTURES, FLOOR_MOST, FLOOR_NUMBERS = 256, 60_000, 2**28
"""The same for pictures; and the numbers that those may have in all, for memory's sake."""
FLOOR_OF = {"points": "what no field can learn", "images": "what no field can learn, even by heart"}
AS_THEY_ARE = ", of pictures that are not augmented"
"""It is the floor of the held-out loss then: there is no closed form for the others."""


class Figure(NamedTuple):
    """A figure of a run: its file in RUN/figures, what is seen, a caption, how it was made; curves need no field."""

    file: str
    title: str
    caption: str
    how: str = ""
    curve: bool = False


def figures(settings: Figures) -> dict[str, Any]:
    """Draw all figures of a run and say where they are."""
    alone("figures")
    device = pick_device()
    run = open_run(settings.run, settings.weights, settings.step, device)
    settings = settle(settings, run.config)
    check_guidance(settings.guidance, run.facts, run.config)
    with autocast(device, settings.precision):
        drawn = draw_figures(run, settings, settings.seed, None)
    for figure in drawn:
        print(f"{run.folder.figures / figure.file}   {figure.title}")
    return {"run": settings.run, "step": run.step, "figures": [str(run.folder.figures / f.file) for f in drawn]}


def draw_figures(run: Trained, how: Solving, seed: int, batches: Batches | None) -> list[Figure]:
    """Draw all figures of a run.

    Args:
        run: The run and its field, on its device.
        how: How the flow is followed.
        seed: Seed of the first particle or picture.
        batches: The run's data where they are loaded; else they are, if the floor of the loss is not known yet.
    """
    floor = find_floor(run.folder, run.config, batches)
    made = f"Step {run.step:,}, {describe(how.model_dump())}, seeds from {seed}."
    seen = (_point_figures if _points(run) else _image_figures)(run, how, seed)
    jobs = [*((figure._replace(how=made), job) for figure, job in seen), *curve_figures(run.folder, floor)]
    drawn = []
    for figure, job in tqdm(jobs, unit="figure", leave=False, disable=None, desc="figures"):
        job(run.folder.figures / figure.file)
        drawn.append(figure)
    add_figures(run.folder, drawn)
    return drawn


def draw_curves(folder: RunFolder, config: Config, batches: Batches | None) -> None:
    """Draw what needs no field, and note it beside the figures that are there."""
    drawn = []
    for figure, job in curve_figures(folder, find_floor(folder, config, batches)):
        job(folder.figures / figure.file)
        drawn.append(figure)
    add_figures(folder, drawn)


def add_figures(folder: RunFolder, drawn: Sequence[Figure]) -> None:
    """Note figures beside those that are there, in place of older ones of the same file."""
    there = {figure.file for figure in drawn}
    keep_figures(folder, [*(figure for figure in kept_figures(folder) if figure.file not in there), *drawn])


def keep_figures(folder: RunFolder, drawn: Sequence[Figure]) -> None:
    """Note which figures there are, for the report."""
    write_text(folder.figures / "figures.json", json.dumps([figure._asdict() for figure in drawn], indent=1) + "\n")


def kept_figures(folder: RunFolder) -> list[Figure]:
    """The figures that were noted; a folder may come from a stranger, so files are looked for there alone."""
    try:
        told = json.loads((folder.figures / "figures.json").read_text())
        return [Figure(**{**figure, "file": Path(figure["file"]).name}) for figure in told]
    except (OSError, ValueError, TypeError, KeyError):
        return []


Job = Callable[[Path], object]


def _points(run: Trained) -> bool:
    return run.config.data.kind == "points"


# --- both ------------------------------------------------------------------------------------------------------------


def curve_figures(folder: RunFolder, floor: Floor | None) -> Iterator[tuple[Figure, Job]]:
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


def find_floor(folder: RunFolder, config: Config, batches: Batches | None) -> Floor | None:
    """The floor of the run's loss: kept in its folder, or estimated from the data where they are found.

    None where noise and data are coupled: there is no closed form then.
    """
    kept = folder.figures / "floor.json"
    if config.coupling.kind != "independent":
        return None
    if kept.exists():
        told = json.loads(kept.read_text())
        return Floor(told["mean"], [float("nan") if v is None else v for v in told["by_t"]], told["of"])
    if batches is None:
        try:
            batches = build_source(config).load(torch.device("cpu"))
        except Exception as error:  # the data may be on another machine, or gone: a figure less is no failure
            print(f"the floor of the loss is left out: the run's data are not there ({error})")
            return None
    floor = estimate_floor(config, batches)
    by_t = [None if value != value else value for value in floor.by_t]
    folder.figures.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps({**floor._asdict(), "by_t": by_t}) + "\n")
    return floor


def estimate_floor(config: Config, batches: Batches) -> Floor:
    """The loss that the best of all fields would have on this data, under the run's times and label drop."""
    objective = build_objective(config)
    if isinstance(batches, PointBatches):
        draw = _spread(objective, batches)
        floors = torch.full((FLOOR_DRAWS,), torch.nan, dtype=torch.float64)
        late = draw.t >= 1 - 1 / BINS
        # near the data few points can have made x_t, so it takes many to have some of them
        for some, count in ((~late, FLOOR_DATA // 16), (late & (late.cumsum(0) <= FLOOR_DRAWS // 10), FLOOR_DATA)):
            data = batches.toy.sample(SobolEngine(3, scramble=True, seed=1).draw(count, dtype=torch.float64))
            labels = batches.toy.part(data) if batches.labels else None
            part = Draw(*(None if value is None else value[some] for value in draw))  # type: ignore[arg-type]
            floors[some] = loss_floor(objective.path, part, data, labels, fresh=True)
    else:
        few = _some(batches)
        draw = replace(objective, batch_size=FLOOR_PICTURES).draw(few, 0, range(FLOOR_PICTURES))
        floors = loss_floor(objective.path, draw, *_population(few)).cpu()
    t = draw.t.cpu()
    by_t, counts = means_by_time(floors, t), tenth_of(t).bincount(minlength=BINS).tolist()
    known = [(count, floor) for count, floor in zip(counts, by_t, strict=True) if floor == floor]
    mean = sum(count * floor for count, floor in known) / max(sum(count for count, _ in known), 1)
    augmented = not isinstance(batches, PointBatches) and batches.augment > 0
    return Floor(mean, by_t, FLOOR_OF[config.data.kind] + (AS_THEY_ARE if augmented else ""))


def _spread(objective: Objective, batches: PointBatches) -> Draw:
    """Draws that cover noise, data and times evenly (Sobol's sequence): their mean settles sooner than a random one."""
    even = SobolEngine(7, scramble=True, seed=0).draw(FLOOR_DRAWS, dtype=torch.float64)
    x_1 = batches.toy.sample(even[:, :3])
    x_0 = torch.special.ndtri(even[:, 3:5].clamp(1e-9, 1 - 1e-9))
    t = shift_times(objective.times(even[:, 5]), objective.shift)
    labels = batches.toy.part(x_1) if batches.labels else None
    cond = None if labels is None else torch.where(even[:, 6] < objective.label_drop, NO_CLASS, labels)
    return Draw(x_0, x_1, t, cond)


def _some(batches: Pictures) -> ImageBatches:
    """The pictures that the floor is of: all of them, or as many of the first as memory and time allow."""
    images = batches.some(min(FLOOR_MOST, max(1, FLOOR_NUMBERS // batches.held_out(1)[0].numel())))
    device = torch.device("cpu") if batches.device.type == "mps" else batches.device  # that one has no float64
    none = torch.zeros(0, dtype=torch.int64)
    return ImageBatches(images.to(device), none, batches.flip, batches.seed, FLOOR_PICTURES, device)


def _population(batches: ImageBatches) -> tuple[Tensor, Tensor | None]:
    """All pictures that a step may see, mirrored ones included."""
    pixels, labels, _ = batches.images
    if batches.flip:
        pixels = torch.cat([pixels, pixels.flip(-1)])
        labels = None if labels is None else torch.cat([labels, labels])
    return to_unit(pixels), labels


# --- points ----------------------------------------------------------------------------------------------------------


def _point_figures(run: Trained, how: Solving, seed: int) -> Iterator[tuple[Figure, Job]]:
    from flowimg.figures.motion import density_figure, flow_animation, straightness_figure

    toy = build_toy(run.config)
    data = toy.sample(torch.rand(CROWD, 3, generator=generator("figure")))
    name = f"{run.config.data.source}, step {run.step:,}"
    frames = torch.linspace(0, 1, FRAMES).tolist()
    moving = follow(run, how, range(seed, seed + PARTICLES), frames)

    def arrows(x: Tensor, t: float) -> Tensor:
        device = next(run.field.parameters()).device
        with torch.no_grad():
            return run.field(x.to(device), torch.full((len(x),), t, device=device)).float().cpu()

    yield (
        Figure("flow.webp", "The flow", "Particles start as noise and follow the learned velocity to the data."),
        lambda path: flow_animation(moving, frames, arrows, data, toy.extent, path, name),
    )

    def density(path: Path) -> None:
        times = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
        crowd = follow(run, how, range(seed, seed + CROWD), times)
        density_figure(list(crowd), times, data, toy.extent, path, f"How noise becomes data: {name}")

    yield (
        Figure("density.png", "How noise becomes data", f"The density of {CROWD:,} particles on their way."),
        density,
    )
    yield (
        Figure(
            "straightness.png",
            "How straight the paths are",
            "Straighter paths need fewer solver steps; minibatch OT (coupling.kind: ot) straightens them.",
        ),
        lambda path: straightness_figure(moving, toy.extent, path, name),
    )


# --- images ----------------------------------------------------------------------------------------------------------


def _image_figures(run: Trained, how: Solving, seed: int) -> Iterator[tuple[Figure, Job]]:
    from flowimg.figures.pictures import growth_animation, picture_table

    made = f"step {run.step:,}, {describe(how.model_dump())}"
    classes = run.facts.classes

    def named(seeds: object, label: int | None) -> str:
        return f"seed {seeds}" if label is None else f"{classes[label]}, seed {seeds}"

    def strips(path: Path) -> None:
        times = [place / 10 for place in range(11)]
        states = follow(run, how, range(seed, seed + SEEDS), times)
        rows = [named(seed + row, (seed + row) % len(classes) if classes else None) for row in range(SEEDS)]
        names = [f"{t:.1f}" for t in times]
        title = f"From noise (t = 0) to picture (t = 1) ({made})"
        picture_table(to_uint8(states).transpose(0, 1), rows, names, path, title)

    def ways(path: Path) -> None:
        ends = noise(range(seed, seed + 5), run.facts.shape)
        x_0 = torch.cat([between(a, b, 9) for a, b in pairwise(ends)])
        labels = torch.arange(4).repeat_interleave(9) % len(classes) if classes else None
        x_1 = carry(run, how, x_0, [0.0, 1.0], labels)[-1]
        rows = [named(f"{seed + row} to {seed + row + 1}", row % len(classes) if classes else None) for row in range(4)]
        columns = [f"{place}/8" for place in range(9)]
        picture_table(to_uint8(x_1).unflatten(0, (4, 9)), rows, columns, path, f"Between noises ({made})")

    def table(path: Path) -> None:
        shown = list(range(min(len(classes), SHOWN)))
        x_0 = noise(range(seed, seed + SEEDS), run.facts.shape).repeat(len(shown), 1, 1, 1)
        x_1 = carry(run, how, x_0, [0.0, 1.0], torch.tensor(shown).repeat_interleave(SEEDS))[-1]
        columns = [str(seed + column) for column in range(SEEDS)]
        rows = [classes[c] for c in shown]
        title = f"Each class from the same noises, a column a seed ({made})"
        picture_table(to_uint8(x_1).unflatten(0, (len(shown), SEEDS)), rows, columns, path, title)

    yield Figure("strips.png", "From noise to picture", "A row a seed; the flow time t runs to the right."), strips
    if classes:
        yield Figure("classes.png", "Class by seed", "A column is one noise, asked for each class in turn."), table
    yield (
        Figure("between.png", "Between noises", "A row goes from one noise to another on the arc between them."),
        ways,
    )
    grids = run.folder.grids()

    def growth(path: Path) -> None:
        seeds = range(run.config.grid.count)
        start = path.with_name(".noise.png")
        show(noise(seeds, run.facts.shape), turns(seeds, classes), run.config, start, "")
        growth_animation([(0, start), *grids], path)
        start.unlink()

    if grids:
        told = "Noise, and what the averaged weights made of it at each step kept."
        yield Figure("growth.webp", "How it learned", told), growth


# --- following the flow ----------------------------------------------------------------------------------------------


def follow(run: Trained, how: Solving, seeds: Sequence[int], times: Sequence[float]) -> Tensor:
    """The states of these seeds' samples at these times, shape (len(times), len(seeds), *D); classes take turns."""
    return carry(run, how, noise(seeds, run.facts.shape), times, turns(seeds, run.facts.classes))


@torch.no_grad()
def carry(run: Trained, how: Solving, x_0: Tensor, times: Sequence[float], labels: Tensor | None) -> Tensor:
    """The states on the way from noise at these times, the first 0 and the last 1, on the CPU.

    Between two times of the solver on the straight line, as Euler goes; dopri5 visits these times besides its own.
    """
    device = next(run.field.parameters()).device
    velocity, solver = guided(run.field, how.guidance, how.guidance_interval), build_solver(how)
    visited = torch.tensor(times) if solver.adaptive else build_times(how)
    states = []
    for rows in torch.arange(len(x_0)).split(BATCH[run.config.data.kind]):
        cond = None if labels is None else labels[rows].to(device)
        flow = integrate(velocity, x_0[rows].to(device), visited, solver, cond, trajectory=True)
        assert flow.trajectory is not None
        states.append(between_steps(flow.trajectory.float(), visited, times).cpu())
    return torch.cat(states, dim=1)


def between_steps(states: Tensor, visited: Tensor, times: Sequence[float]) -> Tensor:
    """States at these times, from those at the times visited, (T, B, *D), by straight lines between them."""
    grid = visited.double()
    wanted = torch.tensor(times, dtype=torch.float64).clamp(float(grid[0]), float(grid[-1]))
    right = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
    part = ((wanted - grid[right - 1]) / (grid[right] - grid[right - 1])).to(states)
    return torch.lerp(states[right - 1], states[right], part.reshape(-1, *[1] * (states.ndim - 1)))
