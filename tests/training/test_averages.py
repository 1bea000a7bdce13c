import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from flowimg.training.averages import (
    LENGTHS,
    Profile,
    combine,
    gamma_of,
    inner,
    length_of,
    make_ema,
    power_decay,
    snapshot_steps,
    update_ema,
)


@pytest.mark.parametrize("known", [float, torch.tensor], ids=["host", "device"])
def test_average_follows_the_closed_form(known):
    field = nn.Linear(3, 2)
    ema = make_ema(field)
    expected = [p.detach().double().clone() for p in field.parameters()]
    for decay in (0.1, 0.5, 0.9):
        with torch.no_grad():
            for p in field.parameters():
                p.copy_(torch.randn_like(p))
        update_ema(list(ema.parameters()), list(field.parameters()), decay, known(0.0))
        expected = [decay * e + (1 - decay) * p.double() for e, p in zip(expected, field.parameters(), strict=True)]
        update_ema(list(ema.parameters()), [p * math.nan for p in field.parameters()], decay, known(1.0))  # is held
    for average, truth in zip(ema.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), truth, rtol=1e-6, atol=1e-6)


def test_average_is_apart_from_the_field_and_never_trains():
    field = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    field.train()
    ema = make_ema(field)
    assert field.training and not ema.training
    assert not any(p.requires_grad for p in ema.parameters())
    before = [p.clone() for p in field.parameters()]
    update_ema(list(ema.parameters()), list(field.parameters()), 0.0, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(before, field.parameters(), strict=True))
    assert {p.data_ptr() for p in ema.parameters()}.isdisjoint({p.data_ptr() for p in field.parameters()})


# --- power averages --------------------------------------------------------------------------------------------------


def density(profile, tau):
    """The profile by its definition, at an array of times."""
    t, gamma = profile
    return np.where(tau <= t, (gamma + 1) * np.asarray(tau) ** gamma / t ** (gamma + 1), 0.0)


def shares(t, gamma):
    """What each of the steps 1 to t weighs in a power average: the integral of its profile over the step."""
    edges = (np.arange(t + 1) / t) ** (gamma + 1)
    return torch.from_numpy(np.diff(edges))


@pytest.mark.parametrize("length", [0.001, 0.02, 0.05, 0.1, 0.2, 0.28])
def test_a_length_is_the_deviation_of_its_profile(length):
    gamma = gamma_of(length)

    def moment(power):
        return quad(lambda tau: tau**power * float(density(Profile(1, gamma), tau)), 0, 1, epsabs=1e-14, limit=200)[0]

    assert gamma >= 0 and moment(0) == pytest.approx(1, abs=1e-9)
    assert math.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(length, rel=1e-6)


@given(st.floats(1e-4, 0.28))
def test_lengths_and_gammas_are_each_others_inverse(length):
    gamma = gamma_of(length)
    assert length_of(gamma) == pytest.approx(length, rel=1e-13)
    u = gamma + 2  # of the cubic; its rounding alone is left
    assert abs(length**2 * u**2 * (u + 1) - (u - 1)) <= 1e-10 * u


@pytest.mark.parametrize("length", [0, -0.1, 0.2801, 1, math.nan])
def test_no_average_has_another_length(length):
    with pytest.raises(ValueError, match="above 0 and at most"):
        gamma_of(length)


def followed(trajectory, gamma, held=(), known=torch.tensor):
    """The power average of a trajectory, shape (steps, n), as a run would keep it."""
    average = [torch.full_like(trajectory[0], 77.0)]  # forgotten at the first step
    for t, theta in enumerate(trajectory, 1):
        update_ema(average, [theta], power_decay(t, gamma), known(float(t in held)))
        yield average[0].clone()


@pytest.mark.parametrize("length", [0.05, 0.1, 0.2])
def test_a_power_average_weighs_each_step_by_its_profile(length):
    trajectory = torch.randn(150, 6, dtype=torch.float64).cumsum(0)
    gamma = gamma_of(length)
    for t, average in enumerate(followed(trajectory, gamma), 1):
        torch.testing.assert_close(average, shares(t, gamma) @ trajectory[:t], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("known", [float, torch.tensor], ids=["host", "device"])
def test_a_step_that_is_held_moves_no_average_and_counts(known):
    trajectory, gamma, held = torch.randn(40, 3, dtype=torch.float64), gamma_of(0.1), {5, 6, 31, 40}
    *_, average = followed(trajectory, gamma, held, known)
    kept = [0.0 if t in held else (1 - 1 / t) ** (gamma + 1) for t in range(1, 41)]
    weights = [
        0.0 if t in held else (1 - kept[t - 1]) * math.prod(kept[k - 1] for k in range(t + 1, 41) if k not in held)
        for t in range(1, 41)
    ]
    assert sum(weights) == pytest.approx(1)
    torch.testing.assert_close(average, torch.tensor(weights, dtype=torch.float64) @ trajectory)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_snapshots_are_spread_over_the_run_and_one_is_at_its_end(steps, snapshots):
    due = sorted(snapshot_steps(steps, snapshots))
    assert len(due) == min(steps, snapshots) and due[0] >= 1 and due[-1] == steps
    gaps = np.diff([0, *due])
    assert gaps.max() - gaps.min() <= 1


@given(st.floats(0.5, 9), st.floats(0, 20), st.floats(0.5, 9), st.floats(0, 20))
def test_the_product_of_two_profiles_is_its_integral(t, gamma, other_t, other_gamma):
    one, other = Profile(t, gamma), Profile(other_t, other_gamma)
    integral, _ = quad(lambda tau: float(density(one, tau) * density(other, tau)), 0, min(t, other_t), limit=200)
    assert inner(one, other) == inner(other, one) == pytest.approx(integral, rel=1e-6)


def profiles(steps, snapshots):
    return [Profile(t, gamma_of(length)) for t in sorted(snapshot_steps(steps, snapshots)) for length in LENGTHS]


def off(kept, weights, target):
    """||sum of weighted profiles - target|| / ||target||, by sums over a fine grid."""
    tau = (np.arange(200_000) + 0.5) / 200_000 * target.t
    aim = density(target, tau)
    gap = sum(weight * density(profile, tau) for weight, profile in zip(weights, kept, strict=True)) - aim
    return float(np.sqrt((gap**2).sum() / (aim**2).sum()))


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.25])
def test_the_combination_is_the_nearest_of_sum_1_and_says_how_near(length):
    kept, target = profiles(800, 8), Profile(800, gamma_of(length))
    weights, error = combine(kept, target)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    assert error == pytest.approx(off(kept, weights, target), rel=1e-3)
    generator = np.random.default_rng(0)
    for _ in range(10):
        aside = generator.normal(size=len(kept)) * 1e-2
        assert off(kept, weights + aside - aside.mean(), target) > error


@pytest.mark.parametrize("index", [0, 5, 14, 15])
def test_an_average_that_was_kept_is_found_again(index):
    kept = profiles(1000, 8)
    weights, error = combine(kept, kept[index])
    assert error < 1e-7
    assert weights == pytest.approx([float(place == index) for place in range(16)], abs=1e-9)


def test_there_must_be_something_to_combine():
    with pytest.raises(ValueError, match="no averages"):
        combine([], Profile(10, 1.0))


def test_hundreds_of_snapshots_do_no_harm():
    weights, error = combine(profiles(100_000, 200), Profile(100_000, gamma_of(0.15)))
    assert error < 1e-4 and sum(map(abs, weights)) < 2


# by snapshots: how far a made average may be from the one followed all along, of its distance from the raw weights
WITHIN = {8: 0.07, 16: 0.03, 32: 0.01}


@cache
def random_walk():
    return torch.randn(1600, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


@cache
def trained():
    """The weights of a small network at every step of a real training."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(2, 16, generator=generator), torch.zeros(16), torch.randn(16, 2, generator=generator) / 4]
    weights = [weight.double().requires_grad_() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    steps = []
    for _ in range(1600):
        x = torch.randn(32, 2, dtype=torch.float64, generator=generator)
        loss = (torch.tanh(x @ weights[0] + weights[1]) @ weights[2] - torch.sin(3 * x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.append(torch.cat([weight.detach().flatten() for weight in weights]))
    return torch.stack(steps)


@pytest.mark.parametrize("path", [random_walk, trained])
@pytest.mark.parametrize("length", [0.07, 0.15, 0.2])
@pytest.mark.parametrize("at", [1600, 800])
def test_an_average_made_afterwards_is_the_one_followed_all_along(path, length, at):
    trajectory = path()
    truth = shares(at, gamma_of(length)) @ trajectory[:at]
    spread = (truth - trajectory[at - 1]).norm()
    averages = [list(followed(trajectory, gamma_of(kept))) for kept in LENGTHS]
    gaps = []
    for snapshots in WITHIN:
        steps = [t for t in sorted(snapshot_steps(1600, snapshots)) if t <= at]
        weights, _ = combine(
            [Profile(t, gamma_of(kept)) for t in steps for kept in LENGTHS], Profile(at, gamma_of(length))
        )
        there = torch.stack([average[t - 1] for t in steps for average in averages])
        gaps.append(float((torch.tensor(weights, dtype=torch.float64) @ there - truth).norm() / spread))
    assert gaps[0] > gaps[1] > gaps[2]
    assert all(gap < within for gap, within in zip(gaps, WITHIN.values(), strict=True))
