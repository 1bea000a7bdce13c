"""The gradient is weighted; the losses that are told are not."""

import copy

import pytest
import torch
from accelerate import Accelerator

from flowimg.build.data import build_source
from flowimg.build.facts import DataFacts
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.strategy import strategy_of
from flowimg.settings.reading import validate
from flowimg.settings.run import Config
from flowimg.training.loop import train_step
from flowimg.training.state import Recipe, start

WEIGHTINGS = [{"kind": "none"}, {"kind": "cosmap"}, {"kind": "power", "a": 0.5, "b": 2.0}]


def one_step(weighting, accumulation=1):
    """A step on points, without clipping: the state after it, and its field as it was before."""
    options = {"weighting": weighting, "train": {"batch_size": 64}, "field": {"kind": "mlp", "zero_output": False}}
    config = validate(Config, options, "test")
    field = build_field(config, DataFacts((2,), ()))
    before = copy.deepcopy(field)
    data = build_source(config).load(torch.device("cpu"))
    recipe = Recipe(steps=10, accumulation=accumulation, clip=None)
    state = start(strategy_of(Accelerator(cpu=True)), field, build_objective(config), data, recipe)
    train_step(state)
    return state, before


def weights(t, kind, a=0.0, b=0.0):
    if kind == "none":
        return torch.ones_like(t)
    if kind == "cosmap":
        return 2 / torch.pi / (t**2 + (1 - t) ** 2)
    return torch.exp(torch.distributions.Beta(a + 1, b + 1).log_prob(t))


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda weighting: weighting["kind"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradient_is_that_of_the_weighted_loss_and_the_loss_told_is_plain(weighting, accumulation):
    state, before = one_step(weighting, accumulation)
    draw = state.draw(0, range(64))
    losses = state.objective.loss(before, draw)
    (weights(draw.t, **weighting) * losses).mean().backward()
    torch.testing.assert_close(torch.cat(state.window.losses), losses.detach())
    for ours, theirs in zip(state.parameters, before.parameters(), strict=True):
        # the first average of AdamW is 0.1 of the first gradient
        torch.testing.assert_close(state.optimizer.state[ours]["exp_avg"], 0.1 * theirs.grad, atol=1e-7, rtol=1e-4)


def test_weightings_differ_in_the_gradient_alone():
    (plain, _), (weighted, _) = one_step({"kind": "none"}), one_step({"kind": "cosmap"})
    assert torch.equal(torch.cat(plain.window.losses), torch.cat(weighted.window.losses))
    assert not torch.equal(plain.window.grad_norms[0], weighted.window.grad_norms[0])
