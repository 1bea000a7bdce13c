"""Batches of x_1: which data an optimiser step sees at which place of its global batch.

Both kinds answer `(step, places) -> (x_1, labels)` and are functions of (seed, step, places) alone; nobody after them
asks whether they hold points or images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowimg.data.order import sample_indices
from flowimg.data.store import Images, to_unit
from flowimg.data.toys import Toy
from flowimg.flow import randomness


@dataclass(frozen=True)
class PointBatches:
    """Fresh points of a toy at every step; labels are their parts."""

    toy: Toy
    labels: bool
    seed: int
    device: torch.device
    fingerprint: str | None = None

    def __call__(self, step: int, places: range) -> tuple[Tensor, Tensor | None]:
        """x_1, shape (len(places), 2), and labels, shape (len(places),), or None."""
        return self._points(self.seed, "data", step, places)

    def held_out(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Points that no step sees, the same whatever the seed of the run."""
        return self._points(0, "held out", 0, range(count))

    def rows(self, step: int, places: range) -> None:
        """Points are no rows of anything."""

    def _points(self, seed: int, purpose: str, step: int, places: range) -> tuple[Tensor, Tensor | None]:
        x_1 = self.toy.sample(randomness.uniform(seed, purpose, step, places, (3,))).to(self.device, non_blocking=True)
        return x_1, self.toy.part(x_1) if self.labels else None


@dataclass(frozen=True)
class ImageBatches:
    """Images in the keyed order of each epoch, scaled to [-1, 1], flipped left to right at random where asked.

    `learned` are the rows of the data set that `images` are, `offset` the samples seen before step 0, so to say, in a
    run whose batch was changed on the way, `fingerprint` the name of all pictures.
    """

    images: Images
    kept_apart: Images
    flip: bool
    seed: int
    batch_size: int
    learned: Tensor | None = None
    offset: int = 0
    fingerprint: str | None = None

    def __call__(self, step: int, places: range) -> tuple[Tensor, Tensor | None]:
        """x_1, shape (len(places), C, H, W), and labels, shape (len(places),), or None; on the pictures' device."""
        pixels, labels, _ = self.images
        index = self._index(step, places).to(pixels.device, non_blocking=True)
        x_1 = to_unit(pixels[index])
        if self.flip:
            flipped = randomness.uniform(self.seed, "flip", step, places) < 0.5
            x_1 = torch.where(flipped.to(pixels.device, non_blocking=True)[:, None, None, None], x_1.flip(-1), x_1)
        return x_1, None if labels is None else labels[index]

    def rows(self, step: int, places: range) -> list[int] | None:
        """Which rows of the data set a step sees at these places, where that is known."""
        return None if self.learned is None else self.learned[self._index(step, places)].tolist()

    def _index(self, step: int, places: range) -> Tensor:
        return sample_indices(self.seed, step, places, self.batch_size, len(self.images.pixels), self.offset)

    def held_out(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Images that no step sees: the first `count` of those kept apart, or all of them."""
        labels = self.kept_apart.labels
        return to_unit(self.kept_apart.pixels[:count]), None if labels is None else labels[:count]
