"""The irreducible loss against closed forms: Gaussian data, two points, and the loss of the best field itself."""

import math
from dataclasses import replace

import pytest
import torch

from flowimg.build.flow import build_objective
from flowimg.flow import irreducible
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.flow.irreducible import irreducible_loss, means_by_time
from flowimg.flow.objectives import Draw
from flowimg.flow.paths import Cosine, Linear
from flowimg.settings.run import Config

PATHS = [Linear(), Cosine()]


def flow_matching_loss(velocity, path, draw):
    return replace(build_objective(Config()), path=path).loss(velocity, draw)


def spread(count, *shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def times(count):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_gaussian_data_have_the_floor_of_the_closed_form(path):
    std, count = 0.7, 2000
    t = times(count) * 0.9
    draw = Draw(spread(count, 2), std * spread(count + 1, 2)[:count], t, Condition())
    got = irreducible_loss(path, draw, std * spread(20_000, 2), fresh=True)
    alpha, sigma = path.alpha(t), path.sigma(t)
    # a Gaussian seen through Gaussian noise: precisions add
    wanted = (path.alpha_prime(t) - path.sigma_prime(t) * alpha / sigma) ** 2 / (1 / std**2 + (alpha / sigma) ** 2)
    for part in torch.arange(count).split(count // 5):
        assert float(got[part].nanmean()) == pytest.approx(float(wanted[part].mean()), rel=0.01)


@pytest.mark.parametrize("path", PATHS, ids=["linear", "cosine"])
def test_two_pictures_have_the_floor_of_a_coin(path):
    a, b = torch.tensor([[[0.5, -0.25]], [[-0.5, 0.75]]], dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7])
    x_0, x_1 = spread(4, 1, 2), torch.stack([a, b, a, b])
    got = irreducible_loss(path, Draw(x_0, x_1, t, Condition()), torch.stack([a, b]))
    for row in range(4):
        at = t[row : row + 1].double()
        alpha, sigma = float(path.alpha(at)), float(path.sigma(at))
        x_t = alpha * x_1[row] + sigma * x_0[row]
        odds = math.exp(float(((x_t - alpha * b) ** 2 - (x_t - alpha * a) ** 2).sum()) / (2 * sigma**2))
        chance = odds / (1 + odds)
        slope = float(path.alpha_prime(at)) - float(path.sigma_prime(at)) * alpha / sigma
        wanted = slope**2 * chance * (1 - chance) * float(((a - b) ** 2).mean())
        assert float(got[row]) == pytest.approx(wanted, rel=1e-6)


def test_the_best_field_has_this_loss_and_another_a_higher_one():
    data = spread(30, 3)
    count = 40_000
    x_1 = data[torch.arange(count) % 30]
    draw = Draw(spread(count, 3), x_1, times(count), Condition())

    def best(x, t, cond=None):
        """E[u_t | x_t], written out for the linear path."""
        t = t[:, None, None]
        scores = -((x[:, None] - t * data) ** 2).sum(-1) / (2 * (1 - t[..., 0]) ** 2)
        mean = scores.softmax(1) @ data
        return (mean - x) / (1 - t[..., 0])

    floors = float(irreducible_loss(Linear(), draw, data).mean())
    assert float(flow_matching_loss(best, Linear(), draw).mean()) == pytest.approx(floors, rel=0.02)
    worse = flow_matching_loss(lambda x, t, cond: 0.5 * best(x, t), Linear(), draw).mean()
    assert float(worse) > 1.05 * floors


def test_a_class_leaves_its_own_data_alone():
    data, labels = spread(12, 2), torch.arange(12) % 3
    t = torch.full((12,), 0.5)
    x_0 = spread(13, 2)[:12]
    got = irreducible_loss(Linear(), Draw(x_0, data, t, Condition(labels)), data, labels)
    for label in range(3):
        own = labels == label
        alone = irreducible_loss(Linear(), Draw(x_0[own], data[own], t[own], Condition()), data[own])
        assert torch.allclose(got[own], alone)
    free = irreducible_loss(Linear(), Draw(x_0, data, t, Condition(torch.full((12,), NO_CLASS))), data, labels)
    assert torch.allclose(free, irreducible_loss(Linear(), Draw(x_0, data, t, Condition()), data))
    assert not torch.allclose(free, got)


def test_a_single_picture_leaves_nothing_to_guess():
    data = spread(1, 1, 4, 4).repeat(5, 1, 1, 1)
    draw = Draw(spread(5, 1, 4, 4), data, torch.tensor([0.0, 0.3, 0.6, 0.9, 0.999]), Condition())
    assert irreducible_loss(Linear(), draw, data[:1]).max() < 1e-9


def test_how_the_work_is_cut_does_not_matter(monkeypatch):
    data = spread(50, 2)
    draw = Draw(spread(9, 2), data[:9], times(9), Condition())
    whole = irreducible_loss(Linear(), draw, data)
    monkeypatch.setattr(irreducible, "PAIRS", 100)
    monkeypatch.setattr(irreducible, "CHUNK", 7)
    assert torch.allclose(irreducible_loss(Linear(), draw, data), whole)


def test_a_few_fresh_data_are_right_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    t, found = torch.tensor([0.02]), []
    for _ in range(1500):  # at the start x_t says next to nothing: Var[x_1 | x_t] is that of the data, 1
        x_0, x_1, data = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (1, 1, 25))
        found.append(irreducible_loss(Linear(), Draw(x_0, x_1, t, Condition()), data, fresh=True) * (1 - t) ** 2)
    # a plain weighted variance would be 4 % too small
    assert float(torch.cat(found).mean()) == pytest.approx(1, rel=0.015)


def test_too_few_data_near_x_t_are_no_answer():
    draw = Draw(spread(3, 2), spread(4, 2)[:3], torch.tensor([0.1, 0.5, 0.999]), Condition())
    assert irreducible_loss(Linear(), draw, spread(200, 2), fresh=True).isnan().tolist() == [False, False, True]
    # three at one place and the others out of reach: too few to tell a spread
    x_1 = torch.zeros(1, 2)
    draw = Draw(torch.zeros(1, 2), x_1, torch.tensor([0.9]), Condition())
    three = torch.cat([1e-3 * spread(3, 2), 50 + spread(9, 2)])
    assert irreducible_loss(Linear(), draw, three, fresh=True).isnan().all()
    assert not irreducible_loss(Linear(), draw, torch.cat([three, 1e-3 * spread(20, 2)]), fresh=True).isnan().any()


def test_means_by_time_leave_out_what_is_not_finite():
    t = torch.tensor([0.0, 0.09, 0.1, 0.55, 0.999, 1.0, 0.91, 0.92, 0.3])
    values = torch.tensor([1.0, 2.0, 4.0, float("nan"), 5.0, 7.0, float("inf"), float("-inf"), -1.0])
    assert [None if m != m else m for m in means_by_time(values, t)] == [1.5, 4.0, None, -1.0] + [None] * 5 + [6.0]
