"""Muon against its definition by singular values, and AdamW where it is AdamW."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowimg.fields.mlp import MLPField
from flowimg.fields.unet import UNetField, new_unet
from flowimg.training.optimisers.muon import Muon, hidden_matrices, orthogonal


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_values(matrix):
    """What the iteration makes of a matrix, worked out on its singular values alone."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_singular_values_are_moved_and_nothing_else(rows, columns, seed):
    x = drawn(3, rows, columns, seed=seed)
    found = orthogonal(x)
    for one, wanted in zip(found, x, strict=True):
        torch.testing.assert_close(one.double(), by_values(wanted), atol=2e-4, rtol=0)
    torch.testing.assert_close(orthogonal(x[1:2])[0], found[1], atol=1e-5, rtol=0)  # each as if it were alone
    torch.testing.assert_close(orthogonal(1e3 * x), found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16), (24, 96), (96, 24)])
def test_what_was_far_from_orthogonal_is_near_it(shape):
    """Singular values over two orders of magnitude end between 0.65 and 1.25, also in bf16."""
    u, _, v = torch.linalg.svd(drawn(*shape), full_matrices=False)
    x = (u * torch.logspace(-2, 0, min(shape))) @ v
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.linalg.svdvals(orthogonal(x[None], dtype)[0])
        assert values.max() < 1.25 and values.min() > 0.65, dtype
    assert torch.equal(orthogonal(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def parameters(seed=0):
    """A matrix, a convolution of its shape when flat, one of another, a vector and an edge."""
    shapes = [(8, 27), (8, 3, 3, 3), (12, 8, 1, 1), (8,), (5, 8)]
    return [nn.Parameter(drawn(*shape, seed=seed + n)) for n, shape in enumerate(shapes)]


def whole(params):
    """The first three, whole."""
    return {p: len(p) for p in params[:3]}


def test_steps_are_those_of_the_definition_and_of_adamw_elsewhere():
    ours, theirs = parameters(), parameters()
    lr, decay, mu = 0.02, 0.1, 0.9
    muon = Muon(ours, whole(ours), mu, lr=lr, weight_decay=decay, betas=(0.9, 0.99))
    adamw = torch.optim.AdamW(theirs[3:], lr=lr, weight_decay=decay, betas=(0.9, 0.99))
    matrices = [p.detach().double().flatten(1) for p in theirs[:3]]
    momenta = [torch.zeros_like(w) for w in matrices]
    for step in range(3):
        for n, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = q.grad = drawn(*p.shape, seed=100 * step + n)
        muon.step()
        adamw.step()
        for n, w in enumerate(matrices):
            g = theirs[n].grad.double().flatten(1)
            momenta[n] = mu * momenta[n] + (1 - mu) * g
            update = by_values((1 - mu) * g + mu * momenta[n])
            matrices[n] = (1 - lr * decay) * w - 0.2 * lr * max(w.shape) ** 0.5 * update
    for p, w in zip(ours, matrices, strict=False):
        torch.testing.assert_close(p.detach().double().flatten(1), w, atol=1e-5, rtol=0)
    for p, q in zip(ours[3:], theirs[3:], strict=True):
        torch.testing.assert_close(p, q)
    assert all(p.grad is not None for p in ours)  # left as they were found


@pytest.mark.parametrize("known", [float, torch.tensor], ids=["host", "device"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0])
def test_a_step_that_is_held_back_moves_nothing(bad, known):
    params = parameters()
    muon = Muon(params, whole(params), lr=0.1, weight_decay=0.5)
    for held in (0.0, 1.0):
        for n, p in enumerate(params):
            p.grad = drawn(*p.shape, seed=n) * (bad if held else 1)
        before = [p.detach().clone() for p in params]
        slots = [{name: value.clone() for name, value in muon.state[p].items()} for p in params]
        muon.found_inf = known(held)
        muon.step()
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True)) == bool(held)
    for p, kept in zip(params, slots, strict=True):
        assert all(torch.equal(muon.state[p][name], value) for name, value in kept.items() if name != "step")


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped():
    def steps(muon, params, numbers):
        for number in numbers:
            for n, p in enumerate(params):
                p.grad = drawn(*p.shape, seed=100 * number + n)
            muon.step()

    straight, halves = parameters(), parameters()
    steps(Muon(straight, whole(straight), lr=0.1), straight, range(4))
    first = Muon(halves, whole(halves), lr=0.1)
    steps(first, halves, range(2))
    second = Muon(halves, whole(halves), lr=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, halves, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(straight, halves, strict=True))


def test_hidden_matrices_are_those_between_hidden_units():
    unet = UNetField(new_unet(16, 3, 4, channels=(32, 64)), 4, numbers={"augmentation": 9})
    mine = hidden_matrices(unet)
    for name, p in unet.named_parameters():
        outside = ("conv_in.", "conv_out.", "class_embedding.", "augment.")
        assert (name in mine) == (p.ndim >= 2 and not any(word in name for word in outside)), name
    mlp = MLPField(2, 4, width=8, depth=3)
    assert [tuple(mlp.get_parameter(name).shape) for name in hidden_matrices(mlp)] == [(8, 8), (8, 8)]
    assert len(hidden_matrices(nn.Linear(3, 3))) == 1  # a field that names no edges
