"""The exponential moving average of the weights, kept as a second field beside the one that learns."""

import copy

import torch
from torch import Tensor, nn


def make_ema(field: nn.Module) -> nn.Module:
    """A copy of the field for the average: no gradients, evaluation mode (no dropout)."""
    return copy.deepcopy(field).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(ema: list[Tensor], parameters: list[Tensor], decay: float, hold: Tensor) -> None:
    """Average <- average + (1 - decay)(parameters - average), or nothing where `hold` is 1.

    All in three fused calls, and nobody waits to know what `hold` is. Our fields keep no state in buffers.
    """
    moves = torch._foreach_sub(parameters, ema)
    torch._foreach_mul_(moves, (1 - decay) * (1 - hold))
    torch._foreach_add_(ema, moves)
