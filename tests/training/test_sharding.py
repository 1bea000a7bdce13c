"""What lies on each of two processes that share one copy of a field."""

import pytest
import torch
from survival import on_two
from torch import nn

from flowimg.fields.unet import UNetField, new_unet
from flowimg.training import sharding
from flowimg.training.sharding import keeps, units

TWO = """
import copy, sys
import torch
from accelerate import Accelerator
from torch import nn
from flowimg.build.strategy import strategy_of
from flowimg.fields.unet import UNetField, new_unet
from flowimg.flow.couplings import Independent
from flowimg.flow.objectives import FlowMatching
from flowimg.flow.paths import Linear
from flowimg.flow.times import LogitNormal
from flowimg.training import parts
from flowimg.training.optimisers.muon import orthogonal
from flowimg.training.parts import kind_of
from flowimg.training.schedules import cosine
from flowimg.training.sharding import Sharded
from flowimg.training.state import Recipe, restore, saved, start
from flowimg.training.strategies import Strategy

ours = strategy_of(Accelerator(cpu=True), 2)
me = ours.process
assert type(ours) is Sharded and (ours.shard, ours.copies, ours.part) == (2, 1, me)

def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

torch.manual_seed(0)
field = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1), nn.Linear(1, 3))
plain = copy.deepcopy(field)
weights = {name: p.detach().clone() for name, p in field.named_parameters()}
wrapped, (average,) = ours.spread(field, 1)
here = ours.here(field.parameters())

# rows: the first process has the larger half, and of a single row all
assert [len(p) for p in here] == ([4, 4, 1, 1, 2, 2] if me == 0 else [3, 3, 0, 0, 1, 1]), here
for name, part, kept in zip(weights, here, average.parameters(), strict=True):
    own = weights[name][:len(part)] if me == 0 else weights[name][-len(part):] if len(part) else part
    assert torch.equal(part, own) and torch.equal(kept, own)
    assert len(part) == 0 or kept.data_ptr() != part.data_ptr()
assert sum(p.numel() for p in average.parameters()) == sum(p.numel() for p in here)

# the gradient is the mean over processes, and lies in the parts
x = draw(6, 5, seed=me)
wrapped(x).square().mean().backward()
ours.hand_over(field, here)
means = []
for seed in (0, 1):
    plain.zero_grad()
    plain(draw(6, 5, seed=seed)).square().mean().backward()
    means.append([p.grad.clone() for p in plain.parameters()])
means = [(a + b) / 2 for a, b in zip(*means, strict=True)]
for p, part, mean in zip(field.parameters(), here, means, strict=True):
    assert p.grad is None
    torch.testing.assert_close(part.grad, ours.rows(mean), rtol=1e-5, atol=1e-7)
torch.testing.assert_close(ours.norm([part.grad for part in here]), torch.cat([g.flatten() for g in means]).norm())

# what moves here moves the field, on both; an average does not follow
with torch.no_grad():
    for part in here:
        part.add_(1)
with ours.whole(field) as whole:
    assert not whole.training and all(torch.equal(p, weights[n] + 1) for n, p in whole.named_parameters())
    y = draw(2 + me, 5, seed=9)  # unequal shares: nobody waits for another
    for _ in range(1 + 2 * me):
        assert whole(y).shape == (2 + me, 3)
with ours.whole(average) as whole:
    assert all(torch.equal(p, weights[name]) for name, p in whole.named_parameters())
out = wrapped(y[:2])
torch.testing.assert_close(out, nn.functional.linear(
    nn.functional.linear(nn.functional.linear(y[:2], weights["0.weight"] + 1, weights["0.bias"] + 1).relu(),
    weights["2.weight"] + 1, weights["2.bias"] + 1), weights["3.weight"] + 1, weights["3.bias"] + 1))
out.sum().backward()
field.zero_grad()

# whole matrices are worked on once each, three of them on two processes
matrices = draw(3, 5, 4, seed=3)
rows = matrices[:, :3] if me == 0 else matrices[:, 3:]
seen = []
def work(whole):
    seen.append(len(whole))
    return orthogonal(whole)
whole = orthogonal(matrices)
torch.testing.assert_close(ours.matrices(rows, 5, work), whole[:, :3] if me == 0 else whole[:, 3:])
assert seen == [2]

# saved by its owner only, whole; loaded as rows
for number in (0, 1, 2):
    for name, part in zip(weights, here, strict=True):
        found = ours.collect(part, weights[name].shape, number)
        assert (found is not None) == ours.owns(number) == (number % 2 == me)
        assert found is None or torch.equal(found, weights[name] + 1)
ours.load(field, weights)
ours.load(average, {name: 2 * p for name, p in weights.items()})
with ours.whole(average) as whole:
    assert all(torch.equal(p, 2 * weights[name]) for name, p in whole.named_parameters())
assert all(torch.equal(part, ours.rows(weights[name])) for name, part in zip(weights, here, strict=True))
for wrong in ({}, {**weights, "x": x}, {**weights, "0.bias": torch.zeros(8)}):
    try:
        ours.load(field, wrong)
    except ValueError:
        continue
    raise AssertionError(f"loaded {list(wrong)}")

# a run that has moved: its files are the same, whoever writes them, and each is written once
parts.PART = 100
def a_run(strategy):
    torch.manual_seed(1)
    objective = FlowMatching(Linear(), Independent(), LogitNormal(0.0, 1.0), True, 1.5, (), 8, 0)
    recipe = Recipe(steps=10, schedule=cosine, lengths=(0.05,))
    return start(strategy, nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1)), objective, lambda: None, recipe)

single = Strategy(ours.accelerator)
single.owns = lambda number: True
first = a_run(single)
for p in first.moved:
    p.grad = draw(*p.shape, seed=p.numel())
first.optimizer.step()
files, names = saved(first)
kinds = {}
for name, held in files.items():
    kinds.setdefault(kind_of(name), {}).update(held)
assert len(names) == len(files) > 8 and kinds["optimizer"]["step.0.weight"].item() == 1
second = a_run(ours)
restore(second, 1, kinds)
own, again = saved(second)
assert again == names and list(own) == names[me::2]
for name, held in own.items():
    assert list(held) == list(files[name])
    assert all(torch.equal(value, files[name][key]) for key, value in held.items()), name

# nothing whole stays: half the numbers, but for rows that cannot be halved, and their memory
unet = UNetField(new_unet(8, 3, channels=(32, 64), layers=1))
total = sum(p.numel() for p in unet.parameters())
_, (average,) = ours.spread(unet, 1)
for held in (unet, average):
    lying = ours.here(held.parameters())
    assert sum(p.numel() for p in lying) < 1.01 * total / 2
    assert sum(p.untyped_storage().nbytes() for p in lying) < 1.01 * 4 * total / 2
slots = second.optimizer.state_dict()["state"].values()
moments = sum(slot["exp_avg"].numel() + slot["exp_avg_sq"].numel() for slot in slots)
assert moments == 2 * sum(p.numel() for p in second.moved)
"""


@pytest.mark.slow
def test_two_processes_hold_a_part_each_and_together_the_field(tmp_path):
    on_two(TWO, tmp_path)


def empty_unet():
    with torch.device("meta"):
        return UNetField(new_unet(8, 3, channels=(32, 64), layers=1))


def test_units_are_the_blocks_of_a_network_and_the_rest(monkeypatch):
    unet = empty_unet()
    assert units(unet) == [unet]  # 0.9 million parameters: it is small
    monkeypatch.setattr(sharding, "SMALL", 0)
    inner = unet.unet
    assert units(unet) == [*inner.down_blocks, inner.mid_block, *inner.up_blocks, unet] and len(units(unet)) == 6
    plain = nn.Linear(2, 3)
    assert units(plain) == [plain]


def test_gathered_weights_are_kept_up_to_a_quarter_of_the_memory():
    assert keeps(10**9, 24e9) and not keeps(10**9, 23.9e9)
