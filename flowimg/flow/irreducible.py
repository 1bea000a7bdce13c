"""The irreducible loss: the part of the loss that remains for the best of all fields.

The best velocity is a mean, v(x_t) = E[u_t | x_t], so the loss that remains is a variance,

    irreducible = E Var[u_t | x_t] / D.

With noise and data independent, x_0 = (x_t - alpha x_1) / sigma, so u_t is affine in x_1 given x_t, and

    Var[u_t | x_t] = (alpha' - sigma' alpha / sigma)^2 Var[x_1 | x_t],    p(x_1 = y | x_t) ~ N(x_t; alpha y, sigma^2 I)

over all data y, which is a sum over a data set.
Source: the bias-variance split of the regression of Lipman et al. 2023, arXiv:2210.02747, theorem 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.condition import NO_CLASS
from flowimg.flow.objectives import Draw
from flowimg.flow.paths import Path

PAIRS, CHUNK = 2**22, 4096
"""Pairs of draws and data held at once, and data compared at once."""
BINS = 10
"""Bins of t, of equal length, in which losses are reported."""


class Irreducible(NamedTuple):
    """The mean under the times of training, the mean in each bin of t (nan: no draw there), and a name for figures."""

    mean: float
    by_t: Sequence[float]
    of: str


def tenth_of(t: Tensor) -> Tensor:
    """The bin of each time, 0 ... BINS - 1."""
    return (t * BINS).long().clamp(0, BINS - 1)


def means_by_time(values: Tensor, t: Tensor) -> list[float]:
    """The mean of the finite values, shape (B,), in each bin of their times (B,); nan in an empty bin."""
    good = torch.isfinite(values)
    tenth = tenth_of(t[good])
    means: list[float] = (tenth.bincount(values[good].double(), BINS) / tenth.bincount(minlength=BINS)).tolist()
    return means


def irreducible_loss(path: Path, draw: Draw, data: Tensor, labels: Tensor | None = None, fresh: bool = False) -> Tensor:
    """The loss of the best of all fields at these x_t, for each example.

    Args:
        path: The path trained on.
        draw: Noise, data, times and labels; the noise must be independent of the data, and those not augmented. B rows.
        data: All data y, shape (N, *D).
        labels: Their classes, shape (N,), if the field is conditional.
        fresh: `data` are a sample of a distribution from which `draw.x_1` comes too; else they are all there is, and
            `draw.x_1` is among them.
    Returns:
        Loss of each example, shape (B,), float64; nan where a sample holds too few data near x_t to estimate it.
    """
    assert draw.cond.augmentation is None  # augmented pictures are not among the data
    x_1, t = draw.x_1.double(), draw.t.double()
    x_t = path.sample(draw.x_0.double(), x_1, t).x_t.flatten(1)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    # distances are taken from the draw's own x_1: where only that one has weight, the variance is exactly 0
    own = x_1.flatten(1)
    offset, ratio = (x_t - alpha * own) / sigma, alpha / sigma
    batches = torch.arange(len(t)).to(data.device).split(max(1, PAIRS // len(data)))
    label = None if labels is None else draw.cond.label
    parts = ((own[b], offset[b], ratio[b], None if label is None else label[b]) for b in batches)
    variances = [_variance(*part, data, labels, fresh) for part in parts]
    slope = path.alpha_prime(t) - path.sigma_prime(t) * ratio[:, 0]
    return slope.square() * torch.cat(variances) / own.shape[1]


def _variance(
    own: Tensor, offset: Tensor, ratio: Tensor, label: Tensor | None, data: Tensor, labels: Tensor | None, fresh: bool
) -> Tensor:
    """Var[x_1 | x_t], summed over dimensions, shape (B,)."""
    scores, squares = [], []
    for y in data.split(CHUNK):
        cross, apart = _apart(y, own, offset)
        # -|x_t - alpha y|^2 / (2 sigma^2) without the part that all y share
        scores.append(ratio * cross - ratio**2 * apart / 2)
        squares.append(apart)
    score = torch.cat(scores, dim=1)
    if label is not None and labels is not None:
        score = score.masked_fill((label[:, None] != labels) & (label[:, None] != NO_CLASS), -torch.inf)
    weight = score.softmax(1)
    mean = -own
    for y, part in zip(data.split(CHUNK), weight.split(CHUNK, dim=1), strict=True):
        mean = mean + part @ y.double().flatten(1)
    variance = ((weight * torch.cat(squares, dim=1)).sum(1) - mean.square().sum(1)).clamp(min=0)
    if fresh:  # a weighted sample's variance is too small by this
        lack = 1 - weight.square().sum(1)
        variance = torch.where(lack > 0.8, variance / lack, torch.nan)
    return variance


def _apart(y: Tensor, own: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """<y - own, offset> and |y - own|^2 for each pair, shape (B, N)."""
    y = y.double().flatten(1)
    cross = offset @ y.T - (offset * own).sum(1, keepdim=True)
    apart = y.square().sum(1) - 2 * own @ y.T + own.square().sum(1, keepdim=True)
    return cross, apart.clamp(min=0)
