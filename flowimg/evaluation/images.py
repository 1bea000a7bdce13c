"""How well samples fit their class, whether they vary as the data do, and whether they are copies.

agreement   share of samples that a classifier of the real pictures gives the label they were asked for
judge       share of real pictures, kept apart from field and classifier, that the classifier is right on
spread      root of the summed variances of the pixels within a class, mean over classes; samples over data
nearest     mean distance to the nearest training picture, over the same between training pictures and their nearest
            others: far below 1 the samples are copies

Spread and nearest are on pixels in [-1, 1]: a check for small pictures, not a measure of quality at large.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.spaces.pixels import unit

ROWS, NUMBERS = 2**13, 2**26
"""Training pictures, and numbers of them, that are held as floats at once."""
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
    """The k nearest of `others` (M, *D) to each of x (N, *D), Euclidean; others[own[i]] is left out for row i.

    Bytes are taken for pictures in [-1, 1]; all of `others` are looked at, some at a time.
    """
    x = unit(x).flatten(1)
    k = min(k, len(others))
    best, rows = x.new_full((len(x), k), math.inf), torch.zeros(len(x), k, dtype=torch.long)
    for some in torch.arange(len(others)).split(max(1, min(ROWS, NUMBERS // x.shape[1]))):
        part = unit(others[some[0] : some[-1] + 1]).flatten(1)
        score = part.square().sum(dim=1) - 2 * x @ part.T
        if own is not None:
            here = torch.isin(own, some)
            score[here, own[here] - some[0]] = math.inf
        near = score.topk(min(k, len(some)), dim=1, largest=False)
        best, kept = torch.cat([best, near.values], dim=1).topk(k, dim=1, largest=False)
        rows = torch.cat([rows, near.indices + some[0]], dim=1).gather(1, kept)
    # who is nearest by the fast formula, how far by the exact one, which does not cancel
    exact = [
        (unit(others.index_select(0, near)).flatten(1) - one).norm(dim=1) for one, near in zip(x, rows, strict=True)
    ]
    return Nearest(torch.stack(exact), rows)


def nearest_or_mirrored(x: Tensor, others: Tensor, k: int = 1, own: Tensor | None = None) -> Nearest:
    """As `nearest`, of pictures (M, C, H, W) to each of x (N, C, H, W), or to its mirror image where that is nearer."""
    found, mirrored = nearest(x, others, k, own), nearest(x.flip(-1), others, k, own)
    nearer = (mirrored.distance[:, :1] < found.distance[:, :1]).expand_as(found.row)
    return Nearest(*(torch.where(nearer, m, f) for m, f in zip(mirrored, found, strict=True)))


def copying(found: Nearest, data: Tensor, search: Callable[..., Nearest] = nearest) -> float:
    """Mean distance of samples to their nearest datum, over that of data, shape (M, *D), to their nearest others.

    Args:
        found: Of the samples.
        data: All that they were looked for in.
        search: What looked: `nearest`, or `nearest_or_mirrored`.
    """
    some = torch.arange(0, len(data), math.ceil(len(data) / QUERIES))
    return float(found.distance[:, 0].mean() / search(data[some], data, own=some).distance.mean())
