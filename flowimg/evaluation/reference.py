"""The reference set: the run's data in the features of a network, kept in the cache folder; and a judge of labels."""

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
from flowimg.spaces.pixels import Pixels

KEPT = 10_000
"""Features, and samples, that KID and neighbourhoods are taken of; the Fréchet distance is of all."""
BATCH = 250


class DataSet(NamedTuple):
    """Training pictures, their name in words, their fingerprint, and the held-out ones with their condition.

    `mirrored` says that a field may have learned them mirrored, too.
    """

    name: str
    sha256: str
    pictures: Images
    held_out: tuple[Tensor, Condition]
    mirrored: bool


class Reference(NamedTuple):
    """A data set in features: the moments of all, and some features, (N, F)."""

    data: DataSet
    moments: Moments
    features: Tensor


def judge_weights(cache: Path, data: DataSet, classes: int) -> dict[str, Tensor]:
    """The weights of a classifier of the data, trained once."""
    pictures = data.pictures
    assert pictures.labels is not None
    path = cache / "classifiers" / f"{name_of(data.sha256, classes, 1)}.npz"
    if kept := read_arrays(path):
        return {name: torch.from_numpy(value) for name, value in kept.items()}
    print("training   a classifier of the real pictures, once", flush=True)
    encode = Pixels(tuple(pictures.pixels.shape[1:])).encode
    weights = train_classifier(pictures.pixels, pictures.labels, classes, encode).state_dict()
    keep_arrays(path, **{name: value.numpy() for name, value in weights.items()})
    return weights


def reference_of(cache: Path, data: DataSet, extractor: Extractor) -> Reference:
    """The data seen by a network, once."""
    pixels = data.pictures.pixels
    count = len(pixels)
    path = cache / "references" / f"{name_of(data.sha256, extractor.name, extractor.sha256, extractor.resize)}.npz"
    kept = read_arrays(path)
    if kept is not None:
        found = Moments(count, torch.from_numpy(kept["mean"]), torch.from_numpy(kept["covariance"]))
        return Reference(data, found, torch.from_numpy(kept["features"]))
    known: Moments | None = None
    parts, wanted = [], evenly(count, KEPT)
    with tqdm(total=count, unit="picture", desc="the data in features", leave=False, disable=None) as bar:
        for rows in torch.arange(count).split(BATCH):
            seen = extractor(pixels[rows[0] : rows[-1] + 1])
            known = moments(seen) if known is None else merge(known, moments(seen))
            parts.append(seen[wanted[(wanted >= rows[0]) & (wanted <= rows[-1])] - rows[0]])
            bar.update(len(rows))
    assert known is not None
    features = torch.cat(parts)
    mean, covariance = known.mean.cpu().numpy(), known.covariance.cpu().numpy()
    keep_arrays(path, mean=mean, covariance=covariance, features=features.numpy())
    return Reference(data, known, features)
