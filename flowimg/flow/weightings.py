"""How much the loss at a flow time counts in the gradient.

    none    every time alike
    cosmap  w(t) = 2 / (pi (1 - 2t + 2t^2)), twice as much at t = 1/2 as at the ends
    power   w(t) = t^a (1 - t)^b / B(a + 1, b + 1)

Each has the mean 1 over uniform t, so that a learning rate keeps its meaning. On the linear path the velocity differs
from the true one by 1 / (1 - t) times what the data guessed from it differ by, and by 1 / t times what the noise does:
a = 0, b = 2 weighs errors of the data alike, a = 2, b = 0 those of the noise.
Source: Esser et al. 2024, arXiv:2403.03206, section 3.1 (cosmap, and losses as weightings of each other).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Weighting = Callable[[Tensor], Tensor]
"""t -> w(t), both of shape (B,)."""


def cosmap(t: Tensor) -> Tensor:
    """w(t) = 2 / (pi (1 - 2t + 2t^2)), from 2/pi to 4/pi."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))


@dataclass(frozen=True)
class Power:
    """w(t) = t^a (1 - t)^b / B(a + 1, b + 1), with B the Beta function; a and b not below 0."""

    a: float
    b: float

    def __call__(self, t: Tensor) -> Tensor:
        log_mean = math.lgamma(self.a + 1) + math.lgamma(self.b + 1) - math.lgamma(self.a + self.b + 2)
        return t**self.a * (1 - t) ** self.b / math.exp(log_mean)
