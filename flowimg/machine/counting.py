"""What training a network costs, counted on the meta device: no weight is stored, and nothing is computed.

    operations  floating-point operations of the forward and the backward pass for one sample
    activations bytes that the forward pass stores for the backward pass, for each further sample

So networks of any size are counted on any machine, in the precision of a GPU: `Rounding` does on the meta device what
autocast does on CUDA.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowimg.machine.memory import kept_bytes

ROUNDED = {F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, torch.bmm, torch.baddbmm, Tensor.matmul}
"""Operations that autocast computes in bf16."""
EXACT = {F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax}
"""Operations that autocast computes in fp32."""


class Counts(NamedTuple):
    """Operations of the forward and the backward pass, and bytes stored between them, for one sample."""

    forward: int
    backward: int
    activations: int


class Rounding(TorchFunctionMode):
    """Autocast to bf16, which the meta device does not have; and attention as one kernel, as on a GPU."""

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        attends = func is F.scaled_dot_product_attention
        dtype = torch.bfloat16 if attends or func in ROUNDED else torch.float32 if func in EXACT else None
        if self.bf16 and dtype:
            args = [_to(dtype, value) for value in args]
            kwargs = {name: _to(dtype, value) for name, value in kwargs.items()}
        if attends:  # on the meta device torch would take the matrix of all pairs apart, and store it
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _to(dtype: torch.dtype, value: Any) -> Any:
    """The same value; a tensor of floating-point numbers rounded."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
    """Attention by the kernel whose memory is linear in the number of tokens."""
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, more.get("attn_mask"), True)[0]


def count(field: nn.Module, shape: tuple[int, ...], bf16: bool) -> Counts:
    """Operations and activations of a network on the meta device, with gradient checkpointing if it has it.

    Args:
        field: The network, on the meta device.
        shape: Shape of a sample, *D.
        bf16: Whether it is trained in bf16, as a GPU does; else in fp32.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    def loss(size: int) -> Tensor:
        x, t = (torch.empty(size, *rest, device="meta") for rest in (shape, ()))
        return (field(x, t).float() - x).square().flatten(1).mean()

    field.train()
    with Rounding(bf16):
        one, two = (kept_bytes(field, partial(loss, size)) for size in (1, 2))
    with FlopCounterMode(display=False) as forward:  # operations are the same in any precision
        found = loss(1)
    with FlopCounterMode(display=False) as backward:
        found.backward()
    return Counts(forward.get_total_flops(), backward.get_total_flops(), two - one)
