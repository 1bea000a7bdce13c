"""The figures of the flow of a run on pictures."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from flowimg.build.data import build_condition, portions
from flowimg.figures.record import Drawable, Figure
from flowimg.figures.samples import Samples, draw_portions
from flowimg.flow.condition import Condition
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import Sampler, arc, noise

CLASSES, SEEDS = 12, 8
"""The maximum number of classes in a table, and its number of seeds."""


def picture_figures(run: OpenRun, sampler: Sampler, how: str, seed: int) -> Iterator[Drawable]:
    """From noise to picture; classes by seeds; interpolations between noises; the samples during training."""
    from flowimg.figures.pictures import growth_animation, picture_table

    made = f"step {run.step:,}, {how}"
    space: Any = run.space
    numbers, seeds = run.facts.present, range(seed, seed + SEEDS)
    classes = [run.facts.classes[number] for number in numbers]

    def row_name(seeds: object, number: int) -> str:
        return f"{classes[number % len(classes)]}, seed {seeds}" if classes else f"seed {seeds}"

    def strips(path: Path) -> None:
        times = [n / 10 for n in range(11)]
        cond = build_condition(run.config, run.facts, seeds)
        states = sampler.follow(noise(seeds, space.shape), cond, times, seeds=seeds).states
        rows, columns = [row_name(number, number) for number in seeds], [f"{t:.1f}" for t in times]
        title = f"From noise (t = 0) to picture (t = 1) ({made})"
        picture_table(space.shown(states).transpose(0, 1), rows, columns, path, title)

    def table(path: Path) -> None:
        shown = min(len(classes), CLASSES)
        x_0 = noise(seeds, space.shape).repeat(shown, 1, 1, 1)
        cond = Condition(torch.tensor(numbers[:shown]).repeat_interleave(SEEDS))
        x_1 = sampler.follow(x_0, cond, seeds=[*seeds] * shown).states[-1]
        title = f"Each class from the same noises, one seed per column ({made})"
        pictures = space.shown(x_1).unflatten(0, (shown, SEEDS))
        picture_table(pictures, classes[:shown], [str(number) for number in seeds], path, title)

    def interpolations(path: Path) -> None:
        x_0 = torch.cat([arc(a, b, 9) for a, b in pairwise(noise(range(seed, seed + 5), space.shape))])
        label = torch.tensor(numbers * 4)[:4].repeat_interleave(9)
        cond = Condition(label) if classes else Condition()
        x_1 = sampler.follow(x_0, cond, seeds=[seed] * len(x_0)).states[-1]
        pictures = space.shown(x_1).unflatten(0, (4, 9))
        rows = [row_name(f"{seed + row} to {seed + row + 1}", row) for row in range(4)]
        picture_table(pictures, rows, [f"{n}/8" for n in range(9)], path, f"Interpolation between noises ({made})")

    def growth(path: Path) -> None:
        seeds, start = range(min(run.config.grid.count, space.fits_a_figure)), path.with_name(".noise.png")
        cond = build_condition(run.config, run.facts, seeds)
        parts = portions(run.config, run.facts, seeds)
        drawn = [Samples(s, noise([seeds[row] for row in rows], s.shape), cond.rows(rows)) for s, rows in parts]
        draw_portions(drawn, start)
        growth_animation([(0, start), *run.folder.grids()], path)
        start.unlink()

    yield Figure("strips.png", "From noise to picture", "A row per seed; flow time t runs to the right."), strips
    if classes:
        yield Figure("classes.png", "Class by seed", "A column per noise, with each class in turn."), table
    caption = "Each row follows the arc from one noise to another."
    yield Figure("between.png", "Interpolation between noises", caption), interpolations
    if run.folder.grids():
        caption = "The noise, and the samples drawn from it with the EMA weights at each step."
        yield Figure("growth.webp", "Samples during training", caption), growth
