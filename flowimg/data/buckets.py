"""Pictures of several shapes: sorted into buckets, each batch of one of them.

Of N pictures to learn from, in the order of their buckets, step s takes the bucket that holds number

    q(s) = (a s + c) mod N,    a coprime to N and near 0.618 N

so that N consecutive steps take a bucket as often as it has pictures, and any few steps do so nearly. How often the
bucket was taken before, which is its own step, is a sum of floors and known at once for any s:

    #{i < s: q(i) < x} = sum_{i < s} floor((a i + c) / N) - floor((a i + c - x) / N)

In each bucket pictures come in its own keyed order (`order`), so each pass of a bucket shows each of its pictures once.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flowimg.data.batches import Batches, ImageBatches, PictureBatches
from flowimg.data.cache import name_of
from flowimg.data.store import Images
from flowimg.errors import DataError
from flowimg.flow.randomness import key

GOLDEN = (math.sqrt(5) - 1) / 2


def shapes_of(area: int, ratios: Sequence[float], multiple: int) -> tuple[tuple[int, int], ...]:
    """Heights and widths of about this area, a pair for each ratio of width to height, in multiples of a number."""

    def near(side: float) -> int:
        return max(1, round(side / multiple)) * multiple

    return tuple((near(math.sqrt(area / ratio)), near(math.sqrt(area * ratio))) for ratio in ratios)


def nearest_shapes(sizes: NDArray[np.int32], shapes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Which of the shapes each size is nearest to in its ratio of width to height, as a factor.

    Args:
        sizes: Heights and widths, shape (N, 2).
        shapes: Heights and widths.

    Returns:
        Indices of `shapes`, shape (N,); the first of equally near ones.
    """
    ratios = np.log(sizes[:, 1] / sizes[:, 0])
    wanted = np.array([math.log(width / height) for height, width in shapes])
    return np.abs(ratios[:, None] - wanted).argmin(1)


def cut_away(sizes: NDArray[np.int32], shapes: Sequence[tuple[int, int]]) -> float:
    """The share of the pictures' area that `crop` cuts away if each is brought to the nearest of these shapes.

    A picture of ratio r that is scaled to cover a shape of ratio R keeps min(r, R) / max(r, R) of its area.
    """
    ratios = sizes[:, 1] / sizes[:, 0]
    wanted = np.array([width / height for height, width in shapes])[nearest_shapes(sizes, shapes)]
    return float(1 - (np.minimum(ratios, wanted) / np.maximum(ratios, wanted)).mean())


@dataclass(frozen=True)
class Turns:
    """Which bucket a step takes, and how often it was taken before.

    Args:
        counts: Pictures of each bucket, none of them 0.
        seed: Seed of the run, which shifts the sequence.
    """

    counts: tuple[int, ...]
    seed: int = 0

    @cached_property
    def _sequence(self) -> tuple[int, int, int]:
        """N, a and c."""
        total = sum(self.counts)
        stride = next(a for a in range(max(1, round(GOLDEN * total)), 2 * total + 1) if math.gcd(a, total) == 1)
        return total, stride, key("turns", self.seed) % total

    def bucket(self, step: int) -> int:
        """The bucket of a step."""
        total, stride, start = self._sequence
        return bisect_right(self._ends, (stride * step + start) % total)

    def before(self, step: int) -> int:
        """The number of steps before this one that took its bucket."""
        bucket = self.bucket(step)
        end = self._ends[bucket]
        return self._below(end, step) - self._below(end - self.counts[bucket], step)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def _below(self, x: int, steps: int) -> int:
        """#{i < steps: q(i) < x}."""
        total, stride, start = self._sequence
        return floor_sum(steps, total, stride, start) - floor_sum(steps, total, stride, start + total - x) + steps

    def portions(self, steps: Iterable[int]) -> list[list[int]]:
        """Which of these steps, by their rows, take each bucket."""
        found: list[list[int]] = [[] for _ in self.counts]
        for row, step in enumerate(steps):
            found[self.bucket(step)].append(row)
        return found


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """sum_{0 <= i < n} floor((a i + b) / m), for a, b >= 0, in O(log m) steps as in Euclid's algorithm."""
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            break
        n, b, m, a = last // m, last % m, a, m
    return total


@dataclass
class BucketBatches(PictureBatches):
    """Batches of one shape each; see the head of this file and `PictureBatches`.

    `buckets` have a shape each, and their own seeds; `left_out` are the bad pictures of all.
    """

    buckets: tuple[ImageBatches, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        counts = tuple(bucket.size for bucket in self.buckets)
        self.turns, self.size = Turns(counts, self.seed), sum(counts)
        self.fingerprint: str = name_of([bucket.fingerprint for bucket in self.buckets])[:16]
        self.ready = all(bucket.ready for bucket in self.buckets)
        areas = [math.prod(bucket.space.shape) for bucket in self.buckets]
        self.largest = first_of_each(self.turns)[areas.index(max(areas))]

    @property
    def parts(self) -> tuple[Batches, ...]:
        """The buckets."""
        return self.buckets

    def first(self, count: int, batch_size: int) -> list[tuple[int, range]]:
        """The first step of each bucket, and positions in its batch in proportion."""
        each = [max(1, count * bucket.size // self.size) for bucket in self.buckets]
        return [(step, range(min(batch_size, n))) for step, n in zip(first_of_each(self.turns), each, strict=True)]

    def part(self, shape: tuple[int, ...]) -> Batches:
        """The bucket of this shape.

        Raises:
            DataError: If it has no pictures.
        """
        found = next((bucket for bucket in self.buckets if bucket.space.shape == shape), None)
        if found is None:
            raise DataError(f"data.buckets has no pictures of {shape[1]} x {shape[2]}: give another --shape")
        return found

    def seen_from(self, offset: int) -> Self:
        """See `Batches`; a batch of another size would shift the buckets against each other.

        Raises:
            DataError: If the run's batches had another size before.
        """
        if offset:
            raise DataError("data.buckets need batches of one size: give back the train.batch_size of the run")
        return self

    def _stored(self, step: int, positions: range) -> Images:
        return self.buckets[self.turns.bucket(step)]._stored(self.turns.before(step), positions)

    def _apart(self, count: int) -> Images:
        raise NotImplementedError("held-out pictures have several shapes: ask each of the parts")

    def rows(self, step: int, positions: range) -> list[int]:
        """Which pictures a step sees at these positions, counted through all buckets."""
        bucket = self.turns.bucket(step)
        before = sum(len(other.images.pixels) for other in self.buckets[:bucket])
        return [before + row for row in self.buckets[bucket].rows(self.turns.before(step), positions)]


def share_out(count: int, counts: Sequence[int]) -> list[int]:
    """A number of pictures to hold out shared out over buckets, in proportion; each keeps one to learn from.

    Args:
        count: At most sum(counts) - len(counts).
        counts: Pictures of each bucket.
    """
    asked = [len(rows) for rows in Turns(tuple(counts)).portions(range(count))]
    held = [min(one, there - 1) for one, there in zip(asked, counts, strict=True)]
    for bucket, there in enumerate(counts):  # what small buckets cannot spare comes from others
        held[bucket] += min(count - sum(held), there - 1 - held[bucket])
    return held


def first_of_each(turns: Turns) -> list[int]:
    """The first step that takes each bucket."""
    found: dict[int, int] = {}
    step = 0
    while len(found) < len(turns.counts):
        found.setdefault(turns.bucket(step), step)
        step += 1
    return [found[bucket] for bucket in range(len(turns.counts))]
