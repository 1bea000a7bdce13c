"""Pictures as pixels: grey levels 0 .. L - 1 are x in [-1, 1].

    x = k / h - 1,    h = (L - 1) / 2

so 0 is -1 and L - 1 is 1; decoding rounds to the nearest level, as diffusers' pipelines do, and clips.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from flowimg.spaces.space import Space

TILE = 48
"""Small pictures are enlarged by a whole factor until a tile of a grid is at least this wide."""
GAP = 4
"""Pixels between and around the pictures of a grid."""
MAX_PIXELS = 178_956_970
"""Pixels of a grid at most: Pillow, and what is built on it, opens no larger picture unasked."""


@dataclass(frozen=True)
class Pixels(Space):
    """Pictures of one shape, stored as uint8.

    Args:
        shape: Channels (1 or 3), height and width.
    """

    shape: tuple[int, ...]
    levels: ClassVar[int] = 256
    at_once: ClassVar[int] = 250
    in_a_figure: ClassVar[int] = 400
    formats: ClassVar[tuple[str, ...]] = ("png", "npz", "npy", "parquet")

    @property
    def fits_a_figure(self) -> int:
        """The most pictures whose square grid has at most `MAX_PIXELS`; one always fits."""
        _, height, width = self.shape
        factor = _enlarged(width)
        side = math.isqrt(MAX_PIXELS // ((factor * height + GAP) * (factor * width + GAP)))
        while side > 1 and not self.fits(side**2):  # the gap at the edge is one more
            side -= 1
        return max(side, 1) ** 2

    def fits(self, count: int, columns: int | None = None) -> bool:
        """Whether a grid of N pictures has at most `MAX_PIXELS`; one picture always fits."""
        return count == 1 or self.grid_pixels(count, columns) <= MAX_PIXELS

    def grid_pixels(self, count: int, columns: int | None = None) -> int:
        """The number of pixels of a grid of N pictures."""
        _, height, width = self.shape
        factor, (rows, columns) = _enlarged(width), _laid_out(count, columns)
        gap = 0 if count == 1 else GAP
        return (rows * (factor * height + gap) + gap) * (columns * (factor * width + gap) + gap)

    @property
    def half(self) -> float:
        """Grey levels per unit of x."""
        return (self.levels - 1) / 2

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pixels (B, C, H, W), uint8, as floats in [-1, 1]; the same bits on every device."""
        # a GPU would multiply by the reciprocal of a Python number, which rounds differently
        half = self.half if stored.device.type == "cpu" else torch.full((), self.half, device=stored.device)
        return stored.float().div_(half).sub_(1)

    def decode(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] as uint8; values outside are clipped."""
        return ((x / 2 + 0.5).clamp(0, 1) * (self.levels - 1)).round().to(torch.uint8)

    def dequantise(self, x: Tensor, u: Tensor) -> Tensor:
        """Encoded pictures spread over the width of their grey level; u uniform in [0, 1), shape of x."""
        return x + (u - 0.5) / self.half

    def rows(self, x: Tensor) -> Tensor:
        """Pictures, shape (B, H, W, C), uint8."""
        return rearrange(self.decode(x), "n c h w -> n h w c")

    def of_rows(self, rows: Tensor) -> Tensor:
        """Pictures (B, H, W, C), uint8, in [-1, 1]."""
        return self.encode(rearrange(rows, "n h w c -> n c h w"))

    def grid(self, x: Tensor, columns: int | None = None) -> Tensor | None:
        """Pictures in [-1, 1] in one, row by row; by default about square."""
        return tiled(self.decode(x), columns)


def unit(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1], from uint8 or as they are: for what compares pictures of both kinds."""
    return Pixels(()).encode(pictures) if pictures.dtype == torch.uint8 else pictures


def tiled(pixels: Tensor, columns: int | None = None) -> Tensor:
    """Pictures in one, row by row, with a white gap; a single one fills it.

    Args:
        pixels: Shape (N, C, H, W), uint8, C 1 or 3.
        columns: Pictures a row; by default the grid is about square.

    Returns:
        Shape (H', W', 3), uint8.
    """
    count, factor = len(pixels), _enlarged(pixels.shape[-1])
    rows, columns = _laid_out(count, columns)
    # whole pixels repeated, not blurred: what is seen is what was drawn
    large = pixels.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2).expand(-1, 3, -1, -1)
    if count == 1:
        return rearrange(large[0], "c h w -> h w c")
    white = large.new_full((rows * columns - count, *large.shape[1:]), 255)
    boxes = pad(torch.cat([large, white]), (GAP, 0, GAP, 0), value=255)
    whole = rearrange(boxes, "(r k) c h w -> (r h) (k w) c", k=columns)
    return pad(whole, (0, 0, 0, GAP, 0, GAP), value=255)


def _enlarged(width: int) -> int:
    """By how much a picture of this width is enlarged in a grid."""
    return math.ceil(TILE / width)


def _laid_out(count: int, columns: int | None) -> tuple[int, int]:
    """Rows and columns of a grid; by default it is about square."""
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    return math.ceil(count / columns), columns
