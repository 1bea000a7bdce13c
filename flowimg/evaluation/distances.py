"""How far samples are from data, both given as features (N, F) of some network.

Fréchet distance (Heusel et al. 2017, arXiv:1706.08500): of the Gaussians with the moments of each set,

    d^2 = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2)).

It falls with the number of samples, so it is always told with it. KID (Binkowski et al. 2018, arXiv:1801.01401): the
unbiased squared maximum mean discrepancy with the kernel (<x, y> / F + 1)^3, which does not; its mean and spread over
random subsets.

Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
arXiv:2002.09797): with r_k(x) the distance from x to its k-th nearest other in its own set,

    precision  share of samples y with |y - x| <= r_k(x) for some datum x
    recall     share of data x with |x - y| <= r_k(y) for some sample y
    density    data x with |y - x| <= r_k(x), over k, mean over samples y
    coverage   share of data x with |y - x| <= r_k(x) for some sample y

All in float64, whatever the features come in.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.randomness import generator

SUBSETS, SUBSET = 100, 1000
"""KID: random subsets, and features in each at most."""
NEAREST = 5
"""k of the neighbourhoods, as in Naeem et al."""
CHUNK = 1024
"""Rows whose distances to all others are held at once."""


class Moments(NamedTuple):
    """How many features there are, their mean (F,) and covariance (F, F), float64."""

    number: int
    mean: Tensor
    covariance: Tensor


class Neighbourhoods(NamedTuple):
    """Shares of samples and data in each other's neighbourhoods; density may be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def moments(features: Tensor) -> Moments:
    """Count, mean and unbiased covariance of features, shape (N, F); of one row, to be merged with others, 0."""
    x = features.double()
    mean = x.mean(0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean) / max(len(x) - 1, 1))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together, so that features can be taken as they come.

    C (n - 1) = C_a (n_a - 1) + C_b (n_b - 1) + (n_a n_b / n)(m_a - m_b)(m_a - m_b)^T
    """
    number = a.number + b.number
    apart = a.mean - b.mean
    scatter = a.covariance * (a.number - 1) + b.covariance * (b.number - 1)
    scatter = scatter + torch.outer(apart, apart) * (a.number * b.number / number)
    return Moments(number, (a.mean * a.number + b.mean * b.number) / number, scatter / (number - 1))


def frechet(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance between the Gaussians of these moments; see above.

    By symmetric eigenvalues, which are real: fewer samples than features do no harm to the arithmetic.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def kid(x: Tensor, y: Tensor, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0) -> tuple[float, float]:
    """Kernel distance, the mean over random subsets, and its standard deviation over them.

    Args:
        x: Features, shape (N, F).
        y: Features, shape (M, F).
        subsets: How many.
        size: Features of each set in a subset; the smaller set's size where there are fewer, 2 or more.
        seed: Seed of the choice.
    """
    size = min(size, len(x), len(y))
    x, y = x.double(), y.double()
    chosen = generator("kid", seed)
    found = []
    for _ in range(subsets):
        a = x[torch.randperm(len(x), generator=chosen)[:size].to(x.device)]
        b = y[torch.randperm(len(y), generator=chosen)[:size].to(y.device)]
        own = _kernel(a, a).fill_diagonal_(0).sum() + _kernel(b, b).fill_diagonal_(0).sum()
        found.append(own / (size * (size - 1)) - 2 * _kernel(a, b).mean())
    values = torch.stack(found)
    return float(values.mean()), float(values.std(correction=0))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def neighbourhoods(data: Tensor, samples: Tensor, k: int = NEAREST) -> Neighbourhoods:
    """Precision, recall, density and coverage; see above.

    Args:
        data: Features, shape (N, F), N above k.
        samples: Features, shape (M, F), M above k.
        k: Which neighbour bounds a neighbourhood.
    """
    x, y = data.double(), samples.double()
    reach_x, reach_y = _reach(x, k), _reach(y, k)
    within = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    covered = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    recalled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(CHUNK):
        apart = torch.cdist(x[rows], y)
        inside = apart <= reach_x[rows, None]
        within += inside.sum(0)
        covered[rows] = inside.any(1)
        recalled[rows] = (apart <= reach_y).any(1)
    return Neighbourhoods(
        float((within > 0).double().mean()),
        float(recalled.double().mean()),
        float(within.mean() / k),
        float(covered.double().mean()),
    )


def _reach(x: Tensor, k: int) -> Tensor:
    """Distance from each row to its k-th nearest other, shape (N,)."""
    # k + 1: the nearest of all is the row itself
    return torch.cat([torch.cdist(part, x).kthvalue(k + 1).values for part in x.split(CHUNK)])
