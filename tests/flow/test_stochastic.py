"""Solvers that draw noise, on data N(mu, s^2): their steps are affine there, so moments are propagated, not sampled."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.build.flow import PATHS
from flowimg.build.sampler import NOISE_SHAPES
from flowimg.flow.paths import Linear
from flowimg.flow.solvers import EULER, HEUN, Slope, Solver, integrate
from flowimg.flow.stochastic import MOST_CHURN, Strength, churn, noised, returning, sde, sde2
from flowimg.flow.times import diffusers_grid, edm_grid, uniform_grid

MU = -0.7
KINDS = {"sde": lambda g=1.0, **more: sde(Strength(g, **more)), "sde2": lambda g=1.0, **more: sde2(Strength(g, **more)),
         "churn": lambda g=20.0, n=100: churn(g, n)}  # fmt: skip


def coefficients(path, t):
    t = torch.as_tensor(t, dtype=torch.float64)
    return path.alpha(t), path.sigma(t), path.alpha_prime(t), path.sigma_prime(t)


def velocity_of(path, s):
    """The exact velocity for data N(MU, s^2)."""

    def velocity(x, t, cond=None):
        alpha, sigma, rise, fall = coefficients(path, t[:, None].double())
        return rise * MU + (rise * alpha * s**2 + fall * sigma) / (alpha**2 * s**2 + sigma**2) * (x - alpha * MU)

    return velocity


def exact(path, s, t):
    alpha, sigma, *_ = (float(value) for value in coefficients(path, t))
    return alpha * MU, math.sqrt(alpha**2 * s**2 + sigma**2)


def moments(solver, path, times, s):
    """Mean and deviation at every time, of the scheme itself: each step is x -> a x + b + c noise."""
    still, shaken = (Slope(velocity_of(path, s), None, path, lambda _, x, k=k: torch.full_like(x, k)) for k in (0, 1))
    mean, deviation = exact(path, s, times[0])
    found = [(mean, deviation)]
    for t, u in zip(times, times[1:], strict=False):
        b, ab = solver.step(still, torch.tensor([[0.0], [1.0]], dtype=torch.float64), t, u).flatten().tolist()
        c = solver.step(shaken, torch.zeros(1, 1, dtype=torch.float64), t, u).item() - b
        mean, deviation = (ab - b) * mean + b, math.hypot((ab - b) * deviation, c)
        found.append((mean, deviation))
    return found


@pytest.mark.parametrize("kind", PATHS)
def test_a_velocity_says_which_data_and_noise_it_means(kind):
    path = PATHS[kind](None)
    (x_0, x_1), t = torch.randn(2, 6, 2, dtype=torch.float64), torch.linspace(0, 1, 6).double()
    x_t, u_t = path.sample(x_0, x_1, t)
    found = path.ends(x_t, u_t, t)
    torch.testing.assert_close(found.x_1, x_1)
    torch.testing.assert_close(found.x_0, x_0)
    # and of a mean velocity, the score is that of the density
    x, t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], torch.full((5,), 0.6, dtype=torch.float64)
    x.requires_grad_()
    mean, deviation = exact(path, 0.4, 0.6)
    (score,) = torch.autograd.grad(torch.distributions.Normal(mean, deviation).log_prob(x).sum(), x)
    x_0 = path.ends(x, velocity_of(path, 0.4)(x, t), t).x_0
    torch.testing.assert_close(-x_0 / coefficients(path, 0.6)[1], score)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(t=st.floats(0.01, 1.0), kind=st.sampled_from(sorted(PATHS)))
def test_the_time_of_a_noise_level(t, kind):
    path = PATHS[kind](None)
    alpha, sigma, *_ = coefficients(path, t)
    assert path.time_of(float(sigma / alpha)) == pytest.approx(t, abs=1e-12)
    assert path.time_of(math.inf) == 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(times=st.tuples(st.floats(0, 0.98), st.floats(0.01, 1)), kind=st.sampled_from(sorted(PATHS)))
def test_noise_leads_back_along_the_path(times, kind):
    (s, t), path = sorted(times), PATHS[kind](None)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    kept, fresh = noised(path, one, t, s, zero), noised(path, zero, t, s, one)
    alpha, sigma, *_ = coefficients(path, t)
    there = coefficients(path, s)
    torch.testing.assert_close(kept * alpha, there[0][None], atol=1e-12, rtol=1e-9)
    torch.testing.assert_close((kept * sigma) ** 2 + fresh**2, there[1][None] ** 2, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("back", [False, True], ids=["to data", "to noise"])
@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("shape", NOISE_SHAPES)
@pytest.mark.parametrize("name", ["sde", "sde2"])
def test_marginals_at_ten_times_are_those_of_the_path(name, shape, kind, back):
    path, s = PATHS[kind](None), 0.5
    times = np.linspace(0, 1, 101)[:: -1 if back else 1].tolist()
    # Euler's own error is 1.7 % here at its largest: of it a strength of 1 leaves less, and none adds to it
    scale, at_most = (2.0, 0.01) if name == "sde2" else (1.0, 0.018)
    found = moments(KINDS[name](scale, shape=NOISE_SHAPES[shape]), path, times, s)
    for step in range(10, 101, 10):
        mean, deviation = exact(path, s, times[step])
        assert abs(found[step][0] - mean) < at_most * deviation and abs(found[step][1] / deviation - 1) < at_most


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("shape", NOISE_SHAPES)
@pytest.mark.parametrize("name", ["sde", "sde2"])
def test_data_that_hardly_vary_do_not_blow_up(name, shape, kind, scale):
    """The score of N(mu, 0.02^2) is steep near the data: a step that takes too much of it swings ever wider."""
    solver, path = KINDS[name](scale, shape=NOISE_SHAPES[shape]), PATHS[kind](None)
    grids = [uniform_grid(50), edm_grid(50), diffusers_grid(50)]
    for times in grids:
        found = moments(solver, path, times.tolist(), 0.02)
        plain = moments(EULER if name == "sde" else HEUN, path, times.tolist(), 0.02)
        for step, (mean, deviation) in enumerate(found):
            wanted = exact(path, 0.02, float(times[step]))
            off = abs(mean - wanted[0]) + abs(deviation - wanted[1])
            assert off < (0.1 if scale == 1 else 0.2) + 2 * abs(plain[step][1] - wanted[1]), (step, deviation, wanted)


@pytest.mark.parametrize("kind", PATHS)
def test_marginals_of_churn(kind):
    path, times = PATHS[kind](None), np.linspace(0, 1, 101).tolist()
    for step, (mean, deviation) in enumerate(moments(KINDS["churn"](), path, times, 0.5)):
        wanted = exact(path, 0.5, times[step])
        assert abs(mean - wanted[0]) < 0.01 * wanted[1] and abs(deviation / wanted[1] - 1) < 0.01


@pytest.mark.parametrize(("name", "order"), [("sde", 1), ("sde2", 2), ("churn", 2)])
@pytest.mark.parametrize("kind", PATHS)
def test_weak_order(name, order, kind):
    path, steps, errors = PATHS[kind](None), [40, 80, 160, 320], []
    for count in steps:
        times = np.linspace(0, 1, count + 1).tolist()
        solver = churn(2.0, count) if name == "churn" else KINDS[name](2.0)
        mean, deviation = moments(solver, path, times, 0.5)[-1]
        errors.append(abs(deviation**2 - 0.25) + abs(mean - MU))
    assert solver.order == order and min(errors) > 1e-12
    assert np.polyfit(np.log(1 / np.array(steps)), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", ["sde", "sde2"])
def test_strong_order(name):
    """Of paths driven by the same Brownian motion the distance falls as the step does."""
    path, finest, many = Linear(), 2048, 400
    shakes = torch.randn(finest, many, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_0 = torch.randn(many, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def end(count, solver):
        each = shakes.unflatten(0, (count, finest // count)).sum(1) / math.sqrt(finest // count)
        times = uniform_grid(count).double()
        return integrate(velocity_of(path, 0.5), x_0, times, solver, path=path, noise=lambda n, x: each[n]).x

    reference, steps = end(finest, KINDS["sde2"](2.0)), [16, 32, 64, 128]
    errors = [(end(count, KINDS[name](2.0)) - reference).square().mean().sqrt().item() for count in steps]
    assert np.polyfit(np.log(1 / np.array(steps)), np.log(errors), 1)[0] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("name", "plain"), [("sde", EULER), ("sde2", HEUN), ("churn", HEUN)])
def test_at_strength_0_they_are_the_plain_solvers_to_the_bit(name, plain, back):
    x, path = torch.randn(7, 3), Linear()
    velocity, times = velocity_of(path, 0.3), uniform_grid(9).flip(0) if back else uniform_grid(9)
    noise = lambda n, x: torch.full_like(x, torch.nan)  # noqa: E731  none may be used
    ours = integrate(velocity, x, times, KINDS[name](0.0), trajectory=True, path=path, noise=noise)
    theirs = integrate(velocity, x, times, plain, trajectory=True)
    assert torch.equal(ours.trajectory, theirs.trajectory) and ours.nfe == theirs.nfe


def edm(denoiser, y, levels, total, shakes):
    """Algorithm 2 of Karras et al. 2022 without its second-order half, in its variables; levels fall to 0."""
    n = len(levels) - 1
    for i, (level, lower) in enumerate(zip(levels, levels[1:], strict=False)):
        gamma = min(total / n, math.sqrt(2) - 1) if math.isfinite(level) else 0.0
        raised = level + gamma * level
        y = y + math.sqrt(raised**2 - level**2) * shakes[i] if gamma else y
        y = y + (lower - raised) * (y - denoiser(y, raised)) / raised
    return y


@pytest.mark.parametrize("total", [0.5, 3.0, 100.0])
def test_churn_is_edms_in_its_own_variables(total):
    """On the linear path x = y / (1 + level), so that Euler's steps agree, too: all of it must, to rounding."""
    path, s, levels = Linear(), 0.5, [20.0, 7.0, 2.0, 1.0, 0.4, 0.1, 0.0]
    shakes = torch.randn(6, 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 20 * torch.randn(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # of data N(MU, s^2) plus noise of a level, the mean of the data
    theirs = edm(lambda y, level: (s**2 * y + level**2 * MU) / (s**2 + level**2), y, levels, total, shakes)
    times = torch.tensor([1 / (1 + level) for level in levels], dtype=torch.float64)
    solver = churn(total, 6, base=EULER)
    ours = integrate(velocity_of(path, s), y / 21, times, solver, path=path, noise=lambda n, x: shakes[n])
    torch.testing.assert_close(ours.x, theirs, atol=1e-12, rtol=1e-12)
    without = integrate(velocity_of(path, s), y / 21, times, EULER).x
    assert (ours.x - without).abs().max() > 0.01


@pytest.mark.parametrize("kind", PATHS)
def test_churn_raises_the_noise_level_by_gamma_and_no_further(kind):
    path, seen = PATHS[kind](None), []
    base = Solver(lambda v, x, t, s: seen.append(t) or x, order=1)
    times = uniform_grid(10).double()
    for total, gamma in ((2.0, 0.2), (100.0, MOST_CHURN)):
        seen.clear()
        integrate(lambda x, t, cond: x, torch.zeros(1, 1), times, churn(total, 10, base=base), path=path,
                  noise=lambda n, x: x)  # fmt: skip
        levels = [[float(c) for c in coefficients(path, t)[:2]] for t in seen[1:]]
        for (alpha, sigma), t in zip(levels, times[1:-1].tolist(), strict=True):
            before = [float(c) for c in coefficients(path, t)[:2]]
            assert sigma / alpha == pytest.approx((1 + gamma) * before[1] / before[0])
        assert seen[0] == 0  # there is nothing but noise


@pytest.mark.parametrize("name", ["sde", "sde2", "churn"])
def test_noise_is_drawn_once_a_step_inside_its_interval_only(name):
    numbers = []

    def noise(number, x):
        numbers.append(number)
        return torch.zeros_like(x)

    make = {"sde": lambda i: sde(Strength(interval=i)), "sde2": lambda i: sde2(Strength(interval=i)),
            "churn": lambda i: churn(20.0, 10, i)}  # fmt: skip
    integrate(lambda x, t, cond: x, torch.zeros(2, 1), uniform_grid(10), make[name]((0.3, 0.6)), noise=noise)
    # of a step across the edge of the interval, half of the noise is inside
    assert numbers == ([3, 4, 5, 6] if name == "churn" else [2, 3, 4, 5, 6])
    numbers.clear()
    integrate(lambda x, t, cond: x, torch.zeros(2, 1), uniform_grid(10), make[name]((0.0, 1.0)), noise=noise)
    assert numbers == list(range(1, 10) if name == "churn" else range(9))  # none at the end that is singular


def test_a_returning_solver_goes_back_by_noise_and_forth_by_its_own_step():
    path, times = Linear(), torch.tensor([0.0, 0.5, 0.25, 1.0], dtype=torch.float64)
    x = torch.tensor([[2.0]], dtype=torch.float64)
    flow = integrate(velocity_of(path, 0.5), x, times, returning(EULER), trajectory=True, path=path, turns=True,
                     noise=lambda n, x: torch.full_like(x, 3.0))  # fmt: skip
    forth = integrate(velocity_of(path, 0.5), x, times[:2], EULER).x
    # k = alpha_s / alpha_t = 1/2, sigma_s^2 - (k sigma_t)^2 = 9/16 - 1/16
    there = forth / 2 + math.sqrt(0.5) * 3.0
    torch.testing.assert_close(flow.trajectory[2], there)
    torch.testing.assert_close(flow.x, integrate(velocity_of(path, 0.5), there, times[2:], EULER).x)
    assert flow.nfe == 2  # noise costs no evaluation
