"""Comparing samples of pictures with a reference set, in the features of a network.

The sampler and the reference set come as arguments; the caller gathers the shares of all processes.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.data.batches import evenly
from flowimg.data.cache import name_of
from flowimg.evaluation.distances import NEAREST, SUBSET, Moments, frechet, kid, merge, moments, neighbourhoods
from flowimg.evaluation.features import Extractor, distance_name
from flowimg.evaluation.images import Nearest, copying, nearest, nearest_or_mirrored, within_class_spread
from flowimg.evaluation.reference import KEPT, DataSet, Reference
from flowimg.fields.classifier import Classifier, agreement
from flowimg.flow.condition import Condition
from flowimg.sampling.sampler import Sampler
from flowimg.spaces.pixels import Pixels

MAX_VALUES = 2**28
"""Pixel values of the training pictures whose spread is measured: 60,000 pictures of 38 x 38 x 3; bounds the memory."""


class Comparison(NamedTuple):
    """A network, the reference set (on the first process only), and a classifier if the data have labels."""

    space: Pixels
    extractor: Extractor
    reference: Reference | None
    judge: Classifier | None


class SampleFeatures(NamedTuple):
    """Samples in features: the moments of all; features, pixels and condition of the first `kept` of them.

    `not_finite` counts the samples with a NaN or an infinity, which were replaced by the nearest number that is stored.
    """

    number: int
    nfe: int
    moments: Moments
    features: Tensor
    pixels: Tensor
    cond: Condition
    not_finite: int


class DrawnShare(NamedTuple):
    """The samples of one process: evaluations, number of samples not finite, and batches of features and pixels."""

    nfe: int
    not_finite: int
    features: list[Tensor]
    pixels: list[Tensor]


def joined(shares: Sequence[DrawnShare], cond: Condition, kept: int) -> SampleFeatures:
    """The samples of all processes, of which the features and pixels of the first `kept` are kept; `cond` is theirs."""
    features = torch.cat([batch for part in shares for batch in part.features])
    pixels = torch.cat([batch for part in shares for batch in part.pixels] or [torch.zeros(0)])[:kept]
    nfe, not_finite = max(part.nfe for part in shares), sum(part.not_finite for part in shares)
    return SampleFeatures(
        len(features), nfe, moments(features), features[:kept], pixels, cond.rows(slice(kept)), not_finite
    )


def draw_share(
    sampler: Sampler, comparison: Comparison, seeds: Sequence[int], cond: Condition, mine: Sequence[int], kept: int
) -> DrawnShare:
    """Draw this process's share of the samples, and compute their features.

    Args:
        sampler: The sampler.
        comparison: The network for the features.
        seeds: One per sample, of all processes.
        cond: The condition, one row per sample.
        mine: The rows that this process draws.
        kept: Pixels of samples after the first `kept` are dropped.
    """
    features, pixels = [], []
    nfe = not_finite = done = 0
    with tqdm(total=len(mine), unit="sample", leave=False, disable=None if not mine or mine[0] == 0 else True) as bar:
        for batch in sampler.samples([seeds[row] for row in mine], cond.rows(list(mine))):
            pictures = comparison.space.decode(batch.x_1.float())
            features.append(comparison.extractor(comparison.space.encode(pictures)))
            if mine[done] < kept:
                pixels.append(pictures)
            nfe = max(nfe, batch.nfe)
            not_finite += int((~batch.x_1.isfinite()).flatten(1).any(1).sum())
            done += len(pictures)
            bar.update(len(pictures))
    return DrawnShare(nfe, not_finite, features, pixels)


def pooled(drawn: Sequence[SampleFeatures], comparisons: Sequence[Comparison]) -> tuple[SampleFeatures, Comparison]:
    """The samples of several shapes, and what they are compared with, as one set each: features, and no pixels.

    The data of a shape count by their number, as the samples do.
    """
    references = [one.reference for one in comparisons if one.reference is not None]
    counts = [one.moments.number for one in references]
    shares = [max(1, round(KEPT * count / sum(counts))) for count in counts]
    features = [one.features[evenly(len(one.features), most)] for one, most in zip(references, shares, strict=True)]
    data = references[0].data
    name = f"{sum(counts):,}{data.name[data.name.index(' ') :]}"
    named = data._replace(name=name, sha256=name_of(*(one.data.sha256 for one in references)))
    whole = Reference(named, reduce(merge, (one.moments for one in references)), torch.cat(features))
    samples = SampleFeatures(
        sum(one.number for one in drawn),
        max(one.nfe for one in drawn),
        reduce(merge, (one.moments for one in drawn)),
        torch.cat([one.features for one in drawn]),
        torch.zeros(0),
        reduce(Condition.cat, (one.cond for one in drawn)),
        sum(one.not_finite for one in drawn),
    )
    return samples, comparisons[0]._replace(reference=whole, judge=None)


def distance(drawn: SampleFeatures, comparison: Comparison) -> float:
    """The Fréchet distance of samples; only for the first process."""
    assert comparison.reference is not None
    return frechet(comparison.reference.moments, drawn.moments)


def score(drawn: SampleFeatures, comparison: Comparison) -> tuple[dict[str, Any], Nearest | None]:
    """All scores of samples, and the training pictures nearest to them; only for the first process.

    Samples without pixels, which are of several shapes, are compared by their features only.
    """
    reference = comparison.reference
    assert reference is not None
    fewer = min(len(reference.features), len(drawn.features))
    scores: dict[str, Any] = {"frechet": distance(drawn, comparison)}
    if fewer > 1:
        # subsets of the full size would all be equal, with a spread of 0
        size = max(2, min(SUBSET, fewer // 2))
        scores["kid"], scores["kid_spread"] = kid(reference.features, drawn.features, size=size)
    if drawn.not_finite:
        scores["not_finite"] = drawn.not_finite
    if fewer > NEAREST:
        # equal numbers: more data would lower the coverage, however good the samples
        data = reference.features[evenly(len(reference.features), len(drawn.features))]
        scores |= neighbourhoods(data, drawn.features[: len(data)])._asdict()
    if not len(drawn.pixels):
        return scores, None
    pixels = reference.data.pictures.pixels
    search = partial(nearest_or_mirrored if reference.data.mirrored else nearest, encode=comparison.space.encode)
    found = search(drawn.pixels[:1000], pixels, 4)
    if len(pixels) > 1:
        scores["nearest"] = copying(found, pixels, search)
    if drawn.cond.label is not None and comparison.judge is not None:
        x, space = comparison.space.encode(drawn.pixels), comparison.space
        scores |= _class_scores(x, drawn.cond.label, space, reference.data, comparison.judge)
    return scores, found


def _class_scores(x: Tensor, labels: Tensor, space: Pixels, data: DataSet, judge: Classifier) -> dict[str, Any]:
    """The classifier's agreement with labels, of samples and of held-out data, and the spread within a class."""
    pictures = data.pictures
    assert pictures.labels is not None
    rows = evenly(len(pictures.pixels), max(1, MAX_VALUES // pictures.pixels[0].numel()))
    training = space.encode(pictures.pixels.index_select(0, rows)).flatten(1)
    scores = {"agreement": agreement(judge, x, labels)}
    if data.held_out is not None:
        held_out, cond = data.held_out
        assert cond.label is not None
        scores["judge"] = agreement(judge, held_out, cond.label)
    spread = within_class_spread(x.flatten(1), labels) / within_class_spread(training, pictures.labels[rows])
    return scores if math.isnan(spread) else {**scores, "spread": spread}


def left_out(scores: dict[str, Any]) -> str | None:
    """Which scores there are too few pictures for, and what they need; None if there are enough."""
    needs = {
        "kid": "kid and nearest need 2 training pictures",
        "precision": f"precision, recall, density and coverage need {NEAREST + 1} training pictures and samples",
        "judge": "judge needs held-out pictures (data.held_out)",
        "spread": "spread needs 2 pictures of a class, and 2 samples",
        "nearest": "nearest and the scores of classes need one shape (--shape)",
    }
    of_classes = {"judge", "spread"} if "agreement" not in scores else set()
    if "kid" not in scores:
        del needs["nearest"]
    missing = [need for name, need in needs.items() if name not in scores and name not in of_classes]
    return "; ".join(missing) or None


def measured_with(comparison: Comparison, drawn: SampleFeatures) -> dict[str, Any]:
    """The network and the reference set that the scores depend on, for the record of the evaluation."""
    assert comparison.reference is not None
    extractor, data = comparison.extractor, comparison.reference.data
    return {
        "distance": distance_name(extractor, drawn.number),
        "features": extractor.name,
        "features_sha256": extractor.sha256[:16],
        "resize": extractor.resize,
        "compared_as": extractor.sees or comparison.space.words,
        "reference": data.name,
        "reference_hash": data.sha256[:16],
        "in_turns": drawn.cond.label is not None,
    }
