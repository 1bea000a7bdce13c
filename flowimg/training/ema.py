"""The exponential moving average of the weights, kept as a second field beside the one that learns."""

import copy

import torch
from torch import Tensor, nn


def make_ema(field: nn.Module) -> nn.Module:
    """A copy of the field for the average: no gradients, evaluation mode (no dropout)."""
    return copy.deepcopy(field).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(ema: list[Tensor], parameters: list[Tensor], decay: float) -> None:
    """Average <- decay average + (1 - decay) parameters, all in one fused call. Our fields keep no state in buffers."""
    torch._foreach_lerp_(ema, parameters, 1 - decay)
