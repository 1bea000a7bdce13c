"""Samples of a field, and the figure that shows them: the same for training, sampling and evaluation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.config import Config, Evaluate, Grid, Sample
from flowimg.fields.guidance import guided
from flowimg.flow.randomness import generator
from flowimg.flow.times import uniform_grid
from flowimg.jobs.build import SOLVERS, DataFacts, build_toy
from flowimg.sampling.generate import Samples, generate, to_uint8

BATCH = {"points": 25_000, "images": 250}
"""Samples at once, by kind of data."""


def turns(seeds: Sequence[int], classes: Sequence[str]) -> Tensor | None:
    """Labels when none were asked for: the classes take turns, by seed; None without classes."""
    return torch.tensor([seed % len(classes) for seed in seeds]) if classes else None


def draw(
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    how: Grid | Sample | Evaluate,
    seeds: Sequence[int],
    batch_size: int | None = None,
    labels: Tensor | None = None,
    bar: bool = False,
) -> Samples:
    """All samples of these seeds, float32 on the CPU, with the solver, steps and guidance of `how`."""
    batches = generate(
        guided(field, how.guidance),
        seeds,
        facts.shape,
        uniform_grid(how.num_steps),
        SOLVERS[how.solver],
        labels,
        batch_size or BATCH[config.data.kind],
        next(field.parameters()).device,
    )
    x_1, nfe = [], 0
    with tqdm(total=len(seeds), unit="sample", disable=None if bar else True) as progress:
        for batch in batches:
            x_1.append(batch.x_1.float())
            nfe = batch.nfe
            progress.update(len(batch.x_1))
    return Samples(torch.cat(x_1), nfe)


def show(samples: Tensor, labels: Tensor | None, config: Config, path: Path, title: str) -> None:
    """The figure of these samples: a grid of pictures, or points beside data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.data.kind == "images":
        from flowimg.figures.images import image_grid

        classes = len(labels.unique()) if labels is not None else 1
        # a column a class, while the classes take turns and fit a row
        columns = classes if 1 < classes <= 20 and len(samples) > classes else None
        image_grid(to_uint8(samples), path, columns)
    else:
        from flowimg.figures.points import points_figure

        toy = build_toy(config)
        data = toy.sample(torch.rand(len(samples), 3, generator=generator("figure")))
        points_figure(samples, data, toy.extent, path, title)
