"""The reference set: the run's data in the features of a network; and a classifier of it. Both are cached."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.data.batches import evenly
from flowimg.data.cache import keep_arrays, name_of, read_arrays
from flowimg.data.store import Images
from flowimg.evaluation.distances import Moments, merge, moments
from flowimg.evaluation.features import Extractor
from flowimg.fields.classifier import train_classifier
from flowimg.flow.condition import Condition
from flowimg.spaces.depth import BYTES, Depth
from flowimg.spaces.pixels import Pixels

KEPT = 10_000
"""The number of features, and of samples, for KID and neighbourhoods; the Fréchet distance uses all."""
BATCH = 250


class DataSet(NamedTuple):
    """Training pictures, their description, their fingerprint, and any held-out pictures with their condition.

    `mirrored` says that the field may have learned mirrored pictures too.
    """

    name: str
    sha256: str
    pictures: Images
    held_out: tuple[Tensor, Condition] | None
    mirrored: bool


class Reference(NamedTuple):
    """A data set in features: the moments of all of it, and the features (N, F) of a part."""

    data: DataSet
    moments: Moments
    features: Tensor


def _depth(space: Pixels) -> tuple[Depth, ...]:
    """What of a depth changes x, for the names of the cache; nothing for the usual one."""
    return () if space.depth == BYTES else (space.depth,)


def judge_weights(cache: Path, data: DataSet, space: Pixels, classes: int) -> dict[str, Tensor]:
    """The weights of a classifier of the data; it is trained once and cached."""
    pictures = data.pictures
    assert pictures.labels is not None
    path = cache / "classifiers" / f"{name_of(data.sha256, classes, 1, *_depth(space))}.npz"
    if kept := read_arrays(path):
        return {name: torch.from_numpy(value) for name, value in kept.items()}
    print("training   a classifier of the real pictures; it is cached", flush=True)
    weights = train_classifier(pictures.pixels, pictures.labels, classes, space.encode).state_dict()
    keep_arrays(path, **{name: value.numpy() for name, value in weights.items()})
    return weights


def reference_of(cache: Path, data: DataSet, space: Pixels, extractor: Extractor) -> Reference:
    """The data in the features of a network; they are computed once and cached."""
    pixels = data.pictures.pixels
    count = len(pixels)
    named = name_of(data.sha256, extractor.name, extractor.sha256, extractor.resize, *_depth(space))
    path = cache / "references" / f"{named}.npz"
    if kept := read_arrays(path):
        mean, covariance, features = (torch.from_numpy(kept[name]) for name in ("mean", "covariance", "features"))
        return Reference(data, Moments(count, mean, covariance), features)
    merged: Moments | None = None
    parts, wanted = [], evenly(count, KEPT)
    with tqdm(total=count, unit="picture", desc="features of the data", leave=False, disable=None) as bar:
        for rows in torch.arange(count).split(BATCH):
            batch = extractor(space.encode(pixels[rows[0] : rows[-1] + 1]))
            merged = merge(merged, moments(batch)) if merged else moments(batch)
            parts.append(batch[wanted[(wanted >= rows[0]) & (wanted <= rows[-1])] - rows[0]])
            bar.update(len(rows))
    assert merged is not None
    features = torch.cat(parts)
    keep_arrays(path, mean=merged.mean.numpy(), covariance=merged.covariance.numpy(), features=features.numpy())
    return Reference(data, merged, features)
