"""Densities against closed forms: Gaussians, linear flows, and what a wrong sign or a missing term would give."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.flow.density import bits_per_dim, log_density, velocity_and_divergence
from flowimg.flow.solvers import RK4, dopri5
from flowimg.flow.times import uniform_grid

A = torch.tensor([[-0.5, 2.0, 0.0], [-2.0, -0.5, 0.3], [0.1, 0.0, 0.8]], dtype=torch.float64)


def gaussian_field(mu, s):
    """The exact velocity of the linear path to N(mu, s^2): x(1) = mu + s x_0."""

    def velocity(x, t, cond=None):
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        return mu + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * mu)

    return velocity


def normal(x, mu, s):
    return torch.distributions.Normal(mu, s).log_prob(x).flatten(1).sum(1)


def signs(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).double() * 2 - 1


@settings(max_examples=8, deadline=None, derandomize=True)
@given(mu=st.floats(-3, 3), s=st.floats(0.2, 3), dims=st.integers(1, 4))
def test_density_of_a_gaussian_to_a_thousandth_of_a_nat(mu, s, dims):
    x = mu + s * torch.randn(20, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for solver, times in ((RK4, uniform_grid(100)), (dopri5(1e-7), uniform_grid(1))):
        found = log_density(gaussian_field(mu, s), x, times, solver)
        torch.testing.assert_close(found.log_p, normal(x, mu, s), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.x_0, (x - mu) / s, atol=1e-3, rtol=0)
        assert found.nfe >= 14


def test_probes_are_exact_where_the_slope_is_the_same_in_all_directions():
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = log_density(gaussian_field(0.3, 0.7), x, uniform_grid(60), RK4, probes=signs(1, *x.shape))
    torch.testing.assert_close(found.log_p, normal(x, 0.3, 0.7), atol=1e-3, rtol=0)


def test_density_of_a_linear_flow_is_that_of_its_matrix():
    """x_1 = exp(A) x_0, so log p_1 = log N(exp(-A) x_1) - tr A: a sign, or a term left out, would be seen."""
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_0 = x @ torch.linalg.matrix_exp(-A).T
    found = log_density(lambda x, t, cond: x @ A.T, x, uniform_grid(50), RK4)
    torch.testing.assert_close(found.log_p, normal(x_0, 0.0, 1.0) - A.trace(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.x_0, x_0, atol=1e-6, rtol=0)
    assert abs(float(A.trace())) > 0.1


def test_the_divergence_is_the_trace_of_the_jacobian():
    torch.manual_seed(0)
    net = (
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        .double()
        .requires_grad_(False)
    )
    velocity = lambda x, t, cond: net(x) * (1 + t[:, None]) * cond[:, None]  # noqa: E731
    x, t, cond = torch.randn(5, 4).double(), torch.rand(5).double(), torch.arange(5).double()
    with torch.no_grad():
        v, divergence = velocity_and_divergence(velocity, x, t, cond, None)
        _, estimate = velocity_and_divergence(velocity, x, t, cond, signs(5000, 5, 4))
    for row in range(5):
        one = lambda z, row=row: velocity(z[None], t[row : row + 1], cond[row : row + 1])[0]  # noqa: E731
        wanted = torch.autograd.functional.jacobian(one, x[row]).trace()
        assert float(divergence[row]) == pytest.approx(float(wanted), abs=1e-12)
        assert float(estimate[row]) == pytest.approx(float(wanted), abs=0.2)
    torch.testing.assert_close(v, velocity(x, t, cond))
    assert not v.requires_grad and not divergence.requires_grad


def test_probes_are_right_on_average_and_more_of_them_nearer():
    x = torch.zeros(2000, 3, dtype=torch.float64)
    at = torch.zeros(2000, dtype=torch.float64)
    skew = A + torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    spread = []
    for count in (1, 16):
        _, found = velocity_and_divergence(lambda x, t, c: x @ skew.T, x, at, None, signs(count, 2000, 3))
        assert float(found.mean()) == pytest.approx(float(skew.trace()), abs=4 * float(found.std()) / 2000**0.5)
        spread.append(float(found.std()))
    assert spread[0] == pytest.approx(4 * spread[1], rel=0.2)


def test_a_velocity_that_does_not_depend_on_x_moves_the_density_along():
    x = torch.randn(4, 2, dtype=torch.float64)
    found = log_density(lambda x, t, cond: torch.full_like(x, 2.0), x, uniform_grid(3), RK4)
    torch.testing.assert_close(found.log_p, normal(x - 2, 0.0, 1.0))


def test_float32_fields_are_followed_in_float64():
    seen = set()

    def velocity(x, t, cond):
        seen.add((x.dtype, t.dtype))
        return gaussian_field(0.0, 0.5)(x, t)

    x = 0.5 * torch.randn(50, 2)
    found = log_density(velocity, x, uniform_grid(100), RK4)
    assert seen == {(torch.float32, torch.float32)} and found.log_p.dtype == torch.float64
    torch.testing.assert_close(found.log_p, normal(x.double(), 0.0, 0.5), atol=1e-4, rtol=0)


def tanh_flow(x):
    """The log-density of x_1 along dx/dt = tanh(x), where sinh(x_1) = e sinh(x_0), in closed form."""
    x_0 = torch.asinh(x.sinh() / math.e)
    return normal(x_0, 0.0, 1.0) + (x.cosh() / math.e / x_0.cosh()).log().sum(1)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("probes", [None, 3])
def test_the_gradient_in_x_1_is_that_of_the_closed_form(solver, dtype, probes):
    """It was silently that of log N(x_0) with dx_0 / dx_1 = 1: here the divergence, too, depends on x."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_(True)
    step, times = (RK4, uniform_grid(40)) if solver == "rk4" else (dopri5(1e-8), uniform_grid(1))
    signs_of = None if probes is None else signs(probes, 7, 3)  # the Jacobian is diagonal: probes are exact
    found = log_density(lambda x, t, cond: x.tanh(), x, times, step, probes=signs_of)
    torch.testing.assert_close(found.log_p, tanh_flow(x.double()), atol=1e-5, rtol=0)
    (slope,) = torch.autograd.grad(found.log_p.sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(tanh_flow(x.double()).sum(), x)
    torch.testing.assert_close(slope, wanted, atol=1e-5, rtol=0)
    (of_noise,) = torch.autograd.grad(found.x_0.sum(), x)
    torch.testing.assert_close(of_noise, (x.cosh() / math.e / torch.asinh(x.sinh() / math.e).cosh()).detach(),
                               atol=1e-5, rtol=0)  # fmt: skip


def test_the_gradient_of_a_gaussian_in_its_samples_and_its_parameters():
    mu, s = torch.tensor(0.4, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    x = (0.4 + 0.6 * torch.randn(9, 2, dtype=torch.float64)).requires_grad_(True)
    found = log_density(gaussian_field(mu, s), x, uniform_grid(100), RK4).log_p.sum()
    wanted = torch.autograd.grad(normal(x, mu, s).sum(), (x, mu, s))
    for slope, right in zip(torch.autograd.grad(found, (x, mu, s)), wanted, strict=True):
        torch.testing.assert_close(slope, right, atol=1e-3, rtol=1e-3)


def test_a_density_is_followed_by_autograd_only_where_that_is_wanted():
    mu = torch.tensor(0.4, requires_grad=True)
    x = torch.randn(5, 2, dtype=torch.float64)
    plain = log_density(gaussian_field(mu, 0.6), x, uniform_grid(20), RK4)
    with torch.no_grad():
        quiet = log_density(gaussian_field(mu, 0.6), x.clone().requires_grad_(True), uniform_grid(20), RK4)
    wanted = log_density(gaussian_field(mu, 0.6), x.clone().requires_grad_(True), uniform_grid(20), RK4)
    assert [found.log_p.requires_grad for found in (plain, quiet, wanted)] == [False, False, True]
    assert torch.equal(plain.log_p, quiet.log_p) and torch.equal(plain.log_p, wanted.log_p)


@pytest.mark.parametrize("probes", [None, 2])
def test_inference_mode_is_refused_as_it_has_no_derivatives(probes):
    """Its divergence was silently 0."""
    x = torch.randn(5, 2, dtype=torch.float64)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        log_density(gaussian_field(0.4, 0.6), x, uniform_grid(20), RK4, probes=probes and signs(probes, 5, 2))
    with torch.inference_mode():
        made = x.clone()
    found = log_density(gaussian_field(0.4, 0.6), made, uniform_grid(20), RK4)
    assert torch.equal(found.log_p, log_density(gaussian_field(0.4, 0.6), x, uniform_grid(20), RK4).log_p)


@pytest.mark.parametrize("levels", [1, 2, 16, 256])
def test_bits_of_a_uniform_choice_of_grey_levels(levels):
    """Of `levels` grey levels, each alike: the dequantised density is 127.5 / levels a dimension."""
    dims = 12
    log_p = torch.full((3,), dims * math.log(127.5 / levels), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(log_p, dims), torch.full((3,), math.log2(levels), dtype=torch.float64))
