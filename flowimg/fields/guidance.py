"""Classifier-free guidance in velocity form.

    v = v(x, t, no class) + scale (v(x, t, class) - v(x, t, no class))

scale 1 is the plain conditional field, 0 the unconditional one; above 1 samples fit their class better and vary less.
Outside an interval of t it may be left off, at one evaluation instead of two.
Sources: Ho and Salimans 2022, arXiv:2207.12598; Kynkaanniemi et al. 2024, arXiv:2404.07724 (interval).
"""

import torch
from torch import Tensor

from flowimg.flow.condition import Condition, Velocity

EDGE = 1e-6
"""A time this near to the interval is inside: fields see t in float32."""


class Guided:
    """A guided velocity: both evaluations of the field in one batch of twice the size.

    Args:
        field: The velocity to guide.
        scale: See above.
        interval: The flow times between which it is guided, both included.
    """

    def __init__(self, field: Velocity, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> None:
        self.field, self.scale, self.interval = field, scale, interval

    def _inside(self, t: float) -> bool:
        return self.interval[0] - EDGE <= t <= self.interval[1] + EDGE

    def evaluations(self, t: float) -> int:
        """Evaluations of the network a sample at time t."""
        return 2 if self._inside(t) else 1

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Guided velocity, shape of x; with an interval, t is one for all rows.

        Raises:
            ValueError: If the condition has nothing to guide towards.
        """
        if cond is None or not cond.steers:
            raise ValueError("guidance needs labels to guide towards: pass a condition with a label, or use the field")
        if self.interval != (0.0, 1.0) and not self._inside(float(t[0])):
            return self.field(x, t, cond)
        both = self.field(torch.cat([x, x]), torch.cat([t, t]), cond.cat(cond.null()))
        towards, free = both.chunk(2)
        return free + self.scale * (towards - free)


def guided(field: Velocity, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Velocity:
    """The field guided towards its condition; at scale 1 the field itself, which costs half."""
    return field if scale == 1 else Guided(field, scale, interval)
