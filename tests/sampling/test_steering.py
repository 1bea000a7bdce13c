"""Drawing from given pictures: what is known stays, what is drawn fits, and strength runs from all to nothing."""

import math

import pytest
import torch

from flowimg.build.flow import PATHS
from flowimg.build.sampler import SOLVERS
from flowimg.fields.guidance import Guided
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.flow.paths import Linear
from flowimg.flow.solvers import EULER, HEUN, dopri5
from flowimg.flow.times import uniform_grid
from flowimg.sampling.sampler import Sampler, noise
from flowimg.sampling.steering import from_inverted, from_noised, in_rounds, inpaint

SEEDS = [3, 9, 4, 4, 70]
RHO = 0.9
"""Correlation of the two numbers of a sample."""


def pair(path):
    """The exact velocity of pairs that are normal with mean 0, variance 1 and correlation RHO."""
    cov = torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)

    def velocity(x, t, cond=None):
        t = t.double()[:1]
        alpha, sigma = path.alpha(t), path.sigma(t)
        whole = alpha**2 * cov + sigma**2 * torch.eye(2)
        half = path.alpha_prime(t) * alpha * cov + path.sigma_prime(t) * sigma * torch.eye(2)
        return (x.double() @ (half @ torch.linalg.inv(whole)).T).to(x)

    return velocity


def sampler(velocity, solver=EULER, steps=40, **more):
    return Sampler(velocity, (2,), solver, uniform_grid(1 if solver.adaptive else steps), batch_size=3, **more)


FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]
LEFT = torch.tensor([[True, False]])
"""The first number is drawn, the second is known."""


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("kind", PATHS)
def test_what_is_known_comes_back_to_the_bit(kind, name, rounds):
    if SOLVERS[name].multistep and rounds > 1:
        pytest.skip("it uses the step before")
    path, x_1 = PATHS[kind](None), torch.randn(5, 2)
    found = inpaint(sampler(pair(path), SOLVERS[name], path=path), x_1, LEFT, SEEDS, rounds=rounds, length=10)
    assert torch.equal(found.states[-1][:, 1], x_1[:, 1])
    assert not torch.isclose(found.states[-1][:, 0], x_1[:, 0]).any()
    assert found.states[-1][2, 0] != found.states[-1][3, 0]  # one seed, other pictures
    steps = SOLVERS[name].order if name != "churn" else 2
    # the first stretch of ten is made once
    assert found.nfe == (40 + 30 * (rounds - 1)) * {"ab2": 1, "rk4": 4}.get(name, steps)


def test_what_is_drawn_fits_what_is_known_and_better_in_rounds():
    """Given the second number, the first is normal around RHO times it, with variance 1 - RHO^2."""
    known = torch.full((2000, 2), 1.5)
    off = {}
    for rounds in (1, 8):
        whole = Sampler(pair(Linear()), (2,), EULER, uniform_grid(40), batch_size=2000)
        drawn = inpaint(whole, known, LEFT, range(2000), rounds=rounds, length=4).states[-1][:, 0]
        off[rounds] = abs(drawn.mean() - RHO * 1.5).item() + abs(drawn.std() - math.sqrt(1 - RHO**2)).item()
    unaware = sampler(pair(Linear())).draw(range(300)).x_1[:, 0]
    assert abs(unaware.mean()) < 0.2  # without the known part it is anywhere
    assert off[8] < 0.5 * off[1] and off[8] < 0.15, off


def test_the_same_pictures_whatever_the_batch():
    path, x_1 = Linear(), torch.randn(5, 2)
    for draw in (
        lambda some: inpaint(some, x_1, LEFT, SEEDS, rounds=3),
        lambda some: from_noised(some, x_1, SEEDS, 0.5),
        lambda some: from_inverted(some, x_1, SEEDS, 0.5),
    ):
        small, large = (
            draw(Sampler(pair(path), (2,), HEUN, uniform_grid(10), batch_size=size)).states[-1] for size in (2, 64)
        )
        torch.testing.assert_close(small, large, atol=1e-6, rtol=0)


def test_the_times_of_rounds():
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert torch.equal(in_rounds(times, 1, 2), times)
    assert in_rounds(times, 3, 3).tolist() == [0, 0.25, 0.5, 0.75, 1, 0.75, 1, 0.75, 1]
    assert in_rounds(times, 2, 2).tolist() == [0, 0.25, 0.5, 0.75, 1, 0.5, 0.75, 1]


@pytest.mark.parametrize("solver", [EULER, dopri5(1e-6), SOLVERS["sde"]], ids=["euler", "dopri5", "sde"])
def test_strength_runs_from_nothing_to_all(solver):
    ours, x_1 = sampler(pair(Linear()), solver), torch.randn(5, 2)
    for little in (0.0, 1e-12, 1e-7):
        assert torch.equal(from_noised(ours, x_1, SEEDS, little).states[-1], x_1)
    all_new = from_noised(ours, x_1, SEEDS, 1.0)
    torch.testing.assert_close(all_new.states[-1], ours.draw(SEEDS).x_1)
    some = [(from_noised(ours, x_1, SEEDS, by).states[-1] - x_1).norm().item() for by in (0.1, 0.4, 0.8)]
    assert 0 < some[0] < some[1] < some[2]


def test_the_flow_starts_at_1_minus_strength_on_the_path():
    seen, x_1 = [], torch.randn(3, 2)

    def velocity(x, t, cond):
        seen.append((t[0].item(), x))
        return torch.zeros_like(x)

    from_noised(sampler(velocity, steps=10), x_1, SEEDS[:3], 0.65)
    assert [round(t, 6) for t, _ in seen] == [0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    torch.testing.assert_close(seen[0][1], 0.35 * x_1 + 0.65 * noise(SEEDS[:3], (2,)))


def test_an_inverted_picture_comes_back_and_turns_into_that_of_the_seed():
    ours, x_1 = sampler(pair(Linear()), dopri5(1e-7)), torch.randn(5, 2)
    torch.testing.assert_close(from_inverted(ours, x_1, SEEDS, 0.0).states[-1], x_1, atol=1e-4, rtol=0)
    torch.testing.assert_close(from_inverted(ours, x_1, SEEDS, 1.0).states[-1], ours.draw(SEEDS).x_1, atol=1e-4, rtol=0)


def test_the_way_to_the_noise_is_without_class_and_guidance():
    seen = []

    def field(x, t, cond):
        seen.append((len(x), set(cond.label.tolist())))
        return torch.zeros_like(x)

    ours = sampler(Guided(field, 2.0), steps=2)
    from_inverted(ours, torch.randn(3, 2), SEEDS[:3], 0.5, Condition(torch.tensor([1, 1, 1])))
    assert seen == [(3, {NO_CLASS})] * 2 + [(6, {1, NO_CLASS})] * 2
