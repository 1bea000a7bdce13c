"""Tables of pictures: every pixel where it belongs, names beside them; grids that grow."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowimg.figures.pictures import EDGE, GAP, growth_animation, letters, picture_table
from flowimg.spaces.pixels import TILE


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 48, 60])
def test_a_table_holds_every_picture_at_its_row_and_column(channels, side, tmp_path):
    pixels = torch.randint(0, 200, (2, 3, channels, side, side), generator=torch.Generator().manual_seed(0)).byte()
    rows, columns = ["first row", "b"], ["0", "1", "2"]
    picture_table(pixels, rows, columns, tmp_path / "sub" / "table.png", "a table")
    sheet = np.array(Image.open(tmp_path / "sub" / "table.png").convert("RGB"))
    factor = -(-TILE // side)
    tile = side * factor
    left = 2 * EDGE + round(letters().getlength("first row"))
    top = sheet.shape[0] - EDGE - 2 * (tile + GAP)
    for row in range(2):
        for column in range(3):
            large = np.kron(pixels[row, column].numpy(), np.ones((1, factor, factor), np.uint8))
            down, right = top + row * (tile + GAP), left + column * (tile + GAP)
            assert (sheet[down : down + tile, right : right + tile] == np.moveaxis(large, 0, -1)).all()
    names = sheet[:, : left - EDGE]
    for row in range(2):  # a name stands beside each row, and in the middle of it
        down = top + row * (tile + GAP)
        inked = np.flatnonzero((names[down : down + tile] < 128).any(axis=(1, 2)))
        assert len(inked) and abs(inked.mean() - tile / 2) < 6
    assert (sheet[:EDGE] == 255).all() and (sheet[EDGE : top - 20] < 128).any()  # the title


def test_long_names_are_cut_and_long_titles_fit(tmp_path):
    pixels = torch.zeros(1, 2, 1, 48, 48, dtype=torch.uint8)
    picture_table(pixels, [""], ["an everlasting name", "ж"], tmp_path / "table.png", "a title " * 12)
    sheet = np.array(Image.open(tmp_path / "table.png").convert("L"))
    assert sheet.shape[1] > letters(18).getlength("a title " * 12)
    between = EDGE + 48, EDGE + 48 + GAP
    assert (sheet[:, between[0] : between[1]][40:] == 255).all()


def test_growth_has_a_frame_a_grid_in_order(tmp_path):
    grids = []
    for step, shade in ((0, 10), (50, 120), (1200, 240)):
        Image.new("RGB", (1800, 900), (shade, shade, shade)).save(tmp_path / f"{step}.png")
        grids.append((step, tmp_path / f"{step}.png"))
    growth_animation(grids, tmp_path / "growth.webp")
    with Image.open(tmp_path / "growth.webp") as film:
        assert film.n_frames == 3 and film.size[0] == 900
        for number, shade in enumerate((10, 120, 240)):
            film.seek(number)
            frame = np.array(film.convert("L"), dtype=int)
            assert abs(frame[-50, 400] - shade) < 10
            assert (frame[:30] < 100).any()  # the step is said
        assert film.size[1] > 450


def test_grids_of_another_size_do_not_break_the_growth(tmp_path):
    for step, side in ((0, 60), (1, 90)):  # the count was changed between two starts
        Image.new("RGB", (side, side), "red").save(tmp_path / f"{step}.png")
    growth_animation([(step, tmp_path / f"{step}.png") for step in (0, 1)], tmp_path / "growth.webp")
    with Image.open(tmp_path / "growth.webp") as film:
        assert film.n_frames == 2 and film.size[0] == 90
