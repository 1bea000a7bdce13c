"""How well samples fit their class, whether they vary as the data do, and whether they are copies.

agreement   share of samples that a classifier of the real pictures gives the label they were asked for
judge       share of real pictures, kept apart from field and classifier, that the classifier is right on
spread      root of the summed variances of the pixels within a class, mean over classes; samples over data
nearest     mean distance to the nearest training picture, over the same between training pictures and their nearest
            others: far below 1 the samples are copies

Spread and nearest are on pixels in [-1, 1]: a check for small pictures, not a measure of quality at large.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

QUERIES = 2000
"""Training pictures at most whose distance to their nearest other is measured."""


class Nearest(NamedTuple):
    """The nearest pictures of each, from near to far: distances and rows, shape (N, k)."""

    distance: Tensor
    row: Tensor


def within_class_spread(x: Tensor, labels: Tensor) -> float:
    """Root of the summed variances of the pixels within a class, mean over the classes; x (N, D), labels (N,).

    A class of one has no spread; with no other, the mean is nan.
    """
    several = [label for label, count in zip(*labels.unique(return_counts=True), strict=True) if count > 1]
    spreads = [x[labels == label].var(dim=0).sum().sqrt() for label in several]
    return float(torch.stack(spreads).mean()) if spreads else math.nan


def nearest(x: Tensor, others: Tensor, k: int = 1, own: Tensor | None = None) -> Nearest:
    """The k nearest of `others` (M, D) to each row of x (N, D), Euclidean; others[own[i]] is left out for row i."""
    squares = others.square().sum(dim=1)
    distances, rows = [], []
    for some in torch.arange(len(x)).split(256):
        score = squares - 2 * x[some] @ others.T
        if own is not None:
            score[torch.arange(len(some)), own[some]] = float("inf")
        # who is nearest by the fast formula, how far by the exact one, which does not cancel
        near = score.topk(k, dim=1, largest=False).indices
        rows.append(near)
        distances.append((x[some, None] - others[near]).norm(dim=2))
    return Nearest(torch.cat(distances), torch.cat(rows))


def copying(found: Nearest, data: Tensor) -> float:
    """Mean distance of samples to their nearest datum, over that of data, shape (M, D), to their nearest others."""
    some = torch.arange(0, len(data), math.ceil(len(data) / QUERIES))
    return float(found.distance[:, 0].mean() / nearest(data[some], data, own=some).distance.mean())
