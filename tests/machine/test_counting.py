"""Networks counted on the meta device, against operations and bytes worked out by hand and those of a real pass."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowimg.fields.unet import UNetField, new_unet
from flowimg.machine.counting import count
from flowimg.machine.memory import kept_bytes
from flowimg.machine.throughput import pass_flops


class Two(nn.Module):
    """Two linear layers of 8 x 8 with a ReLU between, on 16 rows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, t, cond=None):
        return self.two(torch.relu(self.one(x)))


class Attends(nn.Module):
    def forward(self, x, t, cond=None):
        h = x * self.scale
        return F.scaled_dot_product_attention(h, h, h)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def small_unet(**more):
    return UNetField(new_unet(8, 3, channels=(32, 64), layers=1, zero_output=False), **more)


def empty(make):
    with torch.device("meta"):
        return make()


def test_operations_by_hand():
    """A product of 16 x 8 and 8 x 8 is 2 x 16 x 8 x 8; backward it is one for the weights and one for the input."""
    product = 2 * 16 * 8 * 8
    counts = count(empty(Two), (16, 8), bf16=False)
    assert counts.forward == 2 * product
    assert counts.backward == 3 * product  # nobody needs the gradient of x


@pytest.mark.parametrize(("bf16", "size"), [(False, 4), (True, 2)])
def test_activations_by_hand(bf16, size):
    """Kept for the backward pass: both inputs of the layers (the ReLU's output is one), and the loss's difference."""
    counts = count(empty(Two), (16, 8), bf16)
    assert counts.activations == 16 * 8 * (size + size + 4)


def test_attention_keeps_no_matrix_of_all_pairs():
    few, many = (count(empty(Attends), (1, n, 64), bf16=True) for n in (64, 256))
    assert many.forward == 16 * few.forward == 2 * 2 * 256 * 256 * 64
    assert 3.5 * few.activations < many.activations < 4.5 * few.activations


def test_a_meta_network_is_counted_as_a_real_one():
    real = small_unet().train()

    def loss(size):
        x = torch.zeros(size, 3, 8, 8)
        return (real(x, torch.zeros(size)) - x).square().flatten(1).mean()

    counts = count(empty(small_unet), (3, 8, 8), bf16=False)
    assert counts.activations == pytest.approx(
        kept_bytes(real, partial(loss, 2)) - kept_bytes(real, partial(loss, 1)), rel=0.1
    )
    assert counts.forward + counts.backward == pytest.approx(pass_flops(real.eval(), (3, 8, 8)), rel=0.03)


def test_gradient_checkpointing_computes_again_and_keeps_less():
    plain, again = (
        count(empty(partial(small_unet, gradient_checkpointing=recomputes)), (3, 8, 8), bf16=True)
        for recomputes in (False, True)
    )
    assert again.forward == plain.forward
    assert plain.backward + 0.5 * plain.forward < again.backward <= plain.backward + plain.forward
    assert again.activations < 0.6 * plain.activations
