"""Curves of quality: what is on them, and that nothing is cut off."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from flowimg.figures import quality
from flowimg.figures.quality import guidance_figure, nfe_figure

SOLVERS = ("euler", "midpoint", "heun", "rk4", "ab2")


@pytest.fixture
def drawn(monkeypatch):
    """The panels of the figures that are drawn, with their words, before they are written."""
    seen = []
    original = quality.drawing

    class Watched:
        def __init__(self, *args, **options):
            self.inner = original(*args, **options)

        def __enter__(self):
            figure, panels = self.inner.__enter__()
            seen.append((figure, np.atleast_1d(panels).ravel()))
            return figure, panels

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    monkeypatch.setattr(quality, "drawing", Watched)
    return seen


@pytest.mark.parametrize("grids", [("uniform",), ("uniform", "edm", "uniform, shift 2")])
def test_evaluations_have_a_panel_a_grid_and_a_line_a_solver(tmp_path, drawn, grids):
    lines = {(s, g): [(5, 3.0), (10, 2.5), (20, 2.1 + n)] for n, s in enumerate(SOLVERS) for g in grids}
    nfe_figure(lines, 2.0, "FD@1,000", tmp_path / "nfe.png")
    ((figure, panels),) = drawn
    assert len(panels) == len(grids)
    for axes, grid in zip(panels, grids, strict=True):
        assert grid in axes.get_title(loc="left")
        assert [line.get_label() for line in axes.lines] == list(SOLVERS)
        assert axes.lines[1].get_ydata().tolist() == [3.0, 2.5, 3.1]
    renderer = matplotlib.backends.backend_agg.FigureCanvasAgg(figure).get_renderer()
    whole = figure.bbox
    for words in (figure._suptitle, *figure.legends):
        box = words.get_window_extent(renderer)
        assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1, "cut off"
    assert Image.open(tmp_path / "nfe.png").width > 700


def test_guidance_draws_shares_and_the_distance(tmp_path, drawn):
    rows = [
        {"scale": 1, "agreement": 0.9, "precision": 0.8, "coverage": 0.5, "score": 3.0},
        {"scale": 3, "agreement": 1.0, "precision": 0.9, "coverage": 0.3, "score": 4.0},
    ]
    guidance_figure(rows, 0.95, "FD@1,000", tmp_path / "guidance.png")
    ((_, (left, right)),) = drawn
    found = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert found["agreement with the label"] == [0.9, 1.0] and found["coverage of the data"] == [0.5, 0.3]
    assert found["accuracy of the classifier on real pictures"] == [0.95, 0.95]
    assert list(right.lines[0].get_xdata()) == [1, 3] and list(right.lines[0].get_ydata()) == [3.0, 4.0]
