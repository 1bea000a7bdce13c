"""Comparing samples of pictures with a reference set, in the features of a network.

The sampler, the reference set and how results are gathered from all processes come as arguments.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.data.batches import evenly
from flowimg.evaluation import features
from flowimg.evaluation.distances import NEAREST, SUBSET, Moments, frechet, kid, moments, neighbourhoods
from flowimg.evaluation.features import Extractor
from flowimg.evaluation.images import Nearest, copying, nearest, nearest_or_mirrored, within_class_spread
from flowimg.evaluation.reference import KEPT, Reference
from flowimg.fields.classifier import Classifier, agreement
from flowimg.flow.condition import Condition
from flowimg.sampling.sampler import Sampler
from flowimg.spaces.space import Space

MOST_NUMBERS = 2**28
"""Numbers of the training pictures whose spread is taken, for memory's sake: 60,000 pictures of 38 pixels."""


class Comparison(NamedTuple):
    """A network, the reference set (on the first process only), and a judge of labels where there are any."""

    space: Space
    extractor: Extractor
    reference: Reference | None
    judge: Classifier | None


class Drawn(NamedTuple):
    """Samples in features: moments of all of them; features, pixels and condition of those kept, the first.

    `not_finite` counts the samples that held a NaN or an infinity; they were replaced by the nearest bytes.
    """

    number: int
    nfe: int
    moments: Moments
    features: Tensor
    pixels: Tensor
    cond: Condition
    not_finite: int


class DrawnShare(NamedTuple):
    """What one process drew: evaluations, samples not finite, and, batch by batch, features and kept pixels."""

    nfe: int
    not_finite: int
    features: list[Tensor]
    pixels: list[Tensor]


Gather = Callable[[DrawnShare | None], list[DrawnShare | None]]
"""The shares of all processes, in their order."""


def draw_all(
    sampler: Sampler,
    comparison: Comparison,
    seeds: range,
    cond: Condition,
    mine: Sequence[int],
    gather: Gather,
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext,
    kept: int = KEPT,
) -> Drawn | None:
    """Draw the samples of these seeds, shared out over all processes, and see them.

    Args:
        sampler: Draws them.
        comparison: What sees them.
        seeds: One a sample.
        cond: What the field is given, a row a sample.
        mine: The rows that this process draws.
        gather: Collects the shares of all processes.
        inside: A context to draw in; one that ends the drawing gives up the whole.
        kept: Samples whose features and pixels are kept; the moments are of all.

    Returns:
        All samples in features; None where a process gave up its share.
    """
    own = None
    with inside():
        own = _draw_share(sampler, comparison, seeds, cond, mine, kept)
    shares = gather(own)
    drawn = [part for part in shares if part is not None]
    if len(drawn) < len(shares):
        return None
    found = torch.cat([batch for part in drawn for batch in part.features])
    pixels = torch.cat([batch for part in drawn for batch in part.pixels] or [torch.zeros(0)])[:kept]
    nfe = max(part.nfe for part in drawn)
    not_finite = sum(part.not_finite for part in drawn)
    return Drawn(len(seeds), nfe, moments(found), found[:kept], pixels, cond.rows(slice(kept)), not_finite)


def _draw_share(
    sampler: Sampler, comparison: Comparison, seeds: range, cond: Condition, mine: Sequence[int], kept: int
) -> DrawnShare:
    """This process's share; pixels past the first `kept` are let go."""
    found, done = DrawnShare(0, 0, [], []), 0
    shown = None if not mine or mine[0] == 0 else True
    with tqdm(total=len(mine), unit="sample", leave=False, disable=shown) as bar:
        for batch in sampler.samples([seeds[row] for row in mine], cond.rows(list(mine))):
            seen = comparison.space.decode(batch.x_1.float())
            found.features.append(comparison.extractor(seen))
            if mine[done] < kept:
                found.pixels.append(seen)
            bad = int((~batch.x_1.isfinite()).flatten(1).any(1).sum())
            found = found._replace(nfe=max(found.nfe, batch.nfe), not_finite=found.not_finite + bad)
            done += len(seen)
            bar.update(len(seen))
    return found


def distance(drawn: Drawn, comparison: Comparison) -> float:
    """The Fréchet distance of samples, on the first process."""
    assert comparison.reference is not None
    return frechet(comparison.reference.moments, drawn.moments)


def score(drawn: Drawn, comparison: Comparison) -> tuple[dict[str, Any], Nearest]:
    """All scores of samples, on the first process, and the training pictures nearest to them."""
    reference = comparison.reference
    assert reference is not None
    # subsets of all that is there would have no spread to tell of
    few = min(len(reference.features), len(drawn.features))
    mean, spread = kid(reference.features, drawn.features, size=max(2, min(SUBSET, few // 2)))
    scores: dict[str, Any] = {"frechet": distance(drawn, comparison), "kid": mean, "kid_spread": spread}
    if drawn.not_finite:
        scores["not_finite"] = drawn.not_finite
    if few > NEAREST:
        # as many of each: among more data fewer are covered, however good the samples
        data_features = reference.features[evenly(len(reference.features), len(drawn.features))]
        scores |= neighbourhoods(data_features, drawn.features[: len(data_features)])._asdict()
    pixels = reference.data.pictures.pixels
    search = nearest_or_mirrored if reference.data.mirrored else nearest
    found = search(drawn.pixels[:1000], pixels, 4)
    scores["nearest"] = copying(found, pixels, search)
    if drawn.cond.label is not None and comparison.judge is not None:
        scores |= _judged(drawn, comparison.space, reference, comparison.judge)
    return scores, found


def _judged(drawn: Drawn, space: Space, reference: Reference, judge: Classifier) -> dict[str, Any]:
    """Agreement with the label, of samples and of held-out data, and the spread within a class."""
    pictures, (held_out, told) = reference.data.pictures, reference.data.held_out
    assert pictures.labels is not None
    assert told.label is not None
    assert drawn.cond.label is not None
    pixels = pictures.pixels
    some = evenly(len(pixels), max(1, MOST_NUMBERS // pixels[0].numel()))
    data = space.encode(pixels.index_select(0, some)).flatten(1)
    x = space.encode(drawn.pixels)
    labels = drawn.cond.label
    return {
        "agreement": agreement(judge, x, labels),
        "judge": agreement(judge, held_out, told.label),
        "spread": within_class_spread(x.flatten(1), labels) / within_class_spread(data, pictures.labels[some]),
    }


def told(comparison: Comparison, drawn: Drawn) -> dict[str, Any]:
    """What the scores were measured with, for the protocol line."""
    assert comparison.reference is not None
    return {
        "distance": features.distance_name(comparison.extractor, drawn.number),
        "features": comparison.extractor.name,
        "features_sha256": comparison.extractor.sha256[:16],
        "resize": comparison.extractor.resize,
        "reference": comparison.reference.data.name,
        "reference_hash": comparison.reference.data.sha256[:16],
        "in_turns": drawn.cond.label is not None,
    }
