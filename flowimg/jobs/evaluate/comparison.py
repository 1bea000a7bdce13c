"""What pictures are compared with: the run's data in the features of a network, built once and cached."""

import math
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from flowimg.build.data import build_source, build_space, cache_of
from flowimg.build.facts import DataFacts, check_same
from flowimg.data.store import fingerprint
from flowimg.errors import SettingsError
from flowimg.evaluation.comparison import Comparison
from flowimg.evaluation.features import Extractor, classifier_features, inception, random_convolutions, transformer
from flowimg.evaluation.reference import DataSet, judge_weights, reference_of
from flowimg.fields.classifier import Classifier
from flowimg.names import one_line
from flowimg.settings.run import Config
from flowimg.spaces.pixels import Pixels

MAX_PICTURES, MAX_BYTES = 200_000, 2**33
"""The maximum number of training pictures in a reference set, and of the bytes of memory they take."""


class ComparisonOptions(NamedTuple):
    """The choice of features; see the settings of `flowimg evaluate`.

    `learned` is the fingerprint of the data that the run was trained on, if known.
    """

    features: str = "proxy"
    inception: str | None = None
    download: bool = False
    learned: str | None = None


def build_comparisons(
    config: Config, facts: DataFacts, options: ComparisonOptions, state: PartialState
) -> list[Comparison]:
    """A network, and the run's data in its features, for each shape of the samples.

    Args:
        config: The run.
        facts: The facts of the data that it was trained on.
        options: The choice of the network. If the data differ from `options.learned`, a warning is printed.
        state: The processes.

    Raises:
        SettingsError: If there are no such features.
        ExtractorError: If the network is unavailable.
        DataError: If the shape or the classes of the data are not those that the run was trained on.
    """
    spaces: list[Any] = [build_space(config, facts._replace(shape=shape)) for shape in facts.shapes]
    space = spaces[0]
    if len(spaces) > 1 and options.features == "proxy":  # a classifier would have to be trained on all shapes
        options = options._replace(features="proxy-random")
    with state.main_process_first():  # first, because it may fail; one process downloads it for all
        extractor = _extractor(options, space, state.device)
    # an unconditional run, too, is compared in the features of a classifier of its data's labels
    labels = extractor is None or config.data.labels
    learned = options.learned if labels == config.data.labels else None
    config = config.model_copy(update={"data": config.data.model_copy(update={"labels": labels})})
    with state.main_process_first():  # the first process fills the cache that the others read
        source = build_source(config)
    check_same(config, facts, source.facts)
    classes, cache = len(source.facts.classes), cache_of(config)
    sets: list[DataSet | None] = [None] * len(spaces)
    if state.is_main_process:
        batches = source.load(torch.device("cpu"))
        _warn_if_changed(config, batches.fingerprint, learned)
        sets = [_data_set(config, batches.part(one.shape)) for one in spaces]
        batches.close()
    data = sets[0] if len(sets) == 1 else None
    # all processes get the weights of the first one: a classifier trained elsewhere would be rounded differently
    weights: list[Any] = [judge_weights(cache, data, space, classes) if data and classes > 1 else None]
    broadcast_object_list(weights)
    judge = None
    if weights[0] is not None:
        judge = Classifier(source.facts.shape[0], classes)
        judge.load_state_dict(weights[0])
        judge = judge.eval()
    if extractor is None:
        extractor = classifier_features(judge, state.device) if judge else _random(space, state.device)
    return [
        Comparison(one, extractor, reference_of(cache, some, one, extractor) if some else None, judge)
        for one, some in zip(spaces, sets, strict=True)
    ]


def _random(space: Pixels, device: torch.device) -> Extractor:
    channels, height, width = space.shape
    return random_convolutions(channels, min(height, width), device)


def _extractor(options: ComparisonOptions, space: Pixels, device: torch.device) -> Extractor | None:
    """The chosen network; None for `proxy`, where the data decide."""
    features = options.features
    if features == "proxy":
        return None
    if features == "proxy-random":
        return _random(space, device)
    if features.startswith("proxy"):
        raise SettingsError(
            f"there are no features {features}: proxy is the classifier of the data's labels if there are any, and "
            "proxy-random needs none"
        )
    if space.shape[0] not in (1, 3) and not space.alpha:
        raise SettingsError(
            f"--features {features} compares grey, RGB and RGBA pictures, and these have {space.shape[0]} channels: "
            "give proxy or proxy-random, which compare all"
        )
    if features == "inception":
        return inception(options.inception, options.download, device)
    return transformer(features, options.download, device)


def _warn_if_changed(config: Config, now: str | None, learned: str | None) -> None:
    data: Any = config.data
    if learned not in (None, now):
        print(
            f"warning   {one_line(data.source)} has changed: the run was trained on data of fingerprint {learned} and "
            f"is compared with data of fingerprint {now}"
        )


def _data_set(config: Config, batches: Any) -> DataSet:
    """The training and held-out pictures of one shape."""
    data: Any = config.data
    each = math.prod(batches.space.shape) * batches.space.depth.bytes
    pictures = batches.some(min(MAX_PICTURES, MAX_BYTES // each))
    held_out = batches.held_out(data.held_out) if data.held_out else None
    if held_out and not len(held_out[0]):  # of a small bucket none may be
        held_out = None
    name = f"{len(pictures.pixels):,} training pictures of {one_line(data.source)}, {data.split}"
    return DataSet(name, fingerprint(pictures), pictures, held_out, data.flip or data.augment > 0)
