"""Following a flow from any state, there and back, and the noise of stochastic solvers."""

import numpy as np
import pytest
import torch

from flowimg.build.sampler import SOLVERS
from flowimg.fields.mlp import MLPField
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import AB2, EULER, RK4, Solver, dopri5, integrate
from flowimg.flow.times import uniform_grid
from flowimg.sampling.sampler import Sampler, noise

SEEDS = range(5, 16)
LABELS = Condition(torch.arange(11) % 3)


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(2, num_classes=3, width=16, depth=2, zero_output=False).eval().requires_grad_(False)


def sampler(velocity, solver=EULER, steps=5, batch_size=4, **more):
    return Sampler(velocity, (2,), solver, uniform_grid(1 if solver.adaptive else steps), batch_size=batch_size, **more)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_to_follow_is_to_integrate(field, name, back):
    ours, x = sampler(field, SOLVERS[name], batch_size=11), noise(SEEDS, (2,))
    times = ours.times.flip(0) if back else ours.times
    shaken = ours._noise(range(len(x)))  # the rows' numbers are the seeds by default
    flow = integrate(field, x, times, ours.solver, LABELS, trajectory=True, noise=shaken)
    ends = ours.follow(x, LABELS, back=back)
    assert torch.equal(ends.states, torch.stack([x, flow.x])) and ends.nfe == flow.nfe
    every = ours.follow(x, LABELS, ours.times.tolist(), back=back)
    torch.testing.assert_close(every.states, flow.trajectory)
    parts = sampler(field, SOLVERS[name], batch_size=4).follow(x, LABELS, back=back)
    # one step length of an adaptive solver serves a whole batch
    assert torch.allclose(parts.states, ends.states, atol=1e-3 if ours.solver.adaptive else 1e-6)


@pytest.mark.parametrize("solver", [EULER, dopri5(1e-7)], ids=["euler", "dopri5"])
def test_two_times_may_lie_anywhere(solver):
    # the velocity is 1: x moves as far as t does
    ours, x = sampler(lambda x, t, cond: torch.ones_like(x), solver), torch.zeros(3, 2)
    for times in ([0.0, 1.0], [0.0, 0.5], [0.0, 0.5, 1.0]):
        wanted = torch.tensor(times).reshape(-1, 1, 1).expand(-1, 3, 2)
        torch.testing.assert_close(ours.follow(x, times=times).states, wanted)


def test_what_is_followed_from_noise_is_what_is_drawn(field):
    ours = sampler(field)
    drawn = ours.draw(SEEDS, LABELS)
    followed = ours.follow(noise(SEEDS, (2,)), LABELS)
    assert torch.equal(followed.states[-1], drawn.x_1) and followed.nfe == drawn.nfe == 5
    assert torch.equal(drawn.x_1, torch.cat([batch.x_1 for batch in ours.samples(SEEDS, LABELS)]))


@pytest.mark.parametrize("solver", [RK4, dopri5(1e-7)], ids=["rk4", "dopri5"])
def test_the_way_back_retraces_the_way_there(field, solver):
    times = [0.0, 0.25, 0.6, 1.0]
    ours = sampler(field, solver, steps=40)
    there = ours.follow(noise(SEEDS, (2,)), LABELS, times)
    back = ours.follow(there.states[-1], LABELS, times, back=True)
    torch.testing.assert_close(back.states.flip(0), there.states, atol=1e-4, rtol=0)
    assert (there.states[0] - there.states[-1]).abs().max() > 0.05


@pytest.mark.parametrize("back", [False, True])
def test_between_two_times_of_the_solver_lie_straight_lines(back):
    # dx/dt = 3 t^2: Euler's states are known sums, and numpy knows the lines between them
    ours = sampler(lambda x, t, cond: (3 * t**2)[:, None].expand_as(x), steps=4)
    x, times = noise(SEEDS, (2,)).double(), [0.0, 0.1, 0.25, 0.3, 0.77, 1.0]
    grid = np.array([1, 0.75, 0.5, 0.25, 0]) if back else np.array([0, 0.25, 0.5, 0.75, 1])
    gone = np.concatenate([[0], np.cumsum(3 * grid[:-1] ** 2 * np.diff(grid))])
    order = grid.argsort()
    wanted = np.interp(times, grid[order], gone[order])[:: -1 if back else 1].copy()
    states = ours.follow(x, None, times, back=back).states
    torch.testing.assert_close(states, (x + torch.from_numpy(wanted)[:, None, None]).float(), atol=1e-6, rtol=0)


def test_an_adaptive_solver_visits_the_times_asked_for():
    times = [0.0, 0.1, 0.5, 0.9, 1.0]
    states = sampler(lambda x, t, cond: -2 * x, dopri5(1e-7)).follow(noise(SEEDS, (2,)), None, times).states
    for state, t in zip(states, times, strict=True):
        torch.testing.assert_close(state, noise(SEEDS, (2,)) * np.exp(-2 * t), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_hook_replaces_the_state_and_is_told_whose_it_is(batch_size):
    goal, seen = torch.arange(22.0).reshape(11, 2), []

    def hook(rows, x, t):
        seen.append((rows.start, rows.stop, t))
        return goal[rows] if t == 0.5 else x

    ours = sampler(lambda x, t, cond: torch.ones_like(x), steps=4, batch_size=batch_size)
    states = ours.follow(noise(SEEDS, (2,)), None, [0.0, 0.25, 0.5, 1.0], hook=hook).states
    torch.testing.assert_close(states[1], noise(SEEDS, (2,)) + 0.25)
    torch.testing.assert_close(states[2], goal)
    torch.testing.assert_close(states[3], goal + 0.5)
    parts = [(start, min(start + batch_size, 11)) for start in range(0, 11, batch_size)]
    assert seen == [(*part, t) for part in parts for t in (0.25, 0.5, 0.75, 1.0)]


def shaken(slope, x, t, s):
    """A random step of the variance that has gone by, and no drift."""
    return x + 0 * slope(x, t) + abs(s - t) ** 0.5 * slope.noise(x)


SHAKEN = Solver(shaken, order=1, stochastic=True)


def still(x, t, cond):
    return torch.zeros_like(x)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_noise_of_a_step_is_a_function_of_seed_and_step_whatever_the_batch(batch_size):
    drawn = sampler(still, SHAKEN, batch_size=100).draw(SEEDS).x_1
    ours = sampler(still, SHAKEN, batch_size=batch_size)
    assert torch.equal(ours.draw(SEEDS).x_1, drawn)
    assert torch.equal(ours.draw(list(reversed(SEEDS))).x_1, drawn.flip(0))
    assert torch.equal(ours.follow(noise(SEEDS, (2,)), seeds=SEEDS).states[-1], drawn)
    # seeds that are others give others, of the same noise too
    moved = ours.follow(noise(SEEDS, (2,)), seeds=[seed + 100 for seed in SEEDS]).states[-1]
    assert not (moved == drawn).any()


def test_noise_of_a_stochastic_solver_is_standard_normal_new_at_every_step_and_not_that_of_the_start():
    many, steps = range(1500), 4
    states = (
        sampler(still, SHAKEN, steps, 1500)
        .follow(noise(many, (2,)), times=uniform_grid(steps).tolist(), seeds=many)
        .states
    )
    told = torch.cat([states[:1], states.diff(dim=0) * steps**0.5]).reshape(steps + 1, -1)
    assert told.mean(1).abs().max() < 4 / 3000**0.5
    # an estimate of a variance of 1 or of no covariance at all is off by 1.4 / sqrt(n) or less
    assert (torch.cov(told) - torch.eye(steps + 1)).abs().max() < 5 * 1.4 / 3000**0.5


def test_without_seeds_the_noise_of_a_row_follows_from_its_number():
    x_0 = noise(SEEDS, (2,))
    told, numbered = (sampler(still, SHAKEN).follow(x_0, seeds=seeds).states[-1] for seeds in (None, range(len(SEEDS))))
    assert torch.equal(told, numbered)
    assert not torch.equal(told, sampler(still, SHAKEN).follow(x_0, seeds=range(1, len(SEEDS) + 1)).states[-1])


def test_a_multistep_solver_starts_afresh_in_every_batch(field):
    whole, parts = (sampler(field, AB2, batch_size=size).draw(SEEDS, LABELS).x_1 for size in (100, 3))
    assert torch.allclose(whole, parts, atol=1e-6)
