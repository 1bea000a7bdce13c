"""How well labelled samples fit their class, and whether they vary as the data do.

agreement   share of samples that a classifier trained on the real pictures gives the label they were asked for
judge       share of real pictures, kept apart from field and classifier, that the classifier is right on
spread      root of the summed variances of the pixels within a class, mean over classes; samples over data
nearest     mean distance to the nearest training picture, over the same between training pictures and their nearest
            others: far below 1 the samples are copies

All on pixels in [-1, 1]: a check for small pictures, not a measure of quality at large.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.evaluation.classifier import agreement, train_classifier

QUERIES = 2000
"""Training pictures at most whose distance to their nearest other is measured."""


class ImageScores(NamedTuple):
    """Class agreement and the classifier's own (shares), within-class spread and nearest distance (over the data's)."""

    agreement: float
    judge: float
    spread: float
    nearest: float


def within_class_spread(x: Tensor, labels: Tensor) -> float:
    """Root of the summed variances of the pixels within a class, mean over the classes; x (N, D), labels (N,)."""
    spreads = [x[labels == label].var(dim=0).sum().sqrt() for label in labels.unique()]
    return float(torch.stack(spreads).mean())


def nearest_distance(x: Tensor, others: Tensor, own: Tensor | None = None) -> float:
    """Mean Euclidean distance from each row of x to the nearest of others, others[own[i]] left out for row i."""
    squares = others.square().sum(dim=1)
    distances = []
    for rows in torch.arange(len(x)).split(256):
        score = squares - 2 * x[rows] @ others.T
        if own is not None:
            score[torch.arange(len(rows)), own[rows]] = float("inf")
        # who is nearest by the fast formula, how far by the exact one, which does not cancel
        distances.append((x[rows] - others[score.argmin(dim=1)]).norm(dim=1))
    return float(torch.cat(distances).mean())


def score_images(
    samples: Tensor, labels: Tensor, data: Tensor, data_labels: Tensor, unseen: Tensor, unseen_labels: Tensor
) -> ImageScores:
    """Scores of labelled samples against the training pictures.

    Args:
        samples: Shape (N, *D), in [-1, 1].
        labels: The class each was asked for, shape (N,).
        data: Training pictures, shape (M, *D), in [-1, 1].
        data_labels: Their classes, shape (M,).
        unseen: Real pictures that were not trained on, shape (K, *D).
        unseen_labels: Their classes, shape (K,).
    """
    classifier = train_classifier(data, data_labels, int(data_labels.max()) + 1)
    x, real = samples.flatten(1), data.flatten(1)
    some = torch.arange(0, len(real), math.ceil(len(real) / QUERIES))
    return ImageScores(
        agreement=agreement(classifier, samples, labels),
        judge=agreement(classifier, unseen, unseen_labels),
        spread=within_class_spread(x, labels) / within_class_spread(real, data_labels),
        nearest=nearest_distance(x, real) / nearest_distance(real[some], real, some),
    )
