"""Samples of a field, and the figure that shows them: the same for training, sampling and evaluation."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.config import Config, Solving
from flowimg.fields.guidance import guided
from flowimg.flow.randomness import generator
from flowimg.jobs.build import DataFacts, build_solver, build_times, build_toy
from flowimg.jobs.memory import is_out_of_memory
from flowimg.sampling.generate import Samples, generate, to_uint8

Item = TypeVar("Item")

BATCH = {"points": 25_000, "images": 250}
"""Samples at once, by kind of data."""


def turns(seeds: Sequence[int], classes: Sequence[str]) -> Tensor | None:
    """Labels when none were asked for: the classes take turns, by seed; None without classes."""
    return torch.tensor([seed % len(classes) for seed in seeds]) if classes else None


def share(items: Sequence[Item], process: int, processes: int) -> Sequence[Item]:
    """The items that are this process's: all of them are shared out, in order, as evenly as they go."""
    return items[len(items) * process // processes : len(items) * (process + 1) // processes]


def stream(
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    how: Solving,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[Samples]:
    """Samples of these seeds a batch at a time, with the solver, times and guidance of `how`.

    A batch that memory has no room for is halved, and so are those after it: the samples are the same.
    """
    velocity = guided(field, how.guidance, how.guidance_interval)
    device, times, solver = next(field.parameters()).device, build_times(how), build_solver(how)
    size, done = batch_size or BATCH[config.data.kind], 0
    while done < len(seeds):
        mine, wanted = seeds[done : done + size], None if labels is None else labels[done : done + size]
        try:
            (batch,) = generate(velocity, mine, facts.shape, times, solver, wanted, size, device)
        except (MemoryError, RuntimeError) as error:
            if len(mine) == 1 or not is_out_of_memory(error):
                raise
            size = len(mine) // 2
            continue
        done += len(mine)
        yield batch


def draw(
    field: nn.Module, config: Config, facts: DataFacts, how: Solving, seeds: Sequence[int], labels: Tensor | None = None
) -> Samples:
    """All samples of these seeds, float32 on the CPU; with a bar on a terminal where it takes several batches."""
    x_1, nfe = [], 0
    quiet = True if len(seeds) <= BATCH[config.data.kind] else None
    with tqdm(total=len(seeds), unit="sample", leave=False, disable=quiet) as progress:
        for batch in stream(field, config, facts, how, seeds, labels):
            x_1.append(batch.x_1.float())
            nfe = max(nfe, batch.nfe)
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
