"""Distances between samples and data, both given as features (N, F) of some network.

Fréchet distance (Heusel et al. 2017, arXiv:1706.08500) between the Gaussians with the moments of each set:

    d^2 = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2)).

It falls as the number of samples grows, so it is always reported with that number. KID (Binkowski et al. 2018,
arXiv:1801.01401), the unbiased squared maximum mean discrepancy with the kernel (<x, y> / F + 1)^3, does not depend on
it; reported are its mean and its standard deviation over random subsets.

Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
arXiv:2002.09797): with r_k(x) the distance from x to its k-th nearest neighbour in its own set,

    precision  share of samples y with |y - x| <= r_k(x) for some datum x
    recall     share of data x with |x - y| <= r_k(y) for some sample y
    density    number of data x with |y - x| < r_k(x), divided by k, mean over samples y
    coverage   share of data x with |y - x| < r_k(x) for some sample y

as their authors compute them, so the edge of a neighbourhood, where copies may lie, belongs to the first two only. All
four are 1 for the data themselves, where no two distances from a point are equal.

Everything is computed in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.randomness import generator

SUBSETS, SUBSET = 100, 1000
"""KID: the number of random subsets, and the maximum number of features in each."""
NEAREST = 5
"""k of precision, recall, density and coverage, as in Naeem et al."""
CHUNK = 1024
"""Rows whose distances to all others are in memory at once."""


class Moments(NamedTuple):
    """The number of features, their mean (F,) and their covariance (F, F), float64."""

    number: int
    mean: Tensor
    covariance: Tensor


class Neighbourhoods(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density is 0 or more and may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def moments(features: Tensor) -> Moments:
    """Count, mean and unbiased covariance of features, shape (N, F); the covariance of a single row is 0."""
    x = features.double()
    mean = x.mean(0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean) / max(len(x) - 1, 1))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of both sets, for features that arrive in batches.

    C (n - 1) = C_a (n_a - 1) + C_b (n_b - 1) + (n_a n_b / n)(m_a - m_b)(m_a - m_b)^T
    """
    number = a.number + b.number
    gap = a.mean - b.mean
    scatter = a.covariance * (a.number - 1) + b.covariance * (b.number - 1)
    scatter = scatter + torch.outer(gap, gap) * (a.number * b.number / number)
    return Moments(number, (a.mean * a.number + b.mean * b.number) / number, scatter / (number - 1))


def frechet(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance between the Gaussians with these moments.

    It uses the eigenvalues of symmetric matrices, which are real even when there are fewer samples than features.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def kid(x: Tensor, y: Tensor, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0) -> tuple[float, float]:
    """Kernel distance: the mean over random subsets, and the standard deviation over them.

    Args:
        x: Features, shape (N, F).
        y: Features, shape (M, F).
        subsets: The number of subsets.
        size: Features of each set in a subset, 2 or more; at most the size of the smaller set.
        seed: Seed of the random subsets.
    """
    size = min(size, len(x), len(y))
    x, y = x.double(), y.double()
    chosen = generator("kid", seed)
    distances = []
    for _ in range(subsets):
        a = x[torch.randperm(len(x), generator=chosen)[:size].to(x.device)]
        b = y[torch.randperm(len(y), generator=chosen)[:size].to(y.device)]
        own = _kernel(a, a).fill_diagonal_(0).sum() + _kernel(b, b).fill_diagonal_(0).sum()
        distances.append(own / (size * (size - 1)) - 2 * _kernel(a, b).mean())
    values = torch.stack(distances)
    return float(values.mean()), float(values.std(correction=0))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def neighbourhoods(data: Tensor, samples: Tensor, k: int = NEAREST) -> Neighbourhoods:
    """Precision, recall, density and coverage.

    Args:
        data: Features, shape (N, F), N above k.
        samples: Features, shape (M, F), M above k.
        k: The neighbour whose distance is the radius of a neighbourhood.
    """
    x, y = data.double(), samples.double()
    radius_x, radius_y = _radius(x, k), _radius(y, k)
    within = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    precise = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    covered, recalled = torch.zeros(2, len(x), dtype=torch.bool, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(CHUNK):
        distance = torch.cdist(x[rows], y)
        inside = distance < radius_x[rows, None]
        within += inside.sum(0)
        precise |= (distance <= radius_x[rows, None]).any(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (distance <= radius_y).any(1)
    precision, recall, coverage = (float(hits.double().mean()) for hits in (precise, recalled, covered))
    return Neighbourhoods(precision, recall, float(within.mean() / k), coverage)


def _radius(x: Tensor, k: int) -> Tensor:
    """Distance from each row to its k-th nearest neighbour, shape (N,)."""
    # k + 1, since the nearest row is the row itself
    return torch.cat([torch.cdist(part, x).kthvalue(k + 1).values for part in x.split(CHUNK)])
