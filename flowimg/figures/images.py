"""Grids of pictures."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

TILE = 48
"""Small pictures are enlarged by a whole factor until a tile is at least this wide."""


def image_grid(pixels: Tensor, path: Path, columns: int | None = None) -> None:
    """Write pictures as one PNG, row by row.

    Args:
        pixels: Shape (N, C, H, W), uint8, C 1 or 3.
        path: The PNG's file.
        columns: Pictures a row; by default the grid is about square.
    """
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    factor = math.ceil(TILE / pixels.shape[-1])
    # whole pixels repeated, not blurred: what is seen is what was drawn
    large = pixels.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid = make_grid(large, nrow=columns, padding=4, pad_value=255)
    Image.fromarray(grid.permute(1, 2, 0).to(torch.uint8).numpy()).save(path)
