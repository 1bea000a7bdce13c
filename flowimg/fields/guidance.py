"""Classifier-free guidance in velocity form.

    v = v(x, t, no class) + scale (v(x, t, class) - v(x, t, no class))

scale 1 is the plain conditional field, 0 the unconditional one; above 1 samples fit their class better and vary less.
Source: Ho and Salimans 2022, arXiv:2207.12598.
"""

import torch
from torch import Tensor

from flowimg.flow.objective import NO_CLASS, Velocity


class Guided:
    """A guided velocity: both evaluations of the field in one batch of twice the size."""

    def __init__(self, field: Velocity, scale: float) -> None:
        self.field, self.scale = field, scale

    def evaluations(self, t: float) -> int:
        """Evaluations of the network a sample at time t."""
        return 2

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Guided velocity, shape of x; `cond` must be labels, shape (B,)."""
        if cond is None:
            raise ValueError("guidance needs labels to guide towards: pass cond, shape (B,), or use the field itself")
        both = self.field(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, torch.full_like(cond, NO_CLASS)]))
        towards, free = both.chunk(2)
        return free + self.scale * (towards - free)


def guided(field: Velocity, scale: float) -> Velocity:
    """The field guided towards its class; at scale 1 the field itself, which costs half."""
    return field if scale == 1 else Guided(field, scale)
