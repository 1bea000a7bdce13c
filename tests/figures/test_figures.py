"""Figures: every pixel of a grid where it belongs, and points where they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowimg.figures.points import DATA, FLOW, points_figure
from flowimg.figures.samples import save_grid
from flowimg.spaces.pixels import TILE, Pixels

GAP = 4


def known(count, channels, side):
    return torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()


def image_grid(pixels, path, columns=None):
    space = Pixels(tuple(pixels.shape[1:]))
    save_grid(space, space.encode(pixels), path, columns)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 20, 48, 50])
@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(6, 3, (2, 3)), (5, 2, (3, 2)), (5, None, (2, 3)), (9, None, (3, 3))]
)
def test_a_grid_holds_every_picture_row_by_row_pixel_by_pixel(channels, side, count, columns, shape, tmp_path):
    pixels = known(count, channels, side)
    image_grid(pixels, tmp_path / "grid.png", columns)
    factor = -(-TILE // side)
    tile = side * factor
    assert tile >= TILE
    wanted = np.full((shape[0] * (tile + GAP) + GAP, shape[1] * (tile + GAP) + GAP, 3), 255, np.uint8)  # a white ground
    for i, picture in enumerate(pixels.numpy()):
        top, left = (GAP + place * (tile + GAP) for place in divmod(i, shape[1]))
        large = np.kron(picture, np.ones((1, factor, factor), np.uint8))
        wanted[top : top + tile, left : left + tile] = np.moveaxis(large, 0, -1)  # grey fills all three channels
    drawn = Image.open(tmp_path / "grid.png")
    assert drawn.format == "PNG"
    assert drawn.size == (wanted.shape[1], wanted.shape[0])
    assert (np.array(drawn) == wanted).all()


def test_one_picture_is_a_grid_too(tmp_path):
    pixels = known(1, 1, 8)
    image_grid(pixels, tmp_path / "grid.png")
    drawn = np.array(Image.open(tmp_path / "grid.png"))
    large = np.kron(pixels[0, 0].numpy(), np.ones((6, 6), np.uint8))
    edge = (drawn.shape[0] - 48) // 2  # alone it needs no gap around it
    assert (drawn[edge : edge + 48, edge : edge + 48, 0] == large).all()


def paint(path, colour, half):
    """The mean place, in shares of the half, of the pixels of about this colour in the left or right half of a PNG."""
    picture = np.array(Image.open(path).convert("RGB")).astype(int)
    width = picture.shape[1] // 2
    picture = picture[:, :width] if half == "left" else picture[:, width:]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    rows, columns = np.nonzero(abs(picture - [red, green, blue]).max(-1) < 60)
    return len(rows), rows.mean() / len(picture) if len(rows) else None, columns.mean() / width if len(rows) else None


def cluster(x, y):
    return torch.tensor([x, y]) + 0.3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))


def test_samples_are_drawn_left_and_data_right_each_where_it_is(tmp_path):
    points_figure(cluster(3.5, 0), cluster(0, -3.5), 4.5, tmp_path / "points.png", "ema at step 7")
    assert Image.open(tmp_path / "points.png").format == "PNG"
    many, row, column = paint(tmp_path / "points.png", FLOW, "left")
    assert many > 100
    assert 0.4 < row < 0.6  # in the middle
    assert column > 0.7  # right
    many, row, column = paint(tmp_path / "points.png", DATA, "right")
    assert many > 100
    assert row > 0.65  # down
    assert 0.4 < column < 0.65  # in the middle, but for the labels on the left
    assert paint(tmp_path / "points.png", FLOW, "right")[0] == paint(tmp_path / "points.png", DATA, "left")[0] == 0


@pytest.mark.parametrize("count", [1, 50_000])
def test_few_and_many_points_are_both_seen(count, tmp_path):
    points = 2 * torch.randn(count, 2, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    points_figure(points, points, 4.5, tmp_path / "points.png", "step 1")
    picture = np.array(Image.open(tmp_path / "points.png").convert("RGB")).astype(int)
    coloured = (picture.max(-1) - picture.min(-1)) > 60
    assert coloured.sum() >= 4
    assert coloured.mean() < 0.5


def test_samples_that_blew_up_do_not_stop_a_figure(tmp_path):
    bad = cluster(0, 0)
    bad[:5] = float("nan")
    bad[5:9] = 1e30
    bad[9] = float("inf")
    points_figure(bad, cluster(0, 0), 4.5, tmp_path / "points.png", "step 1")
    assert paint(tmp_path / "points.png", FLOW, "left")[0] > 100
