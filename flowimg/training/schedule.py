"""Learning rate and EMA decay as pure functions of the step: nothing to save, nothing to get out of step."""

import math


def learning_rate(step: int, peak: float, steps: int, warmup: int, shape: str) -> float:
    """Learning rate of an optimiser step.

        rises linearly over the first `warmup` steps, (step + 1) / warmup, then
        constant  1
        linear    1 - p
        cosine    (1 + cos(pi p)) / 2         with p = (step - warmup) / (steps - warmup)

    Args:
        step: Optimiser step, from 0.
        peak: The rate that the factors above multiply.
        steps: Length of the whole run.
        warmup: Steps of the rise.
        shape: "constant", "linear" or "cosine".
    Returns:
        The rate, a Python float; above 0 at every step below `steps`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if shape == "linear":
        return peak * (1 - progress)
    if shape == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak


def ema_decay(step: int, decay: float) -> float:
    """Share of the old average kept after a step: min(decay, (1 + step) / (10 + step)).

    The rise forgets the initial weights quickly, so that early samples show what was learned.
    """
    return min(decay, (1 + step) / (10 + step))
