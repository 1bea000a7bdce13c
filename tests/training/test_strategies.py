"""What the loop asks of processes, of one and of two."""

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from survival import on_two
from torch import nn

from flowimg.build.strategy import strategy_of
from flowimg.training.strategies import DataParallel, Strategy


@pytest.fixture
def single():
    AcceleratorState._reset_state(reset_partial_state=True)  # another precision than that of a test before
    yield strategy_of(Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)


def tensors(count, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (7,), (2, 3, 2), (), (1, 50), (33, 5)]
    scales = torch.logspace(-3, 3, len(shapes)).tolist()
    return [torch.randn(s, generator=generator) * c for s, c in zip(shapes, scales, strict=True)][:count]


def test_one_process_is_the_first_and_only_one(single):
    assert type(single) is Strategy
    assert (single.process, single.processes, single.is_first, single.warms_up) == (0, 1, True, False)
    assert single.device.type == "cpu" and single.scaler is None


@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_norm_is_that_of_torch_to_the_bit_and_of_all_numbers(single, count):
    for seed in range(20):
        these = tensors(count, seed)
        norm = single.norm(these)
        assert norm.shape == () and torch.equal(norm, nn.utils.get_total_norm(these))
        exact = torch.cat([value.double().flatten() for value in these]).norm()
        torch.testing.assert_close(norm.double(), exact, rtol=1e-6, atol=0)


def test_one_process_has_the_whole_of_everything(single):
    field = nn.Linear(2, 3)
    with single.whole(field) as whole:
        assert whole is field
    assert single.wrap(field) is field  # in fp32 there is nothing to wrap
    value, flags = torch.randn(3), torch.tensor([0.0, 2.0])
    assert (
        torch.equal(single.collect(value, None, 0), value)
        and single.rows(value) is value
        and single.gather_rows(value) is value
        and single.sum(value) is value
    )
    single.largest(flags)
    assert flags.tolist() == [0, 2]
    assert isinstance(single.no_sync(field), nullcontext) and single.wait() is None


def test_a_module_is_set_to_the_tensors_it_is_given(single):
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    single.load(one, other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with torch.no_grad():
        other.weight.add_(1)
    assert not torch.equal(one.weight, other.weight)


def test_without_autocast_nothing_is_rounded_and_with_it_products_are(single):
    x = torch.randn(3, 3)
    with single.autocast():
        assert (x @ x).dtype == torch.float32
    AcceleratorState._reset_state(reset_partial_state=True)
    rounding = strategy_of(Accelerator(cpu=True, mixed_precision="bf16"))
    with rounding.autocast():
        assert (x @ x).dtype == torch.bfloat16
    seen, field = [], nn.Sequential(nn.Linear(3, 3))
    field[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    assert rounding.wrap(field)(x).dtype == torch.float32 and seen == [torch.bfloat16]


TWO = """
import torch
from accelerate import Accelerator
from torch import nn
from flowimg.build.strategy import strategy_of
from flowimg.training.strategies import DataParallel

ours = strategy_of(Accelerator(cpu=True))
me = ours.process
assert type(ours) is DataParallel and ours.processes == 2 and ours.warms_up and ours.is_first == (me == 0)

flags = torch.tensor([float(me), 3.0 - me])
ours.largest(flags)
assert flags.tolist() == [1, 3], flags
assert ours.gather_rows(torch.tensor([[me, 1.0], [me, 2.0]])).tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
assert ours.sum(torch.tensor(2.0 + me)).item() == 5

# the gradient of each process is x: 1 on one, 3 on the other
field = nn.Linear(1, 1, bias=False)
wrapped, x = ours.wrap(field), torch.tensor([[1.0 + 2 * me]])
with ours.no_sync(wrapped):
    wrapped(x).sum().backward()
assert field.weight.grad.item() == 1 + 2 * me, field.weight.grad
wrapped(x).sum().backward()
assert field.weight.grad.item() == 4, field.weight.grad  # the mean of 2 and 6
with ours.whole(field) as whole:
    assert whole is field
assert ours.norm([field.weight.grad]).item() == 4
ours.wait()
"""


@pytest.mark.slow
def test_two_processes_agree_on_flags_rows_sums_and_gradients(tmp_path):
    on_two(TWO, tmp_path)
    assert issubclass(DataParallel, Strategy)
