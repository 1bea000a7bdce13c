"""Pictures as pixels: the numbers from black to white are x in [-1, 1].

    x = (k - low) / h - 1,    h = (high - low) / 2

of grey levels 0 .. L - 1, 0 is -1 and L - 1 is 1. Decoding rounds to the nearest level, as diffusers' pipelines do, and
clips. What people look at has 8 bits and one or three channels, whatever is stored: see `Pixels.shown`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from flowimg.spaces.depth import BYTES, Depth
from flowimg.spaces.formats import from_file, to_file
from flowimg.spaces.space import Space

TILE = 48
"""Small pictures are enlarged by a whole factor until a tile of a grid is at least this wide."""
GAP = 4
"""Pixels between and around the pictures of a grid."""
MAX_PIXELS = 178_956_970
"""Pixels of a grid at most: Pillow, and what is built on it, opens no larger picture unasked."""
SQUARES = 8
"""Squares of light grey and white behind a transparent picture, along its shorter side."""


@dataclass(frozen=True)
class Pixels(Space):
    """Pictures of one shape.

    Args:
        shape: Channels, height and width.
        depth: How their numbers are stored.
        alpha: The last of four channels says how opaque a pixel is: 1 is opaque.
    """

    shape: tuple[int, ...]
    depth: Depth = BYTES
    alpha: bool = False
    at_once: ClassVar[int] = 250
    in_a_figure: ClassVar[int] = 400

    @property
    def levels(self) -> int | None:
        """Grey levels."""
        return self.depth.levels

    @property
    def words(self) -> str:
        """The kind of pictures, as people say it."""
        channels = self.shape[0]
        kind = {1: "grey pictures", 3: "RGB pictures"}.get(channels, f"pictures of {channels} channels")
        return f"{'RGBA pictures' if self.alpha else kind} of {self.depth.words}"

    @property
    def formats(self) -> tuple[str, ...]:
        """A PNG holds grey, RGB and RGBA pictures of 8 or 16 bits; a TIFF holds all."""
        usual = self.depth.whole and (self.shape[0] in (1, 3) or self.alpha)
        return (*(("png",) if usual else ()), "tiff", "npz", "npy", "parquet")

    @property
    def fits_a_figure(self) -> int:
        """The most pictures whose square grid has at most `MAX_PIXELS`; one always fits."""
        height, width = self._shown_shape
        factor = _enlarged(self.shape[2])
        side = math.isqrt(MAX_PIXELS // ((factor * height + GAP) * (factor * width + GAP)))
        while side > 1 and not self.fits(side**2):  # the gap at the edge is one more
            side -= 1
        return max(side, 1) ** 2

    def fits(self, count: int, columns: int | None = None) -> bool:
        """Whether a grid of N pictures has at most `MAX_PIXELS`; one picture always fits."""
        return count == 1 or self.grid_pixels(count, columns) <= MAX_PIXELS

    def grid_pixels(self, count: int, columns: int | None = None) -> int:
        """The number of pixels of a grid of N pictures."""
        height, width = self._shown_shape
        factor, (rows, columns) = _enlarged(self.shape[2]), _laid_out(count, columns)
        gap = 0 if count == 1 else GAP
        return (rows * (factor * height + gap) + gap) * (columns * (factor * width + gap) + gap)

    @property
    def half(self) -> float:
        """Stored numbers per unit of x."""
        return (self.depth.high - self.depth.low) / 2

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored pictures (B, C, H, W) as floats in [-1, 1]; the same bits on every device."""
        # a GPU would multiply by the reciprocal of a Python number, which rounds differently
        half = self.half if stored.device.type == "cpu" else torch.full((), self.half, device=stored.device)
        x = stored.float() if self.depth.low == 0 else stored.float() - self.depth.low
        return (x.div(half) if x is stored else x.div_(half)).sub_(1)

    def decode(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] as they are stored; values outside are clipped."""
        low, high, kind = self.depth.low, self.depth.high, getattr(torch, self.depth.type)
        numbers = (x / 2 + 0.5).clamp(0, 1) * (high - low)
        return ((numbers.round() if self.depth.whole else numbers) + low).to(kind)

    def dequantise(self, x: Tensor, u: Tensor) -> Tensor:
        """Encoded pictures spread over the width of their level, if they have levels; u in [0, 1), shape of x."""
        return x + (u - 0.5) / self.half if self.levels else x

    def rows(self, x: Tensor) -> Tensor:
        """Pictures as they are stored, shape (B, H, W, C)."""
        return rearrange(self.decode(x), "n c h w -> n h w c")

    def of_rows(self, rows: Tensor) -> Tensor:
        """Stored pictures (B, H, W, C), in [-1, 1]."""
        return self.encode(rearrange(rows, "n h w c -> n c h w"))

    def as_file(self, row: NDArray[Any], form: str) -> bytes:
        """A picture of `rows` as a PNG or TIFF, where alpha of floats goes from 0 to 1."""
        return to_file(self._with_alpha(row, self.depth.share), form, self.alpha)

    def of_file(self, content: bytes) -> NDArray[Any]:
        """The inverse of `as_file`."""
        return self._with_alpha(from_file(content), self.depth.at)

    def _with_alpha(self, row: NDArray[Any], change: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
        """A picture whose alpha is changed, if it has one of floats."""
        if not self.alpha or self.depth.whole:
            return row
        return np.concatenate([row[..., :3], change(row[..., 3:]).astype(row.dtype)], -1)

    def shown(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1] as people look at them, shape (*, C', H, W'), uint8, C' 1 or 3.

        Transparent ones lie over squares of light grey and white. Of those with two, four or more channels, each
        channel is a grey picture, and they stand side by side.
        """
        pixels = AS_BYTES.decode(x)
        if self.alpha:
            return _over_squares(pixels)
        return pixels if self.shape[0] in (1, 3) else _strip(pixels)

    def grid(self, x: Tensor, columns: int | None = None, width: int | None = None) -> Tensor | None:
        """Pictures in [-1, 1] in one, row by row; by default about square, and enlarged by their own width."""
        return tiled(self.shown(x), columns, width or self.shape[2])

    @property
    def _shown_shape(self) -> tuple[int, int]:
        """Height and width of a picture as it is shown."""
        channels, height, width = self.shape
        return height, width if channels in (1, 3) or self.alpha else channels * (width + 1) - 1


AS_BYTES = Pixels(())
"""Pictures of 8 bits, whatever their shape."""


def _over_squares(pixels: Tensor) -> Tensor:
    """RGBA pictures (*, 4, H, W), uint8, over squares of light grey and white: (*, 3, H, W)."""
    height, width = pixels.shape[-2:]
    side = max(1, min(height, width) // SQUARES)
    odd = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2
    behind, opaque = 255 - 51 * odd.float(), pixels[..., 3:, :, :].float() / 255
    return (pixels[..., :3, :, :] * opaque + behind.to(pixels.device) * (1 - opaque)).round().to(torch.uint8)


def _strip(pixels: Tensor) -> Tensor:
    """The channels of pictures (*, C, H, W), uint8, side by side with white lines between: (*, 1, H, C (W + 1) - 1)."""
    lined = pad(pixels, (0, 1), value=255)
    return rearrange(lined, "... c h w -> ... 1 h (c w)")[..., :-1]


def tiled(pixels: Tensor, columns: int | None = None, width: int | None = None) -> Tensor:
    """Pictures in one, row by row, with a white gap; a single one fills it.

    Args:
        pixels: Shape (N, C, H, W), uint8, C 1 or 3.
        columns: Pictures a row; by default the grid is about square.
        width: The width that is enlarged to `TILE` at least; by default that of the pictures.

    Returns:
        Shape (H', W', 3), uint8.
    """
    count, factor = len(pixels), _enlarged(width or pixels.shape[-1])
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
