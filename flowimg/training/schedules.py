"""Learning rate and EMA decay as pure functions of the step: nothing to save, nothing to get out of step.

A schedule is what the rate does after its warmup, a function of progress p in [0, 1]:

    constant  1
    linear    1 - p
    cosine    (1 + cos(pi p)) / 2
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""Progress p in [0, 1] to the factor of the peak rate; above 0 for p below 1."""


def constant(progress: float) -> float:
    """1."""
    return 1.0


def linear(progress: float) -> float:
    """1 - p."""
    return 1 - progress


def cosine(progress: float) -> float:
    """(1 + cos(pi p)) / 2."""
    return (1 + math.cos(math.pi * progress)) / 2


def learning_rate(step: int, peak: float, steps: int, warmup: int, schedule: Schedule) -> float:
    """Learning rate of an optimiser step: a linear rise, (step + 1) / warmup, then the schedule.

    Its progress is p = (step - warmup) / (steps - warmup).

    Args:
        step: Optimiser step, from 0.
        peak: The rate that the factors above multiply.
        steps: Length of the whole run.
        warmup: Steps of the rise.
        schedule: One of the above.

    Returns:
        The rate, a Python float; above 0 at every step below `steps`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * schedule(min(1.0, (step - warmup) / max(1, steps - warmup)))


def ema_decay(step: int, decay: float) -> float:
    """Share of the old average kept after a step: min(decay, (1 + step) / (10 + step)).

    The rise forgets the initial weights quickly, so that early samples show what was learned.
    """
    return min(decay, (1 + step) / (10 + step))
