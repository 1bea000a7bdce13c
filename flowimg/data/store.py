"""Images decoded once: one uint8 tensor in memory, and the labels that go with it."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.data.order import permute
from flowimg.flow.randomness import key


class Images(NamedTuple):
    """A data set in memory: pixels (N, C, H, W), uint8; labels (N,), int64, or None; the names of the classes."""

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]

    def take(self, index: Tensor) -> "Images":
        """The pictures at these indices, in this order."""
        return Images(self.pixels[index], None if self.labels is None else self.labels[index], self.classes)

    def to(self, device: torch.device) -> "Images":
        """The same on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels, self.classes)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels to floats in [-1, 1]: 0 is -1, 255 is 1."""
    return pixels.float() / 127.5 - 1


def fingerprint(images: Images) -> str:
    """A name of these very pixels and labels: the first 16 digits of a SHA-256."""
    found = hashlib.sha256(repr((tuple(images.pixels.shape), images.classes)).encode())
    for tensor in (images.pixels, images.labels):
        if tensor is not None:
            found.update(tensor.cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


def hold_out(images: Images, count: int) -> tuple[Images, Images, Tensor]:
    """Images to train on, `count` others kept apart, the same whatever the seed of the run; the rows of the first."""
    n = len(images.pixels)
    order = permute(torch.arange(n).numpy().astype("uint64"), n, key("held out"))
    index = torch.from_numpy(order.astype("int64"))
    rows = index[count:].sort().values
    return images.take(rows), images.take(index[:count].sort().values), rows
