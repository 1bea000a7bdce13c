"""What is known of data before they are loaded, and what a network must know of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from flowimg.data.batches import Batches
from flowimg.data.listing import listed
from flowimg.errors import DataError
from flowimg.names import one_line
from flowimg.settings.run import Config

MOST_UNUSED = 5
"""Most remarks on unused files that a run prints."""


class DataFacts(NamedTuple):
    """What a network must know of the data: the shape of a sample, and the names of the classes, if it uses them.

    `architecture` is that of a pretrained network, in a run that continues. `numbers` is how many numbers each further
    part of a condition has; `build_field` sets it. `absent` are the classes, by number, that no sample is of: nobody
    can learn them, so they take no turn. `buckets` are the heights and widths of `data.buckets` that have pictures, and
    how many each has to learn from; `shape` is then the one that is nearest to a square, by which the network is built.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    architecture: dict[str, Any] | None = None
    numbers: Mapping[str, int] = MappingProxyType({})
    absent: tuple[int, ...] = ()
    buckets: tuple[tuple[int, int, int], ...] = ()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the samples: one, or that of each bucket."""
        return [(self.shape[0], *bucket[:2]) for bucket in self.buckets] or [self.shape]

    @property
    def usual(self) -> tuple[int, ...]:
        """The shape of what is drawn where one is: `shape`, or the commonest one where that has no pictures."""
        there = self.shapes
        most = max(range(len(there)), key=lambda number: self.buckets[number][2] if self.buckets else 0)
        return self.shape if self.shape in there else there[most]

    @property
    def present(self) -> list[int]:
        """The classes, by number, that have samples."""
        return [number for number in range(len(self.classes)) if number not in self.absent]


class FoundData(NamedTuple):
    """Data before loading: their facts, and a line that describes them.

    `load` makes batches of them on a device; images are decoded only then. `unused` are remarks on what looks meant and
    is not used.
    """

    facts: DataFacts
    story: str
    load: Callable[[torch.device], Batches]
    unused: tuple[str, ...] = ()

    def doubts(self) -> list[str]:
        """Warnings before a run: classes without samples, and what lies there unused."""
        names = [self.facts.classes[number] for number in self.facts.absent]
        lines = [f"no picture to train on is of class {listed(names)}: samples are of other classes"] if names else []
        lines += [f"not used: {remark}" for remark in self.unused[:MOST_UNUSED]]
        if (more := len(self.unused) - MOST_UNUSED) > 0:
            lines.append(f"not used: {more} more, which flowimg data check lists")
        return lines


def check_same(config: Config, before: DataFacts, now: DataFacts) -> None:
    """Refuse data with another shape or other classes than the run was trained on.

    Raises:
        DataError: With the difference.
    """
    shapes = [facts.shapes for facts in (now, before)]
    # of buckets, one shape may have been chosen
    if shapes[0] != shapes[1] and not (now.buckets and not before.buckets and before.shape in shapes[0]):
        new, old = (", ".join(" x ".join(map(str, shape)) for shape in some) for some in shapes)
        differs = f"pictures of {new}, and the run was trained on {old}"
    elif before.classes and before.classes != now.classes:
        differs = f"the classes {listed(now.classes)}, and the run was trained on {listed(before.classes)}"
    else:
        return
    data: Any = config.data
    raise DataError(f"{one_line(data.source)}, {data.split}, has {differs}: give back the data of the run")
