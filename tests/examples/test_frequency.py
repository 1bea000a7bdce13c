"""The pictures of the frequency experiment."""

import numpy as np
import pytest
import torch
from frequency import figures
from PIL import Image


def test_labels_keep_apart_and_in_order():
    heights = [10.0, 10.5, 50.0, 9.0]
    placed = figures._apart(heights, 3)
    assert np.argsort(placed).tolist() == np.argsort(heights).tolist()
    assert (np.diff(np.sort(placed)) >= 3 - 1e-9).all()
    assert figures._apart([1.0, 20.0], 3) == [1.0, 20.0]


def test_lines_are_drawn_for_any_boards(tmp_path):
    for cells in ([2], [2, 4, 8, 16]):
        lines = [figures.Line("plain", 1, [0.1] * len(cells)), figures.Line("best", 4, [0.02] * len(cells))]
        figures.frequency_figure(lines, cells, tmp_path / "f.png")
        assert Image.open(tmp_path / "f.png").size == (1200, 750)


@pytest.mark.parametrize("off", [0.0, 0.5, 1.0])
def test_what_is_off_the_board_is_black(off, tmp_path):
    points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    mask = torch.arange(400) < 400 * off
    figures.boards_figure({"data": [(points, mask)], "plain": [(points, mask)]}, [2], 2.0, tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB"), dtype=int)
    panel = pixels[420:620, 120:300]  # inside the second board
    black = (panel.sum(2) < 150).mean()
    orange = ((panel[..., 0] > 180) & (panel[..., 2] < 80)).mean()
    assert (black > 0.005) == (off > 0) and (orange > 0.005) == (off < 1)
