"""Settings to data: points or images, the space of x, and what is drawn of it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flowimg.build.facts import DataFacts, FoundData
from flowimg.build.images import found_images, pixels_of
from flowimg.conditions.labels import labelled, turns
from flowimg.data import toys
from flowimg.data.batches import PointBatches
from flowimg.data.buckets import Turns
from flowimg.data.cache import cache_folder
from flowimg.flow.condition import Condition
from flowimg.flow.randomness import generator
from flowimg.settings.data import PointData
from flowimg.settings.run import Config
from flowimg.spaces.points import Points
from flowimg.spaces.space import Space

TOYS: dict[str, Callable[[PointData], toys.Toy]] = {
    "checkerboard": lambda s: toys.Checkerboard(s.cells),
    "moons": lambda s: toys.Moons(),
    "eight_gaussians": lambda s: toys.EightGaussians(),
    "spirals": lambda s: toys.Spirals(),
    "rings": lambda s: toys.Rings(),
}

SPACES: dict[str, Callable[[Config, DataFacts], Space]] = {
    "points": lambda config, facts: _plane(build_toy(config)),
    "images": lambda config, facts: pixels_of(config.data, facts.usual),
}


def build_toy(config: Config) -> toys.Toy:
    """The distribution of points that a run learns."""
    data: Any = config.data
    return TOYS[data.source](data)


def _plane(toy: toys.Toy) -> Points:
    return Points(toy.extent, lambda count: toy.sample(torch.rand(count, 3, generator=generator("figure"))))


def build_space(config: Config, facts: DataFacts) -> Space:
    """The space of a run's samples; where they have several shapes, of the usual one."""
    return SPACES[config.data.kind](config, facts)


class Portion(NamedTuple):
    """The samples of one shape: their space, and which they are among all."""

    space: Space
    rows: list[int]


def portions(config: Config, facts: DataFacts, seeds: Sequence[int]) -> list[Portion]:
    """The samples of these seeds by their shape: where there are buckets, each seed has one, in proportion."""
    if not facts.buckets:
        return [Portion(build_space(config, facts), list(range(len(seeds))))]
    rows = Turns(tuple(count for *_, count in facts.buckets)).portions(seeds)
    spaces = (build_space(config, facts._replace(shape=(facts.shape[0], h, w))) for h, w, _ in facts.buckets)
    return [Portion(space, some) for space, some in zip(spaces, rows, strict=True) if some]


def _points(config: Config) -> FoundData:
    data: Any = config.data
    toy = build_toy(config)
    classes = tuple(str(part) for part in range(toy.parts)) if data.labels else ()
    story = f"{data.source}: points drawn afresh" + (f", {len(classes)} classes" if classes else "")
    return FoundData(DataFacts((2,), classes), story, partial(PointBatches, toy, data.labels, config.seed))


KINDS: dict[str, Callable[[Config], FoundData]] = {"points": _points, "images": found_images}


def cache_of(config: Config) -> Path:
    """The cache folder of a run's data; the default one for data without a cache."""
    return cache_folder(getattr(config.data, "cache", None))


def build_condition(config: Config, facts: DataFacts, seeds: Sequence[int], label: int | None = None) -> Condition:
    """What the field is given for the samples of these seeds: a class, or by default the classes in turns."""
    return turns(seeds, facts.present) if label is None else labelled(label, len(seeds), facts.classes)


def build_source(config: Config) -> FoundData:
    """The data of a run, found and checked but not yet loaded."""
    return KINDS[config.data.kind](config)
