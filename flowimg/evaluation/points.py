"""Scores of points: how far samples are from their distribution.

off         share of samples off the support (0 for exact data)
mass        share of the samples on the support that lies in each part
mass_ratio  the mass of the fullest part over that of the emptiest
sw2         sliced Wasserstein-2 distance to fresh data, over random directions d:
            sqrt(mean_d mean_i (sort(<x_i, d>) - sort(<y_i, d>))^2),  in data units (Bonneel et al. 2015)
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PointScores(NamedTuple):
    """The scores of points, as defined above."""

    off: float
    mass: list[float]
    mass_ratio: float
    sw2: float


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance between two sets of points.

    Args:
        x: Shape (N, D).
        y: Shape (N, D).
        directions: Number of random directions, uniform on the sphere.
        seed: Seed of the directions.

    Returns:
        The distance, in the units of the points.

    Raises:
        ValueError: If the sets differ in size.
    """
    if x.shape != y.shape:
        raise ValueError(f"both sets must have the same shape, not {tuple(x.shape)} and {tuple(y.shape)}")
    d = torch.randn(x.shape[1], directions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    d = d / d.norm(dim=0)
    gaps = (x.double() @ d).sort(dim=0).values - (y.double() @ d).sort(dim=0).values
    return float(gaps.square().mean().sqrt())


def score_points(samples: Tensor, fresh: Tensor, part: Tensor, parts: int) -> PointScores:
    """Scores of samples against fresh data.

    Args:
        samples: Shape (N, 2).
        fresh: Exact samples, shape (N, 2).
        part: The part that each sample lies in, shape (N,); below 0 off the support.
        parts: Number of parts; all should hold the same mass.

    Returns:
        The scores. Samples that are not finite count as off the support and make sw2 infinite.
    """
    finite = samples.isfinite().all(1)
    counts = torch.bincount(part[(part >= 0) & finite], minlength=parts)
    on = int(counts.sum())
    emptiest = int(counts.min())
    return PointScores(
        off=1 - on / len(samples),
        mass=[count / max(on, 1) for count in counts.tolist()],
        mass_ratio=int(counts.max()) / emptiest if emptiest else float("inf"),
        sw2=sliced_wasserstein(samples, fresh) if bool(finite.all()) else float("inf"),
    )


def failures(scores: PointScores, max_off: float | None, max_sw2: float | None, max_ratio: float | None) -> list[str]:
    """A sentence for each score above its limit; a limit of None allows everything."""
    checks = [
        ("share off the support", scores.off, max_off),
        ("sliced Wasserstein-2", scores.sw2, max_sw2),
        ("fullest part over emptiest", scores.mass_ratio, max_ratio),
    ]
    return [
        f"{name} is {value:.4g}, more than {limit:g}"
        for name, value, limit in checks
        if limit is not None and not value <= limit
    ]
