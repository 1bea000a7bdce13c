import math

import numpy as np
import pytest
import torch
from torch.func import jvp

from flowimg.build.flow import PATHS
from flowimg.flow.paths import Cosine, Linear, expand_like

SHAPES = [(5, 2), (5, 3, 8, 8)]


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param](None)


def pair(shape):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_time_derivative_of_the_point(path, shape):
    x_0, x_1 = pair(shape)
    t = torch.tensor([0.0, 0.1, 0.5, 0.77, 1.0], dtype=torch.float64)
    x_t, x_t_prime = jvp(lambda t: path.sample(x_0, x_1, t).x_t, (t,), (torch.ones_like(t),))
    sample = path.sample(x_0, x_1, t)
    torch.testing.assert_close(sample.x_t, x_t)
    torch.testing.assert_close(sample.u_t, x_t_prime, rtol=1e-12, atol=1e-12)


def test_coefficient_derivatives_are_derivatives(path):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for f, f_prime in ((path.alpha, path.alpha_prime), (path.sigma, path.sigma_prime)):
        torch.testing.assert_close(f_prime(t), jvp(f, (t,), (torch.ones_like(t),))[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_starts_at_the_noise_and_ends_at_the_data(path, shape):
    x_0, x_1 = pair(shape)
    zero, one = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(path.sample(x_0, x_1, zero).x_t, x_0)
    torch.testing.assert_close(path.sample(x_0, x_1, one).x_t, x_1)


def test_data_come_in_and_noise_goes_out_all_the_way(path):
    t = torch.linspace(0, 1, 101)
    assert (path.alpha(t).diff() > 0).all()
    assert (path.sigma(t).diff() < 0).all()


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1, 1)])
def test_coefficients_keep_the_shape_of_t(path, shape):
    t = torch.full(shape, 0.3)
    for f in (path.alpha, path.sigma, path.alpha_prime, path.sigma_prime):
        assert f(t).shape == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_has_its_own_time(path, shape):
    x_0, x_1 = pair(shape)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    whole = path.sample(x_0, x_1, t)
    assert whole.x_t.shape == whole.u_t.shape == shape
    for i in range(5):
        one = path.sample(x_0[i : i + 1], x_1[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(whole.x_t[i], one.x_t[0])
        torch.testing.assert_close(whole.u_t[i], one.u_t[0])


def test_linear_path_in_numbers():
    # a quarter of the way from noise 2 to data 10; time 0 is noise, so the velocity points from 2 to 10
    x_t, u_t = Linear().sample(torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([0.25]))
    assert x_t.item() == 4 and u_t.item() == 8


def test_cosine_path_in_numbers():
    # a third of the way is 30 degrees on the circle: cos 30 of the noise, sin 30 of the data
    x_t, u_t = Cosine().sample(torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([1 / 3]))
    assert x_t.item() == pytest.approx(math.sqrt(3) + 5, rel=1e-6)
    assert u_t.item() == pytest.approx(math.pi / 2 * (5 * math.sqrt(3) - 1), rel=1e-6)


def test_mean_conditional_velocity_of_gaussian_data_is_the_closed_form():
    # least squares of u_t on x_t, at fixed t, against the exact field of data N(mu, s^2): direction and value
    mu, s, n = 1.5, 0.5, 200_000
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randn(n, 1, generator=g, dtype=torch.float64)
    x_1 = mu + s * torch.randn(n, 1, generator=g, dtype=torch.float64)
    for t in (0.1, 0.4, 0.9):
        x_t, u_t = Linear().sample(x_0, x_1, torch.full((n,), t, dtype=torch.float64))
        slope, offset = np.polyfit(x_t.flatten().numpy(), u_t.flatten().numpy(), 1)
        exact = (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2)
        assert slope == pytest.approx(exact, abs=0.02)
        assert offset == pytest.approx(mu - exact * t * mu, abs=0.02)


@pytest.mark.parametrize(
    ("x_0", "x_1", "t"),
    [
        ((4, 2), (4, 3), (4,)),
        ((4, 2), (5, 2), (4,)),
        ((1, 2), (4, 2), (4,)),  # would broadcast
        ((4, 2), (4, 2), (5,)),
        ((4, 2), (4, 2), (1,)),  # would broadcast
        ((4, 2), (4, 2), (4, 1)),
        ((4, 2), (4, 2), ()),
    ],
)
def test_shapes_that_do_not_belong_together_are_shown(path, x_0, x_1, t):
    with pytest.raises(ValueError, match="do not belong together") as error:
        path.sample(torch.zeros(x_0), torch.zeros(x_1), torch.zeros(t))
    assert all(str(shape) in str(error.value) for shape in (x_0, x_1, t))


def test_expand_like_multiplies_rows():
    x = torch.ones(3, 2, 4, 4)
    assert expand_like(torch.arange(3.0), x).shape == (3, 1, 1, 1)
    assert (expand_like(torch.arange(3.0), x) * x).flatten(1).unique(dim=1).flatten().tolist() == [0, 1, 2]
