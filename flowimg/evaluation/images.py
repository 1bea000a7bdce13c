"""How well labelled samples fit their class, and whether they vary as the data do.

agreement   share of samples that a classifier trained on the real pictures gives the label they were asked for
spread      root of the summed variances of the pixels within a class, mean over classes; samples over data
nearest     mean distance to the nearest training picture, over the same between training pictures and their nearest
            others: far below 1 the samples are copies

All on pixels in [-1, 1]: a check for small pictures, not a measure of quality at large.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ImageScores(NamedTuple):
    """Class agreement (a share), within-class spread and nearest distance (ratios to the data's own)."""

    agreement: float
    spread: float
    nearest: float


def within_class_spread(x: Tensor, labels: Tensor) -> float:
    """Root of the summed variances of the pixels within a class, mean over the classes; x (N, D), labels (N,)."""
    spreads = [x[labels == label].var(dim=0).sum().sqrt() for label in labels.unique()]
    return float(torch.stack(spreads).mean())


def nearest_distance(x: Tensor, others: Tensor, same: bool = False) -> float:
    """Mean Euclidean distance from each row of x to the nearest of others; `same`: a row is not its own nearest."""
    distances = []
    for start in range(0, len(x), 512):
        d = torch.cdist(x[start : start + 512], others, compute_mode="donot_use_mm_for_euclid_dist")
        if same:
            d[torch.arange(len(d)), torch.arange(start, start + len(d))] = float("inf")
        distances.append(d.min(dim=1).values)
    return float(torch.cat(distances).mean())


def score_images(samples: Tensor, labels: Tensor, data: Tensor, data_labels: Tensor) -> ImageScores:
    """Scores of labelled samples against the training pictures.

    Args:
        samples: Shape (N, *D), in [-1, 1].
        labels: The class each was asked for, shape (N,).
        data: Training pictures, shape (M, *D), in [-1, 1].
        data_labels: Their classes, shape (M,).
    """
    from sklearn.svm import SVC

    x, real = samples.flatten(1), data.flatten(1)
    classifier = SVC(C=10.0).fit(real.numpy(), data_labels.numpy())
    agreement = float((torch.from_numpy(classifier.predict(x.numpy())) == labels).float().mean())
    return ImageScores(
        agreement=agreement,
        spread=within_class_spread(x, labels) / within_class_spread(real, data_labels),
        nearest=nearest_distance(x, real) / nearest_distance(real, real, same=True),
    )
