from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit

from flowimg.build.flow import TIMES
from flowimg.build.sampler import TIME_GRIDS
from flowimg.flow.times import (
    LogitNormal,
    Uniform,
    diffusers_grid,
    edm_grid,
    shift_times,
    skewed,
    stratify,
    uniform_grid,
)
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

few = settings(max_examples=40, deadline=None, derandomize=True)
ROUNDING = 2**-24  # half the distance of neighbouring float32 numbers just below 1
LAST = 1 - 2**-24  # the largest number torch.rand draws


@pytest.fixture(params=TIMES)
def times(request):
    return TIMES[request.param](validate(Config, {"times": {"kind": request.param}}, "test").times)


def test_times_lie_in_the_unit_interval_even_at_its_ends(times):
    t = times(torch.tensor([0.0, 2**-24, 1e-4, 0.5, 1 - 1e-4, LAST]))
    assert t.isfinite().all()
    assert (t >= 0).all() and (t <= 1).all()


def test_times_rise_with_u_and_keep_its_shape(times):
    t = times(torch.linspace(0.01, 0.99, 99))
    assert t.shape == (99,) and t.dtype == torch.float32
    assert (t.diff() > 0).all()


def test_time_of_a_place_does_not_depend_on_the_places_drawn_with_it(times):
    # bit for bit: torch.sigmoid, for one, rounds the last elements of a tensor otherwise than the rest
    u = torch.rand(203, generator=torch.Generator().manual_seed(0))
    assert torch.equal(times(u), torch.cat([times(one) for one in u.split(1)]))


def test_times_reach_noise_and_data(times):
    t = times(torch.tensor([1e-6, 1 - 1e-6]))
    assert t[0] < 0.02 and t[1] > 0.98


def test_uniform_times_are_the_uniform_numbers():
    u = torch.rand(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Uniform()(u), u)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 1.7), (1.2, 0.5)])
def test_logit_normal_times_have_the_quantiles_of_a_normal_logit(mean, std):
    # forwards, where the code goes backwards: the distribution function of logit(t) must give u back
    u = np.linspace(0.001, 0.999, 400)
    t = LogitNormal(mean, std)(torch.from_numpy(u)).numpy()
    np.testing.assert_allclose(stats.norm(mean, std).cdf(logit(t)), u, atol=1e-9)


def test_logit_normal_settings_reach_the_distribution():
    settings = validate(Config, {"times": {"kind": "logit_normal", "mean": 0.7, "std": 0.2}}, "test").times
    t = TIMES["logit_normal"](settings)(torch.tensor(stats.norm.cdf([0, 1]).tolist()))
    np.testing.assert_allclose(t.numpy(), expit([0.7, 0.9]), rtol=1e-5)


def test_skewed_times_are_the_cifar_recipe():
    # quantiles at -1, 0, 1 standard deviations of logit(t) ~ N(1.2, 1.2^2), and the cut
    u = torch.tensor(stats.norm.cdf([-1, 0, 1]).tolist())
    np.testing.assert_allclose(skewed()(u).numpy(), expit([0, 1.2, 2.4]), rtol=1e-5)
    assert skewed()(torch.tensor([0.0])).item() == pytest.approx(1e-4)


def strata(batch_size, u):
    return stratify(torch.full((batch_size,), u), range(batch_size), batch_size).double()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batch_size=st.integers(1, 2000), u=st.sampled_from([0.0, 0.25, 0.5, 0.9, LAST]))
def test_stratified_numbers_fall_once_in_every_stratum(batch_size, u):
    edges = torch.arange(batch_size + 1, dtype=torch.float64) / batch_size
    t = strata(batch_size, u).sort().values
    assert (t >= edges[:-1] - ROUNDING).all() and (t <= edges[1:] + ROUNDING).all()
    assert t.max() < 1


def test_stratified_numbers_fall_once_in_every_stratum_of_every_batch_size():
    for batch_size in range(1, 2001):
        stratum = (strata(batch_size, 0.5) * batch_size).floor().long()
        assert torch.equal(stratum.sort().values, torch.arange(batch_size))


def test_stratified_numbers_keep_u_within_their_stratum():
    u = torch.rand(100, generator=torch.Generator().manual_seed(0))
    within = (stratify(u, range(100), 100).double() * 100) % 1
    torch.testing.assert_close(within, u.double(), atol=1e-5, rtol=0)


@few
@given(batch_size=st.integers(1, 2000), inner=st.lists(st.integers(1, 1999), max_size=4))
def test_stratified_numbers_are_the_same_however_the_batch_is_cut(batch_size, inner):
    u = torch.rand(batch_size, generator=torch.Generator().manual_seed(0))
    cut = pairwise(sorted({0, batch_size, *(i for i in inner if i < batch_size)}))
    parts = [stratify(u[a:b], range(a, b), batch_size) for a, b in cut]
    assert torch.equal(torch.cat(parts), stratify(u, range(batch_size), batch_size))


@few
@given(batch_size=st.integers(8, 2000), start=st.floats(0, 1), share=st.floats(0, 1))
def test_every_run_of_consecutive_places_covers_the_interval(batch_size, start, share):
    # the largest hole is some multiple of 1/n that grows as log n; in the order of the strata it would be near 1
    n = 8 + int(share * (batch_size - 8))
    first = int(start * (batch_size - n))
    t = strata(batch_size, 0.5)[first : first + n].sort().values
    hole = max(t[0].item(), 1 - t[-1].item(), t.diff().max().item())
    assert hole <= (1 + 1.5 * np.log2(n)) / n


def formula(t, shift):
    # in exact arithmetic, and in sigma = 1 - t, where the code has t
    sigma = 1 - Fraction(t)
    return float(1 - Fraction(shift) * sigma / (1 + (Fraction(shift) - 1) * sigma))


@pytest.mark.parametrize("shift", [0.25, 1.0, 3.0, 12.5])
def test_shift_is_the_formula_in_sigma(shift):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    expected = [formula(value, shift) for value in t.tolist()]
    np.testing.assert_allclose(shift_times(t, shift).numpy(), expected, atol=1e-14)


@few
@given(shift=st.floats(0.02, 50))
def test_shift_rises_and_keeps_both_ends(shift):
    t = shift_times(torch.linspace(0, 1, 101), shift)
    assert t[0] == 0 and t[-1] == 1
    assert (t.diff() > 0).all()
    # the last float32 before 1 must not be carried beyond it
    assert shift_times(torch.tensor([LAST]), shift) <= 1


def test_shift_above_one_moves_times_to_noise_and_one_changes_nothing():
    t = torch.rand(1000, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99)
    assert (shift_times(t, 3.0) < t).all() and (shift_times(t, 1 / 3) > t).all()
    assert torch.equal(shift_times(t, 1.0), t)
    torch.testing.assert_close(shift_times(shift_times(t, 3.0), 1 / 3), t)


@pytest.mark.parametrize("num_steps", [1, 3, 10, 49, 1000])
def test_uniform_grid_is_k_over_n_from_noise_to_data(num_steps):
    grid = uniform_grid(num_steps)
    assert grid.dtype == torch.float64 and grid[0] == 0 and grid[-1] == 1
    np.testing.assert_allclose(grid.numpy(), [float(Fraction(k, num_steps)) for k in range(num_steps + 1)], atol=1e-15)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 50, 1000])
@pytest.mark.parametrize("name", TIME_GRIDS)
def test_every_grid_rises_from_noise_to_data_in_as_many_steps(name, num_steps):
    grid = TIME_GRIDS[name](num_steps)
    assert grid.shape == (num_steps + 1,) and grid.dtype == torch.float64
    assert grid[0] == 0 and grid[-1] == 1
    assert (grid.diff() > 0).all()
    assert (shift_times(grid, 3.0).float().diff() > 0).all()  # fields see float32


# sigma of EDM's 18 steps, as the paper's code prints them
EDM_18 = [80.0, 57.586, 40.786, 28.375, 19.352, 12.910, 8.4005, 5.3152, 3.2570, 1.9233, 1.0886, 0.5853]
EDM_18 += [0.2964, 0.1395, 0.0599, 0.0228, 0.0075, 0.002]


def test_edm_times_are_the_noise_levels_of_karras():
    sigma = 1 / edm_grid(18)[1:-1].numpy() - 1  # but for the first, which is noise alone, where a flow starts
    np.testing.assert_allclose(sigma, EDM_18[1:], rtol=1e-2)
    np.testing.assert_allclose(sigma, [_karras(i, 18) for i in range(1, 18)], rtol=1e-9)
    assert sigma[-1] == pytest.approx(0.002)
    assert edm_grid(1).tolist() == [0, 1]
    assert edm_grid(2).tolist() == pytest.approx([0, 1 / 1.002, 1])


def _karras(i, n):
    """Equation 5 of arXiv:2206.00364 with sigma 0.002 to 80 and rho 7."""
    return (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


@pytest.mark.parametrize("num_steps", [2, 18, 50])
def test_edm_times_are_those_of_diffusers_edm_scheduler(num_steps):
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(num_steps)
    sigma = scheduler.sigmas.double().numpy()
    np.testing.assert_allclose(edm_grid(num_steps).numpy()[1:], 1 / (1 + sigma[1:]), atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 18, 50])
def test_diffusers_times_are_those_of_its_scheduler_as_it_comes(num_steps):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    np.testing.assert_allclose(diffusers_grid(num_steps).numpy(), 1 - scheduler.sigmas.double().numpy(), atol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shifted_diffusers_grid_is_that_of_its_shifted_scheduler(shift):
    # diffusers shifts the ends of the ramp too when it is built, and the ramp again when it is set
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=(1 - diffusers_grid(10))[:-1].tolist())
    theirs = 1 - scheduler.sigmas.double().numpy()
    np.testing.assert_allclose(shift_times(diffusers_grid(10), shift).numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_the_shift_of_diffusers_times_is_set_shift_and_not_that_of_the_constructor(num_steps):
    ours = shift_times(diffusers_grid(num_steps), 3.0).numpy()
    scheduler, built = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(3.0)
    for one in (scheduler, built):
        one.set_timesteps(num_steps)
    np.testing.assert_allclose(ours, 1 - scheduler.sigmas.double().numpy(), atol=1e-6)
    apart = abs(ours - (1 - built.sigmas.double().numpy())).max()
    assert apart > 1e-3 if num_steps > 1 else apart == 0
