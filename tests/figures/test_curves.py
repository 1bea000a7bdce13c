"""Curves: what is taken from the records, and that the irreducible loss is drawn where it is."""

import math

import matplotlib.axes
import numpy as np
import pytest
from PIL import Image

from flowimg.figures import curves
from flowimg.figures.curves import compare_figure, loss_by_t_figure, loss_figure, series, training_figure
from flowimg.flow.irreducible import Irreducible

IRREDUCIBLE = Irreducible(2.0, [3.0] * 9 + [math.nan], "irreducible loss")


def records(count=40):
    return [{"step": 0, "samples": 0, "held_out_loss_ema": 9.0}] + [
        {
            "step": 10 * n, "samples": 100 * n, "loss": 2 + 1 / n, "loss_by_t": [2 + 1 / n] * 9 + [None],
            "held_out_loss_ema": 3.0, "grad_norm": 1.0, "lr": 1e-3, "samples_per_second": 5e4 + n,
        }
        for n in range(1, count + 1)
    ]  # fmt: skip


def test_a_series_leaves_out_what_is_not_there():
    some = [{"step": 0}, {"step": 1, "loss": None}, {"step": 2, "loss": 0.0}, {"step": 3, "loss": 4.0}]
    assert series(some, "loss") == ([2, 3], [0.0, 4.0])
    assert series(some, "lr") == ([], [])


@pytest.fixture
def plotted(monkeypatch):
    """Everything that is plotted as a line: (x, y) by panel title, once drawn."""
    drawn = []
    real = matplotlib.axes.Axes.plot

    def plot(self, *args, **options):
        if len(args) >= 2:
            drawn.append((self, np.asarray(args[0], float), np.asarray(args[1], float)))
        return real(self, *args, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot)
    return lambda title: [(x, y) for axes, x, y in drawn if title in axes.get_title(loc="left")]


def test_what_is_left_to_learn_is_the_loss_above_the_irreducible_loss(plotted, tmp_path):
    loss_figure(records(), IRREDUCIBLE, tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").width == 1350
    (_, loss), (_, held_out) = plotted("training and held-out loss")
    assert list(loss) == [2 + 1 / n for n in range(1, 41)] and set(held_out) == {3.0}
    ((middle, above),) = plotted("reducible loss")
    assert len(above) == curves.GROUPS
    # means of neighbouring lines: 40 lines in 24 groups, the first of two
    assert middle[0] == 15 and above[0] == pytest.approx((1 + 1 / 2) / 2)
    assert above[-1] == pytest.approx(1 / 40)


@pytest.mark.parametrize(("count", "irreducible"), [(0, None), (1, IRREDUCIBLE), (3, None)])
def test_curves_of_the_first_steps_are_drawn_too(count, irreducible, tmp_path):
    loss_figure(records(count), irreducible, tmp_path / "loss.png")
    loss_by_t_figure(records(count), irreducible, tmp_path / "by_t.png")
    training_figure(records(count), tmp_path / "training.png")
    assert all((tmp_path / name).exists() for name in ("loss.png", "by_t.png", "training.png"))


def test_a_loss_that_is_not_finite_is_a_gap_and_no_failure(tmp_path):
    some = [*records(5), {"step": 60, "samples": 600, "loss": None, "loss_by_t": [None] * 10}]
    loss_figure(some, IRREDUCIBLE, tmp_path / "loss.png")
    loss_by_t_figure(some, IRREDUCIBLE, tmp_path / "by_t.png")


def test_the_loss_by_t_goes_from_the_first_line_to_the_last(plotted, tmp_path):
    loss_by_t_figure(records(), IRREDUCIBLE, tmp_path / "by_t.png")
    lines = plotted("loss over flow time")
    assert 4 <= len(lines) <= 6
    assert lines[0][1][0] == 3 and lines[-1][1][0] == 2 + 1 / 40
    assert np.allclose(lines[0][0], np.arange(0.05, 1, 0.1))


def test_runs_are_compared_over_the_samples_they_have_seen(plotted, tmp_path):
    compare_figure({"a": records(), "b": records(3)}, tmp_path / "compare.png")
    (a, _), (b, _) = plotted("gradient norm")
    assert a[-1] == 4000 and b[-1] == 300


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (0.005, "0.005"), (750, "750"), (120_000, "120k"), (2.5e6, "2.5M"), (-3e9, "-3G")]
)
def test_numbers_on_axes_are_short(value, said):
    assert curves._short(value) == said
