"""Our AdamW against torch's own, bit for bit."""

import pytest
import torch
from torch import nn

from flowimg.training.optimisers.adamw import AdamW

HOW = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters():
    return [nn.Parameter(drawn(*shape, seed=n)) for n, shape in enumerate([(4, 3), (5,), (2, 3, 3)])]


@pytest.mark.parametrize("known", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("held", [(), (0,), (1,)], ids=["every step", "the first held back", "one held back"])
def test_it_moves_as_torch_does_also_when_it_goes_on(held, known):
    ours, theirs = parameters(), parameters()
    mine, reference = AdamW(ours, **HOW), torch.optim.AdamW(theirs, fused=True, **HOW)
    for step in range(4):
        for n, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = drawn(*p.shape, seed=10 * step + n)
            q.grad = p.grad.clone()
        reference.found_inf = torch.tensor(float(step in held))
        mine.found_inf = float(step in held) if known else reference.found_inf
        mine.step()
        reference.step()
        mine.zero_grad()
        assert all(p.grad is None for p in ours)
        if step == 2:  # go on from what was kept
            kept = mine.state_dict()
            mine = AdamW(ours, **HOW)
            mine.load_state_dict(kept)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(ours, parameters(), strict=True))


def test_a_step_is_not_recorded_for_a_gradient():
    p = nn.Parameter(torch.ones(3))
    optimizer = AdamW([p], **HOW)
    (p * p).sum().backward()
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert p.grad_fn is None and p.requires_grad
