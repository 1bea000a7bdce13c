"""The exponential moving average of the weights, kept as a second field beside the one that learns."""

import copy

import torch
from torch import nn


def make_ema(field: nn.Module) -> nn.Module:
    """A copy of the field for the average: no gradients, evaluation mode (no dropout)."""
    return copy.deepcopy(field).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(ema: nn.Module, field: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) field, all parameters in one fused call; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(field.parameters()), 1 - decay)
    for average, buffer in zip(ema.buffers(), field.buffers(), strict=True):
        average.copy_(buffer)
