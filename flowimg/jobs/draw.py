"""Samples of a field, and the figure that shows them: the same for training, sampling and evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.config import Config, Many, Solving
from flowimg.fields.guidance import guided
from flowimg.flow.randomness import generator
from flowimg.jobs.build import DataFacts, build_solver, build_times, build_toy
from flowimg.jobs.folder import Trained
from flowimg.jobs.machine import compiles
from flowimg.sampling.generate import Samples, generate, to_uint8

Item = TypeVar("Item")

BATCH = {"points": 25_000, "images": 250}
"""Samples at once, by kind of data."""
WORTH = 4000
"""Calls of the field, a batch each, for which a compiler's minute is no loss on a GPU."""


def turns(seeds: Sequence[int], classes: Sequence[str]) -> Tensor | None:
    """Labels when none were asked for: the classes take turns, by seed; None without classes."""
    return torch.tensor([seed % len(classes) for seed in seeds]) if classes else None


def share(items: Sequence[Item], process: int, processes: int) -> Sequence[Item]:
    """The items that are this process's: all of them are shared out, in order, as evenly as they go."""
    return items[len(items) * process // processes : len(items) * (process + 1) // processes]


class Compiled(nn.Module):
    """A field that is compiled for batches of one size, and of twice that, as guidance has them.

    Any other, as the last one, goes through the field as it is: it is not worth a compiler's time.
    """

    def __init__(self, field: nn.Module, size: int) -> None:
        super().__init__()
        self.field, self.sizes = field, (size, 2 * size)
        self.compiled = torch.compile(field, dynamic=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The field's velocity, shape of x; see the field."""
        velocity: Tensor = (self.compiled if len(x) in self.sizes else self.field)(x, t, cond)
        return velocity


def quickened(run: Trained, settings: Many, count: int, state: PartialState) -> Trained:
    """The run, its field compiled where that is asked for, or worth it for this process's share of so many samples."""
    count = len(share(range(count), state.process_index, state.num_processes))
    size = min(count, settings.batch_size or BATCH[run.config.data.kind])
    worth = size > 0 and count // size * settings.num_steps >= WORTH
    compiled = compiles(settings.compile, "--compile", run.config, worth)
    return replace(run, field=Compiled(run.field, size)) if compiled else run


def stream(
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    how: Solving,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    batch_size: int | None = None,
) -> Iterator[Samples]:
    """Samples of these seeds a batch at a time, with the solver, times and guidance of `how`."""
    velocity = guided(field, how.guidance, how.guidance_interval)
    device, size = next(field.parameters()).device, batch_size or BATCH[config.data.kind]
    yield from generate(velocity, seeds, facts.shape, build_times(how), build_solver(how), labels, size, device)


def draw(
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    how: Solving,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    batch_size: int | None = None,
) -> Samples:
    """All samples of these seeds, float32 on the CPU; with a bar on a terminal where it takes several batches."""
    x_1, nfe = [], 0
    quiet = True if len(seeds) <= (batch_size or BATCH[config.data.kind]) else None
    with tqdm(total=len(seeds), unit="sample", leave=False, disable=quiet) as progress:
        for batch in stream(field, config, facts, how, seeds, labels, batch_size):
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
