"""Scores of pictures: how well samples fit their class, how much they vary, and whether they are copies.

agreement   share of samples that a classifier of the real pictures assigns to the label they were conditioned on
judge       accuracy of that classifier on held-out pictures, which neither it nor the field was trained on
spread      root of the summed pixel variances within a class, mean over classes; of the samples over that of the data
nearest     mean distance of samples to their nearest training picture, over the mean distance of training pictures to
            their nearest neighbours; far below 1, the samples are copies

Spread and nearest use pixels in [-1, 1]: they are checks for small pictures, not general measures of quality. Sets are
kept as they are stored, and encoded in parts, which saves memory.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, positive

ROWS, NUMBERS = 2**13, 2**26
"""Training pictures compared at once: at most this number of pictures, and of pixel values."""
QUERIES = 2000
"""The maximum number of training pictures whose nearest neighbours are searched, for `copying`."""
Encode = Callable[[Tensor], Tensor]
"""Stored pictures as they are compared: `Space.encode`."""


class Nearest(NamedTuple):
    """Distances to the nearest pictures, from near to far, and their rows, both of shape (N, k)."""

    distance: Tensor
    row: Tensor


def within_class_spread(x: Tensor, labels: Tensor) -> float:
    """Root of the summed pixel variances within a class, mean over the classes; x (N, D), labels (N,).

    A class of one picture is left out; if all are, the result is nan.
    """
    several = [label for label, count in zip(*labels.unique(return_counts=True), strict=True) if count > 1]
    spreads = [x[labels == label].var(dim=0).sum().sqrt() for label in several]
    return float(torch.stack(spreads).mean()) if spreads else math.nan


def nearest(x: Tensor, others: Tensor, k: int = 1, own: Tensor | None = None, encode: Encode = positive) -> Nearest:
    """The k nearest of `others` (M, *D) to each of x (N, *D), by Euclidean distance.

    Args:
        x: Stored pictures.
        others: As x. All of them are searched, in parts, to save memory.
        k: Neighbours to find.
        own: For each row of x the row of `others` to leave out, shape (N,).
        encode: Brings both to the numbers that are compared.
    """
    x = encode(x).flatten(1)
    k = min(k, len(others))
    best, rows = x.new_full((len(x), k), math.inf), torch.zeros(len(x), k, dtype=torch.long)
    for some in torch.arange(len(others)).split(max(1, min(ROWS, NUMBERS // x.shape[1]))):
        part = encode(others[some[0] : some[-1] + 1]).flatten(1)
        score = part.square().sum(dim=1) - 2 * x @ part.T
        if own is not None:
            here = torch.isin(own, some)
            score[here, own[here] - some[0]] = math.inf
        near = score.topk(min(k, len(some)), dim=1, largest=False)
        best, kept = torch.cat([best, near.values], dim=1).topk(k, dim=1, largest=False)
        rows = torch.cat([rows, near.indices + some[0]], dim=1).gather(1, kept)
    # the fast formula finds the neighbours; their distances come from the exact one, which has no cancellation
    pairs = zip(x, rows, strict=True)
    exact = [(encode(others.index_select(0, near)).flatten(1) - one).norm(dim=1) for one, near in pairs]
    return Nearest(torch.stack(exact), rows)


def nearest_or_mirrored(
    x: Tensor, others: Tensor, k: int = 1, own: Tensor | None = None, encode: Encode = positive
) -> Nearest:
    """As `nearest`, for pictures (N, C, H, W) or their mirror images, whichever is nearer to `others`."""
    found, mirrored = nearest(x, others, k, own, encode), nearest(x.flip(-1), others, k, own, encode)
    nearer = (mirrored.distance[:, :1] < found.distance[:, :1]).expand_as(found.row)
    return Nearest(*(torch.where(nearer, m, f) for m, f in zip(mirrored, found, strict=True)))


def copying(found: Nearest, data: Tensor, search: Callable[..., Nearest] = nearest) -> float:
    """Mean distance of samples to their nearest datum, over that of data to their nearest neighbours.

    Args:
        found: The nearest data of the samples.
        data: The data that was searched, shape (M, *D).
        search: The search used: `nearest`, or `nearest_or_mirrored`.
    """
    some = torch.arange(0, len(data), math.ceil(len(data) / QUERIES))
    return float(found.distance[:, 0].mean() / search(data[some], data, own=some).distance.mean())
