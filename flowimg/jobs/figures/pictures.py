"""The figures of the flow of a run on pictures."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch

from flowimg.conditions.labels import turns
from flowimg.evaluation.record import describe
from flowimg.figures.record import Figure
from flowimg.figures.samples import draw_samples
from flowimg.flow.condition import Condition
from flowimg.runs.opening import Run
from flowimg.sampling.sampler import Sampler, arc, noise
from flowimg.settings.sampling import Solving

SHOWN, SEEDS = 12, 8
"""Classes and seeds in a table at most."""


def picture_figures(
    run: Run, sampler: Sampler, how: Solving, seed: int
) -> Iterator[tuple[Figure, Callable[[Path], object]]]:
    """Each figure with what draws it: from noise to picture, class by seed, between noises, how it learned."""
    from flowimg.figures.pictures import growth_animation, picture_table

    made = f"step {run.step:,}, {describe(how.record)}"
    classes, space = run.facts.classes, run.space

    def named(seeds: object, label: int | None) -> str:
        return f"seed {seeds}" if label is None else f"{classes[label]}, seed {seeds}"

    def strips(path: Path) -> None:
        times = [place / 10 for place in range(11)]
        seeds = range(seed, seed + SEEDS)
        states = sampler.follow(noise(seeds, space.shape), turns(seeds, classes), times).states
        rows = [named(seed + row, (seed + row) % len(classes) if classes else None) for row in range(SEEDS)]
        names = [f"{t:.1f}" for t in times]
        title = f"From noise (t = 0) to picture (t = 1) ({made})"
        picture_table(space.decode(states).transpose(0, 1), rows, names, path, title)

    def ways(path: Path) -> None:
        ends = noise(range(seed, seed + 5), space.shape)
        x_0 = torch.cat([arc(a, b, 9) for a, b in pairwise(ends)])
        cond = Condition(torch.arange(4).repeat_interleave(9) % len(classes)) if classes else Condition()
        x_1 = sampler.follow(x_0, cond).states[-1]
        rows = [named(f"{seed + row} to {seed + row + 1}", row % len(classes) if classes else None) for row in range(4)]
        columns = [f"{place}/8" for place in range(9)]
        picture_table(space.decode(x_1).unflatten(0, (4, 9)), rows, columns, path, f"Between noises ({made})")

    def table(path: Path) -> None:
        shown = list(range(min(len(classes), SHOWN)))
        x_0 = noise(range(seed, seed + SEEDS), space.shape).repeat(len(shown), 1, 1, 1)
        x_1 = sampler.follow(x_0, Condition(torch.tensor(shown).repeat_interleave(SEEDS))).states[-1]
        columns = [str(seed + column) for column in range(SEEDS)]
        rows = [classes[c] for c in shown]
        title = f"Each class from the same noises, a column a seed ({made})"
        picture_table(space.decode(x_1).unflatten(0, (len(shown), SEEDS)), rows, columns, path, title)

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
        draw_samples(space, noise(seeds, space.shape), turns(seeds, classes), start)
        growth_animation([(0, start), *grids], path)
        start.unlink()

    if grids:
        told = "Noise, and what the averaged weights made of it at each step kept."
        yield Figure("growth.webp", "How it learned", told), growth
