"""Batches of x_1: which data an optimiser step sees at which position of its global batch.

All kinds answer `(step, positions) -> (x_1, cond)` and are functions of (seed, step, positions) only; nobody after them
asks whether they hold points or images.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from flowimg.data.augment import augmented
from flowimg.data.order import sample_indices
from flowimg.data.store import Images
from flowimg.data.toys import Toy
from flowimg.flow import randomness
from flowimg.flow.condition import Condition
from flowimg.spaces.pixels import Pixels

Batch = tuple[Tensor, Condition]
"""x_1 and what the field is given with it, on the device they will be used on."""


class Batches(ABC):
    """What every kind of batches answers; the defaults are those of fresh data.

    `fingerprint` is the name of all data, None for fresh ones; `size` the number of samples to learn from, 0 where they
    never repeat; `ready` says that nothing has to be made ahead of the steps; `left_out` are the names of bad
    samples, with the reasons; `largest` is a step whose samples are as large as any.
    """

    device: torch.device
    fingerprint: str | None = None
    size: int = 0
    ready: bool = True
    left_out: tuple[tuple[str, str], ...] = ()
    largest: int = 0

    @abstractmethod
    def __call__(self, step: int, positions: range) -> Batch:
        """x_1, shape (len(positions), *D), and its condition."""

    @abstractmethod
    def held_out(self, count: int) -> Batch:
        """Data that no step sees: the first `count` of those held out, or all of them."""

    @property
    def parts(self) -> "tuple[Batches, ...]":
        """Data of one shape each: all of it, or its buckets."""
        return (self,)

    def first(self, count: int, batch_size: int) -> list[tuple[int, range]]:
        """Steps, and positions in their batches, of the first samples; of several shapes, some of each."""
        return [(step, range(min(batch_size, count - at))) for step, at in enumerate(range(0, count, batch_size))]

    def part(self, shape: tuple[int, ...]) -> "Batches":
        """The part whose samples have this shape."""
        return self

    def rows(self, step: int, positions: range) -> list[int] | None:
        """Which rows of the data set a step sees at these positions; None where there is no data set."""
        return None

    def seen_from(self, offset: int) -> Self:
        """The same data of a run that saw `offset` samples more than its step times its batch size."""
        return self

    def close(self) -> None:  # noqa: B027  most have nothing to release
        """Release what reads them."""


@dataclass(frozen=True)
class PointBatches(Batches):
    """Fresh points of a toy at every step; labels are their parts."""

    toy: Toy
    labels: bool
    seed: int
    device: torch.device

    def __call__(self, step: int, positions: range) -> Batch:
        """x_1, shape (len(positions), 2), and its condition."""
        lot = randomness.lot_of(step, len(positions))
        if len(lot) == 1:
            return self.made_of(randomness.uniform(self.seed, "data", step, positions, (3,)))
        x_1, labels = _points(self, lot, positions)
        return x_1[step - lot.start], Condition(None if labels is None else labels[step - lot.start])

    def held_out(self, count: int) -> Batch:
        """Points that no step sees, the same whatever the seed of the run."""
        return self.made_of(randomness.uniform(0, "held out", 0, range(count), (3,)))

    def made_of(self, u: Tensor) -> Batch:
        """Points and their condition from uniform numbers, shape (N, 3)."""
        x_1 = self.toy.sample(u)
        labels = to_device(self.toy.part(x_1), self.device) if self.labels else None
        return to_device(x_1, self.device), Condition(labels)


@lru_cache(maxsize=randomness.LOTS)
def _points(batches: PointBatches, lot: range, positions: range) -> tuple[Tensor, Tensor | None]:
    """Points, (len(lot), len(positions), 2), and labels, (len(lot), len(positions)), the same as of each step."""
    u = torch.cat([randomness.uniform(batches.seed, "data", step, positions, (3,)) for step in lot])
    x_1, (labels, *_) = batches.made_of(u)
    return x_1.unflatten(0, (len(lot), -1)), None if labels is None else labels.unflatten(0, (len(lot), -1))


@dataclass(kw_only=True)
class PictureBatches(Batches):
    """Pictures, scaled to [-1, 1], with random flips, windows and augmentation.

    With `window`, each picture has this height and width, cut out at random. `offset`: samples already seen
    before this step count began, after the batch size changed mid-run. `augment` is the probability of each
    transformation.
    """

    space: Pixels
    flip: bool
    seed: int
    batch_size: int
    device: torch.device
    window: tuple[int, int] | None = None
    offset: int = 0
    augment: float = 0.0

    @abstractmethod
    def _stored(self, step: int, positions: range) -> Images:
        """The pictures that a step sees at these positions, as they are stored."""

    @abstractmethod
    def _apart(self, count: int) -> Images:
        """The first `count` of the pictures held out, as they are stored."""

    def seen_from(self, offset: int) -> Self:
        """See `Batches`."""
        return replace(self, offset=offset)

    def __call__(self, step: int, positions: range) -> Batch:
        """x_1, shape (len(positions), C, H, W), and its condition: labels and, where pictures are augmented, how."""
        pixels, labels, _ = self._stored(step, positions)
        pixels = shake(pixels, self.seed, step, positions, self.flip, self.window)
        x_1, cond = self._batch(pixels, labels)
        if self.augment == 0:
            return x_1, cond
        x_1, numbers = augmented(x_1, self.seed, step, positions, self.augment)
        return x_1, Condition(cond.label, numbers)

    def held_out(self, count: int) -> Batch:
        """Pictures that no step sees: the first `count` of those held out, or all of them."""
        pixels, labels, _ = self._apart(count)
        return self._batch(middle(pixels, self.window), labels)

    def _batch(self, pixels: Tensor, labels: Tensor | None) -> Batch:
        cond = Condition(None if labels is None else to_device(labels, self.device))
        return self.space.encode(to_device(pixels, self.device)), cond


@dataclass
class ImageBatches(PictureBatches):
    """Decoded images in the keyed order of each epoch; see `PictureBatches`.

    `images` are all of the data, on `device` or in this machine's memory; `apart` (H,) are the rows that are held out.
    """

    images: Images
    apart: Tensor
    fingerprint: str | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # the i-th learned picture is row i + (number of held-out rows before it): nothing of size N is stored
        self._gaps = self.apart - torch.arange(len(self.apart))
        self.size = len(self.images.pixels) - len(self.apart)
        # With CUDA nothing is ready: noise is drawn on the host, which is busy enough with sending the GPU its
        # operations. Metal may crash where two threads use it: there pictures in its memory are looked up by the loop.
        self.ready = self.images.pixels.device.type == self.device.type != "cuda"

    def _stored(self, step: int, positions: range) -> Images:
        return self._take(self._rows(step, positions))

    def _apart(self, count: int) -> Images:
        return self._take(self.apart[:count])

    def _take(self, rows: Tensor) -> Images:
        return self.images.take(to_device(rows, self.images.pixels.device))

    def rows(self, step: int, positions: range) -> list[int]:
        """Which rows of the data set a step sees at these positions."""
        return self._rows(step, positions).tolist()

    def _rows(self, step: int, positions: range) -> Tensor:
        return self._learned(sample_indices(self.seed, step, positions, self.batch_size, self.size, self.offset))

    def _learned(self, index: Tensor) -> Tensor:
        return index + torch.searchsorted(self._gaps, index, right=True)

    def some(self, count: int) -> Images:
        """At most `count` of the pictures to learn from, without random changes.

        Evenly spread over the source: in a folder a class, the first ones might be of one class.
        """
        images = self._take(self._learned(evenly(self.size, count)))
        return images._replace(pixels=middle(images.pixels, self.window))


def shake(pixels: Tensor, seed: int, step: int, positions: range, flip: bool, window: tuple[int, int] | None) -> Tensor:
    """Random windows and flips of pictures, functions of (seed, step, position) only.

    Args:
        pixels: Shape (B, C, H, W), uint8.
        seed: Seed of the run.
        step: Optimiser step.
        positions: Their positions in the global batch.
        flip: Flip half of them left to right.
        window: Cut a window of this height and width out of each; None keeps all of it.
    """
    if window is not None:
        most = torch.tensor([side - cut + 1 for side, cut in zip(pixels.shape[-2:], window, strict=True)])
        corners = (randomness.uniform(seed, "window", step, positions, (2,)) * most).long()
        corners = to_device(corners, pixels.device)
        tall, wide = (torch.arange(side, device=pixels.device) for side in window)
        down, across = corners[:, :1] + tall, corners[:, 1:] + wide
        pixels = pixels.gather(2, down[:, None, :, None].expand(-1, pixels.shape[1], -1, pixels.shape[3]))
        pixels = pixels.gather(3, across[:, None, None, :].expand(-1, pixels.shape[1], window[0], -1))
    if flip:
        flipped = randomness.uniform(seed, "flip", step, positions) < 0.5
        both = torch.arange(len(pixels)) + len(pixels) * flipped
        pixels = torch.cat([pixels, pixels.flip(-1)]).index_select(0, to_device(both, pixels.device))
    return pixels


def evenly(size: int, most: int) -> Tensor:
    """The indices 0 .. size - 1, or `most` of them, evenly spread."""
    count = min(size, most)
    return torch.arange(count) * size // count


def middle(pixels: Tensor, window: tuple[int, int] | None) -> Tensor:
    """The middle windows of this height and width; with None the pictures as they are."""
    if window is None:
        return pixels
    top, left = ((side - cut) // 2 for side, cut in zip(pixels.shape[-2:], window, strict=True))
    return pixels[..., top : top + window[0], left : left + window[1]]


def to_device(some: Tensor, device: torch.device) -> Tensor:
    """Pixels (as bytes, a quarter of the floats), labels or rows on a device, without waiting for it."""
    if some.device.type == device.type:
        return some
    return (some.pin_memory() if device.type == "cuda" else some).to(device, non_blocking=True)
