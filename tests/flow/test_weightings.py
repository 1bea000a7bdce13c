from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from flowimg.build.flow import WEIGHTINGS, build_objective
from flowimg.flow.condition import Condition
from flowimg.flow.objectives import Draw
from flowimg.flow.paths import Linear
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

KINDS = [{"kind": kind} for kind in WEIGHTINGS] + [
    {"kind": "power", "a": 2.0, "b": 0.0},
    {"kind": "power", "a": 0.5, "b": 1.5},
]


def objective(**weighting):
    return build_objective(validate(Config, {"weighting": weighting}, "test"))


def at(t):
    return Draw(t, t, t, Condition())


def weights(t, **weighting):
    return objective(**weighting).weighted(torch.ones_like(t), at(t))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_mean_over_all_times_is_one(kind):
    def weight(t):
        return weights(torch.tensor([t], dtype=torch.float64), **kind).item()

    assert quad(weight, 0, 1)[0] == pytest.approx(1, abs=1e-7)


def test_cosmap_in_numbers():
    w = weights(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64), kind="cosmap")
    # 1 - 2t + 2t^2 is t^2 + (1 - t)^2
    np.testing.assert_allclose(w, 2 / np.pi / np.array([1, 0.0625 + 0.5625, 0.5, 1]), rtol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(a=st.floats(0, 10), b=st.floats(0, 10))
def test_power_is_the_beta_density(a, b):
    t = torch.linspace(0, 1, 21, dtype=torch.float64)[1:-1]
    np.testing.assert_allclose(weights(t, kind="power", a=a, b=b), stats.beta(a + 1, b + 1).pdf(t), rtol=1e-9)


def test_power_is_finite_at_both_ends():
    t = torch.tensor([0.0, 1.0])
    assert weights(t, kind="power").tolist() == [1, 1]
    assert weights(t, kind="power", b=2.0).tolist() == [3, 0]
    assert weights(t, kind="power", a=2.0).tolist() == [0, 3]


@pytest.mark.parametrize(("weighting", "guess"), [({"b": 2.0}, "data"), ({"a": 2.0}, "noise")])
def test_power_makes_of_the_velocitys_error_that_of_a_guess(weighting, guess):
    # a velocity says x_1 = x_t + (1 - t) v and x_0 = x_t - t v on the linear path
    x_0, x_1, t = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.rand(5).double()
    v = torch.randn(5, 3).double()
    x_t, s = Linear().sample(x_0, x_1, t).x_t, t[:, None]
    apart = (x_t + (1 - s) * v - x_1) if guess == "data" else (x_t - s * v - x_0)
    losses = replace(objective(kind="none"), path=Linear()).loss(lambda x, t, cond: v, Draw(x_0, x_1, t, Condition()))
    ours = objective(kind="power", **weighting).weighted(losses, at(t))
    torch.testing.assert_close(ours, 3 * apart.square().mean(1))


def test_without_a_weighting_the_losses_are_passed_on_untouched():
    losses, t = torch.randn(4), torch.rand(4)
    for ours in (objective(kind="none"), build_objective(Config())):
        assert ours.weighted(losses, at(t)) is losses and ours.weighting is None
