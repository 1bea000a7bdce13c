"""Scores of points against closed forms, and the gate: what it lets through and what it stops."""

import math

import numpy as np
import pytest
import torch
from exact import checkerboard
from scipy.optimize import linear_sum_assignment
from scipy.stats import truncnorm

from flowimg.data.toys import OFF, Checkerboard
from flowimg.evaluation.points import PointScores, failures, score_points, sliced_wasserstein
from flowimg.fields.mlp import MLPField
from flowimg.flow.randomness import generator
from flowimg.flow.solvers import EULER
from flowimg.flow.times import uniform_grid
from flowimg.sampling.sampler import Sampler


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- sliced Wasserstein ----------------------------------------------------------------------------------------------


def test_sw2_of_a_set_with_itself_in_any_order_is_zero():
    x = normal(500, 2)
    assert sliced_wasserstein(x, x.flip(0)) == 0


@pytest.mark.parametrize("dim", [2, 3])
def test_sw2_of_translations_along_the_axes_add_up_to_one(dim):
    # along a direction w, a set moved by d is moved by <d, w>, order kept: sw2^2 = mean_w <d, w>^2, and over the axes
    # that adds up to mean_w |w|^2 = 1, whatever the directions
    x = normal(200, dim)
    squares = [sliced_wasserstein(x + axis, x, directions=7) ** 2 for axis in torch.eye(dim)]
    assert sum(squares) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_sw2_of_a_translation_is_its_length_over_the_root_of_the_dimensions(dim):
    x, d = normal(50, dim), normal(dim, seed=1)
    # mean_w <d, w>^2 = |d|^2 / D over uniform directions; for 20,000 of them to 2 % or better
    assert sliced_wasserstein(x, x + d, 20_000) == pytest.approx(float(d.norm()) / math.sqrt(dim), rel=0.02)


def test_sw2_of_a_set_scaled_about_the_origin():
    # sort(<c x, w>) = c sort(<x, w>): the distance is (c - 1) times the root mean square of <x, w>
    x = normal(100, 2)
    rms = float(x.square().sum(1).mean() / 2) ** 0.5  # over all directions
    assert sliced_wasserstein(x, 3 * x, 20_000) == pytest.approx(2 * rms, rel=0.02)


def test_sw2_is_symmetric_scales_with_its_sets_and_sees_no_common_translation():
    x, y = normal(300, 2), 2 * normal(300, 2, seed=1) + 1
    d = sliced_wasserstein(x, y)
    assert d > 0.5
    assert sliced_wasserstein(y, x) == pytest.approx(d, rel=1e-12)
    assert sliced_wasserstein(5 * x, 5 * y) == pytest.approx(5 * d, rel=1e-5)
    assert sliced_wasserstein(x + 7, y + 7) == pytest.approx(d, rel=1e-5)


def test_sw2_on_a_line_is_the_cost_of_the_best_assignment():
    x, y = normal(80, 1), 3 * normal(80, 1, seed=1)
    cost = (x - y.T).square().numpy()
    assert sliced_wasserstein(x, y) == pytest.approx(math.sqrt(cost[linear_sum_assignment(cost)].mean()), rel=1e-5)


def test_sw2_refuses_sets_of_different_size():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2))


# --- scores ----------------------------------------------------------------------------------------------------------

BOARD = Checkerboard(cells=2)  # its two cells are [-h, 0]^2 and [0, h]^2 with h = 4.4
FRESH = torch.tensor([[-2.0, -2.0], [1.0, 1.0]] * 5)


def score(points):
    x = torch.tensor(points)
    return score_points(x, FRESH[: len(x)], BOARD.part(x), BOARD.parts)


def test_scores_of_samples_made_by_hand():
    scores = score([[-1.0, -1.0]] * 6 + [[1.0, 1.0]] * 2 + [[1.0, -1.0], [9.0, 9.0]])
    assert scores.off == pytest.approx(0.2)
    assert scores.mass == pytest.approx([0.75, 0.25])
    assert scores.mass_ratio == pytest.approx(3)
    assert 0 < scores.sw2 < 10
    assert score(FRESH.tolist()) == PointScores(0, [0.5, 0.5], 1, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("both", [True, False])
def test_samples_that_are_not_finite_count_as_off(bad, both):
    scores = score([[-1.0, -1.0], [1.0, 1.0], [bad, bad if both else 1.0], [bad, -1.0]])
    assert scores.off == pytest.approx(0.5)
    assert scores.mass == pytest.approx([0.5, 0.5])
    assert scores.mass_ratio == 1
    assert scores.sw2 == float("inf")
    # even if a toy should give them a part
    x = torch.tensor([[bad, 1.0], [1.0, 1.0]])
    assert score_points(x, FRESH[:2], torch.tensor([0, 1]), 2).off == 0.5


def test_an_empty_part_makes_the_mass_ratio_infinite():
    assert score([[1.0, 1.0]] * 4).mass_ratio == float("inf")
    nowhere = score([[1.0, -1.0]] * 4)
    assert (nowhere.off, nowhere.mass, nowhere.mass_ratio) == (1, [0, 0], float("inf"))


def test_off_is_what_the_toy_calls_off():
    assert score_points(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([OFF, 0]), 1).off == 0.5


def test_a_limit_breaks_only_above_it_and_none_allows_everything():
    scores = PointScores(off=0.1, mass=[0.5, 0.5], mass_ratio=1.5, sw2=0.25)
    assert failures(scores, None, None, None) == []
    assert failures(scores, 0.1, 0.25, 1.5) == []
    assert failures(scores, 0.09, None, None) == ["share off the support is 0.1, more than 0.09"]
    assert failures(scores, None, 0.2, None) == ["sliced Wasserstein-2 is 0.25, more than 0.2"]
    assert failures(scores, None, None, 1.2) == ["fullest part over emptiest is 1.5, more than 1.2"]
    assert len(failures(scores, 0.0, 0.0, 0.0)) == 3


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_break_every_limit(worst):
    assert len(failures(PointScores(worst, [], worst, worst), 1e9, 1e9, 1e9)) == 3


# --- the exact field, against other truths ---------------------------------------------------------------------------

HALF = 2 / 0.45


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_exact_mean_is_what_monte_carlo_finds(t):
    rng = np.random.default_rng(0)
    x_1 = rng.uniform(-HALF, HALF, (1_000_000, 2))
    filled = np.floor((x_1 + HALF) / (HALF / 2)).astype(int).sum(1) % 2 == 0
    x_1 = x_1[filled]
    points = np.array([[0.3, -0.2], [1.0, 1.5], [-2.0, 0.1]])
    exact = checkerboard().mean_x_1(torch.from_numpy(points), t).numpy()
    for x_t, mean in zip(points, exact, strict=True):
        # x_t given x_1 is N(t x_1, (1 - t)^2): the data, weighted by that
        weight = np.exp(-((x_t - t * x_1) ** 2).sum(1) / (2 * (1 - t) ** 2))
        weight /= weight.sum()
        found = weight @ x_1
        error = np.sqrt((weight**2) @ (x_1 - found) ** 2)
        assert (error < 0.02).all()
        assert (abs(found - mean) < 4.5 * error).all()


@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("x", [0.0, 3.0, -20.0])
def test_the_exact_mean_on_one_square_is_that_of_truncated_gaussians(x, t):
    one = checkerboard(cells=1, half=1.5)
    centre, std = x / t, (1 - t) / t
    with np.errstate(invalid="ignore"):  # of its skewness, which nobody asked for
        wanted = centre + std * truncnorm.mean((-1.5 - centre) / std, (1.5 - centre) / std)
    found = one.mean_x_1(torch.tensor([[x, -x]]), t)
    assert found[0].tolist() == pytest.approx([wanted, -wanted], abs=1e-7)


def test_the_exact_mean_near_noise_is_that_of_the_covariance_of_the_data():
    # E[x_1 | x_t] = E[x_1] + t Cov(x_1) x_t + O(t^2): within the cells and between their centres, by hand
    x, board, side = normal(50, 2), checkerboard(), HALF / 2
    columns, rows = [0, 0, 1, 1, 2, 2, 3, 3], [0, 2, 1, 3, 0, 2, 1, 3]
    centres = (torch.tensor([columns, rows], dtype=torch.float64) - 1.5) * side
    covariance = centres @ centres.T / 8 + torch.eye(2) * side**2 / 12
    assert torch.allclose(board(x, torch.zeros(50)), -x)  # E[x_1] = 0
    assert torch.allclose(board.mean_x_1(x, 1e-4) / 1e-4, x.double() @ covariance, rtol=1e-3, atol=1e-3)


def test_the_exact_mean_near_the_data_is_the_data_and_nothing_overflows():
    x, board = normal(50, 2), checkerboard()
    fresh = Checkerboard(4).sample(torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)))
    assert (board.mean_x_1(fresh * 0.99, 0.99) - fresh).norm(dim=1).max() < 0.05
    far = 100 * x  # nothing of it overflows
    assert board.mean_x_1(far, 0.999).abs().max() < HALF + 1e-2  # 100,000 standard deviations away
    assert board.mean_x_1(far, 1e-6).isfinite().all()


# --- the gate --------------------------------------------------------------------------------------------------------

LIMITS = {"max_off": 0.07, "max_sw2": 0.06, "max_ratio": 1.2}
"""What CI asks of the checkerboard, of 20,000 samples in 100 Euler steps."""
NAMES = {"off": "share off the support", "sw2": "sliced Wasserstein-2", "mass": "fullest part over emptiest"}


def broken_limits(velocity, count):
    """The limits that the samples of a velocity break."""
    samples = Sampler(velocity, (2,), EULER, uniform_grid(100), batch_size=2500).draw(range(count)).x_1
    toy = Checkerboard(4)
    fresh = toy.sample(torch.rand(count, 3, generator=generator("evaluation")))
    scores = score_points(samples, fresh, toy.part(samples), toy.parts)
    return {short for short, name in NAMES.items() for line in failures(scores, **LIMITS) if line.startswith(name)}


def test_the_gate_lets_the_exact_field_through():
    assert broken_limits(checkerboard(), 5000) == set()


def test_the_gate_stops_an_untrained_field():
    # it stands still: noise is over the middle of the board, half of it on empty cells
    assert broken_limits(MLPField(2), 2000) == {"off", "sw2", "mass"}


def test_the_gate_stops_a_field_with_its_sign_flipped():
    board = checkerboard()
    assert broken_limits(lambda x, t, cond: -board(x, t), 2000) == {"off", "sw2", "mass"}


def test_the_gate_stops_a_field_with_its_time_reversed():
    board = checkerboard()
    assert broken_limits(lambda x, t, cond: board(x, 1 - t), 2000) == {"off", "sw2", "mass"}


def test_the_gate_stops_a_field_that_leaves_out_a_cell():
    # every sample is on the support, and one cell in eight is empty: the mass tells
    board = checkerboard()
    seven = type(board)(board.columns[:-1], board.rows[:-1], board.cells, board.half)
    assert "mass" in broken_limits(seven, 2000)
