"""What a step may move, where the host knows and where it does not."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flowimg.training.flags import Reading, StepFlags
from flowimg.training.loop import clip
from flowimg.training.strategies import Strategy

NUMBERS = st.sampled_from([0.0, -3.5, 1e38, float("inf"), float("nan")])
HOST = Strategy(SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0, is_main_process=True))


def verdict(late):
    found = StepFlags(HOST)
    found.late = late  # as with CUDA
    found.events = [SimpleNamespace(record=lambda: None, synchronize=lambda: None)] * 2
    return found


@settings(max_examples=50, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(NUMBERS, st.integers(0, 3))))
def test_flags_are_counted_as_they_come(steps):
    ours = verdict(False)
    ours.start_at(2, 5)
    in_row, skipped, last = 2, 5, 0
    for number, stop in steps:
        bad = not abs(number) < float("inf")
        in_row, skipped, last = bad * (in_row + 1), skipped + bad, stop
        hold = ours.share(torch.tensor(number), stop)
        assert isinstance(hold, float) and hold == bad
        assert ours.counted() == {"in_row": in_row, "skipped": skipped}  # before it is read, as after
        assert ours.read() == Reading(in_row, skipped, stop)
    assert ours.counted() == {"in_row": in_row, "skipped": skipped} and ours.read() == Reading(in_row, skipped, last)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(steps=st.lists(st.tuples(NUMBERS, st.integers(0, 3)), min_size=1))
def test_a_gpu_tells_a_step_later_and_can_be_waited_for(steps):
    ours = verdict(True)
    in_row, skipped, before = 0, 0, Reading()
    for number, stop in steps:
        bad = not abs(number) < float("inf")
        hold = ours.share(torch.tensor(number), stop)
        assert isinstance(hold, torch.Tensor) and hold == bad
        in_row, skipped = bad * (in_row + 1), skipped + bad
        assert ours.counted() == {"in_row": in_row, "skipped": skipped}
        assert ours.read() == before
        before = Reading(in_row, skipped, stop)


def test_a_negative_infinity_and_a_sum_of_both_are_not_finite():
    for number in (float("-inf"), float("inf") - float("inf")):
        assert verdict(False).share(torch.tensor(number), 0) == 1.0


@pytest.mark.parametrize("limit", [None, 0.5, 3.0, 1000.0])
def test_gradients_are_clipped_as_torch_does_to_the_bit(limit):
    ours, theirs = ([nn.Parameter(torch.zeros(s)) for s in ((4, 3), (7,), (2, 3, 2), (5,))] for _ in range(2))
    for seed, (p, q) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):  # the last has none
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        q.grad = p.grad.clone()
    norm = clip(ours, limit, HOST)
    told = nn.utils.clip_grad_norm_(theirs, float("inf") if limit is None else limit, foreach=True)
    assert torch.equal(norm, told) and 3.0 < norm < 1000
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours[:-1], theirs[:-1], strict=True))
