"""Grids of samples of several shapes."""

import numpy as np
import torch
from PIL import Image

from flowimg.figures.samples import Samples, draw_portions
from flowimg.flow.condition import Condition
from flowimg.spaces.pixels import GAP, Pixels


def test_shapes_are_enlarged_alike_and_a_single_picture_has_its_gap(tmp_path):
    """The picture of 48 pixels was drawn half as large as the others, and a single one touched the next grid."""
    black = [((24, 48), 1), ((48, 24), 4)]
    parts = [Samples(Pixels((1, *shape)), torch.full((count, 1, *shape), -1.0), Condition()) for shape, count in black]
    draw_portions(parts, tmp_path / "all.png")
    dark = np.array(Image.open(tmp_path / "all.png").convert("L")) == 0
    assert [tuple(np.argwhere(dark).min(0)), dark.sum()] == [(GAP, GAP), 4 * (5 * 24 * 48)]
    rows = dark.any(1)
    assert list(np.flatnonzero(rows[1:] != rows[:-1]) + 1) == [4, 52, 60, 156, 160, 256]
