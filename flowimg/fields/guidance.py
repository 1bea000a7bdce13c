"""Guidance in velocity form: away from a worse velocity, or from that of no class.

    v = v(x, t, class) + (scale - 1) (v(x, t, class) - v(x, t, no class))        classifier-free guidance
                       + (w - 1)     (v(x, t, class) - v_guide(x, t, class))     autoguidance

scale 1 and w 1 are the plain field. Above 1, classifier-free guidance fits samples better to their class and makes them
vary less. Autoguidance needs no class: its guide is a field of the same space that learned less, and makes the same
errors more strongly, so that going away from it corrects them. Both may be used together. Outside an interval of t
each may be left off, and its evaluation is saved.
Sources: Ho and Salimans 2022, arXiv:2207.12598; Karras et al. 2024, arXiv:2406.02507 (autoguidance); Kynkaanniemi et
al. 2024, arXiv:2404.07724 (interval).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.condition import Condition, Velocity
from flowimg.flow.times import within

ALWAYS = (0.0, 1.0)


class Guide(NamedTuple):
    """A worse velocity to go away from, how strongly, and the flow times between which it is used, both included."""

    velocity: Velocity
    scale: float
    interval: tuple[float, float] = ALWAYS


class Guided:
    """A guided velocity: both evaluations of the field in one batch of twice the size, and one of the guide.

    Args:
        field: The velocity to guide.
        scale: Of classifier-free guidance; see above.
        interval: The flow times between which it is guided towards its class, both included.
        guide: For autoguidance.
    """

    def __init__(
        self, field: Velocity, scale: float, interval: tuple[float, float] = ALWAYS, guide: Guide | None = None
    ) -> None:
        self.field, self.scale, self.interval, self.guide = field, scale, interval, guide

    def _steers(self, t: float | Tensor) -> bool:
        return self.scale != 1 and _inside(t, self.interval)

    def _improves(self, t: float | Tensor) -> bool:
        return self.guide is not None and self.guide.scale != 1 and _inside(t, self.guide.interval)

    def evaluations(self, t: float) -> int:
        """Evaluations of a network a sample at time t."""
        return 1 + self._steers(t) + self._improves(t)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Guided velocity, shape of x; with an interval, t is one for all rows.

        Raises:
            ValueError: If the condition has nothing to guide towards.
        """
        if self._steers(t):
            if cond is None or not cond.steers:
                raise ValueError(
                    "guidance needs labels to guide towards: pass a condition with a label, or use the field"
                )
            both = self.field(torch.cat([x, x]), torch.cat([t, t]), cond.cat(cond.null()))
            towards, free = both.chunk(2)
            v = free + self.scale * (towards - free)
        else:
            v = towards = self.field(x, t, cond)
        if self.guide is None or not self._improves(t):
            return v
        return v + (self.guide.scale - 1) * (towards - self.guide.velocity(x, t, cond))


def _inside(t: float | Tensor, interval: tuple[float, float]) -> bool:
    # of all times, a GPU is not waited for
    return interval == ALWAYS or within(float(t if isinstance(t, float) else t[0]), interval)


def guided(
    field: Velocity, scale: float, interval: tuple[float, float] = ALWAYS, guide: Guide | None = None
) -> Velocity:
    """The field guided towards its condition and away from a guide; at scale 1 and without a guide the field itself."""
    return field if scale == 1 and (guide is None or guide.scale == 1) else Guided(field, scale, interval, guide)


def unguided(velocity: Velocity) -> Velocity:
    """The field within a guided velocity."""
    return velocity.field if isinstance(velocity, Guided) else velocity
