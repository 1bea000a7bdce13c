"""Averages of the weights, kept as further fields beside the one that learns.

Two kinds of average are updated in the same way, average <- decay average + (1 - decay) theta, and differ in the decay:

    exponential     decay = constant, after a warmup: training/schedule.py
    power           decay = (1 - 1/t)^(gamma + 1) at step t = 1, 2, ...

The power average at step t holds theta(k) with weight (k/t)^(gamma+1) - ((k-1)/t)^(gamma+1): the integral over (k-1, k]
of the profile

    p(tau; t, gamma) = (gamma + 1) tau^gamma / t^(gamma + 1)    on [0, t], of integral 1.

It looks back over a share of the run, however long the run is. The length of an average is the standard deviation of
its profile over t. Averages of other lengths are linear in theta as well, so a sum of snapshots whose profiles add up
nearly to another profile is nearly that average: any length, after the run, from snapshots of two lengths.

Source: Karras et al. 2024, arXiv:2312.02696, section 3; worked out from the definitions above.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LENGTHS = (0.05, 0.1)
"""The lengths of the power averages that a run keeps, where it keeps any."""
PLAIN_SGD: dict[str, Any] = {
    "weight_decay": 1.0, "maximize": True,
    "momentum": 0.0, "dampening": 0.0, "nesterov": False, "is_first_step": False, "grad_scale": None,
}  # fmt: skip
"""What turns torch's fused SGD into p <- p - lr (p - g)."""
LONGEST = 0.28
"""No profile with gamma >= 0 is longer than 1 / sqrt(12) = 0.2887, that of gamma = 0."""


class Profile(NamedTuple):
    """What an average at a step is made of: p(tau; t, gamma)."""

    t: float
    gamma: float


class Combination(NamedTuple):
    """A weight for each kept average, and ||sum of weighted profiles - target|| / ||target||, in L2."""

    weights: list[float]
    error: float


def make_ema(field: nn.Module) -> nn.Module:
    """A copy of the field for the average: no gradients, evaluation mode (no dropout)."""
    return copy.deepcopy(field).eval().requires_grad_(False)


def template(field: nn.Module) -> nn.Module:
    """The field without its weights (they are on the meta device), in evaluation mode; it takes no memory."""
    empty: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in field.parameters()}
    return copy.deepcopy(field, empty).eval()


def with_weights(empty: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a template whose parameters are these tensors, which it does not copy.

    Raises:
        KeyError: If one is missing.
    """
    field = copy.deepcopy(empty)
    for name, _ in empty.named_parameters():
        where, _, last = name.rpartition(".")
        setattr(field.get_submodule(where), last, nn.Parameter(tensors[name], requires_grad=False))
    return field


@torch.no_grad()
def update_ema(ema: list[Tensor], parameters: list[Tensor], decay: float, hold: Tensor | float) -> None:
    """Average <- average + (1 - decay)(parameters - average), or nothing where `hold` is 1.

    Where that is known by a fused lerp; else, `hold` being a tensor of shape () on the device, by the fused SGD that
    looks at it there, p <- p - lr (weight_decay p - g), with the parameters as g: one kernel, and nobody waits to know.
    Our fields keep no state in buffers.
    """
    if not isinstance(hold, Tensor):
        if not hold:
            torch._foreach_lerp_(ema, parameters, 1 - decay)
        return
    torch._fused_sgd_(ema, parameters, [], lr=1 - decay, found_inf=hold, **PLAIN_SGD)


def power_decay(t: int, gamma: float) -> float:
    """Share of the old average kept at step t = 1, 2, ...: (1 - 1/t)^(gamma + 1), which is 0 at the first."""
    return (1 - 1 / t) ** (gamma + 1)


def length_of(gamma: float) -> float:
    """Standard deviation of the profile, over t: sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of(length: float) -> float:
    """The exponent of the profile of a length, the inverse of `length_of`.

    With u = gamma + 2, length^2 u^2 (u + 1) = u - 1, so u is the largest root of

        f(u) = u^3 + u^2 - (u - 1) / length^2.

    f is convex for u > 0 and f(1/length) > 0: Newton's steps from there fall to that root and pass none by.

    Args:
        length: In (0, 0.28].
    Returns:
        gamma > 0, to within rounding.
    Raises:
        ValueError: If no average has this length.
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"a length is above 0 and at most {LONGEST}, not {length}")
    precision = length**-2
    u = 1 / length
    while True:
        below = u - (u**3 + u**2 - (u - 1) * precision) / (3 * u**2 + 2 * u - precision)
        if not below < u:  # rounding is all that is left
            return u - 2
        u = below


def snapshot_steps(steps: int, snapshots: int) -> set[int]:
    """The steps at which snapshots of the averages are written: evenly spread over the run, including its last step."""
    return {math.ceil(steps * number / snapshots) for number in range(1, snapshots + 1)}


def inner(one: Profile, other: Profile) -> float:
    """The integral of the product of two profiles.

    With t <= t' it is (gamma + 1)(gamma' + 1) / (gamma + gamma' + 1) (t / t')^gamma' / t'.
    """
    early, late = (one, other) if one.t <= other.t else (other, one)
    scale = (early.gamma + 1) * (late.gamma + 1) / (early.gamma + late.gamma + 1)
    return scale * (early.t / late.t) ** late.gamma / late.t


def combine(kept: Sequence[Profile], target: Profile) -> Combination:
    """Weights of kept averages whose sum comes nearest to another average.

    With A_ij = <p_i, p_j> and b_i = <p_i, p>, the x that minimises ||sum_i x_i p_i - p||^2 = x'Ax - 2 b'x + <p, p>
    among those of sum 1 (so that what never moved stays where it is) solves

        A x + m = b,   sum(x) = 1,   with the same number m in every row.

    Profiles are scaled to norm 1 before, in float64.

    Args:
        kept: Profiles of the averages that there are, all different.
        target: The profile that is wanted.
    Raises:
        ValueError: If there are none.
    """
    if not kept:
        raise ValueError("there are no averages to combine")
    count, scale = len(kept), target.t  # in units of the target's time nothing depends on how long a step is
    kept, target = [Profile(t / scale, gamma) for t, gamma in kept], Profile(1.0, target.gamma)
    gram = torch.tensor([[inner(one, other) for other in kept] for one in kept], dtype=torch.float64)
    aim = torch.tensor([inner(one, target) for one in kept], dtype=torch.float64)
    norms = gram.diagonal().sqrt()
    system = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count] = gram / norms[:, None] / norms
    system[count, :count] = system[:count, count] = 1 / norms
    right = torch.cat([aim / norms, torch.ones(1, dtype=torch.float64)])
    x = torch.linalg.solve(system, right)[:count] / norms
    # the square of a small distance drowns in the rounding of its terms, of size <p, p>: below 1e-7 it is only small
    distance = x @ gram @ x - 2 * aim @ x + inner(target, target)
    return Combination(x.tolist(), math.sqrt(max(0.0, float(distance)) / inner(target, target)))
