"""What the samples of a run are measured with: the run's data, and a network whose features both are compared in."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.config import Config, SettingsError, Solving
from flowimg.data.batches import evenly
from flowimg.data.cache import cache_folder, keep_arrays, name_of, read_arrays
from flowimg.data.store import Images, fingerprint, to_unit
from flowimg.data.stream import StreamBatches
from flowimg.evaluation import extractors
from flowimg.evaluation.classifier import Classifier, agreement, train_classifier
from flowimg.evaluation.distances import NEAREST, SUBSET, Moments, frechet, kid, merge, moments, neighbourhoods
from flowimg.evaluation.extractors import Extractor
from flowimg.evaluation.images import Nearest, copying, nearest, nearest_or_mirrored, within_class_spread
from flowimg.jobs.build import DataFacts, build_source, check_same
from flowimg.jobs.draw import share, stream, turns
from flowimg.sampling.generate import to_uint8

KEPT = 10_000
"""Features, and samples, that KID and neighbourhoods are taken of; the Fréchet distance is of all."""
MOST_PICTURES, MOST_BYTES = 200_000, 2**33
"""Training pictures that the reference is made of at most, and what they may take of the memory."""
MOST_NUMBERS = 2**28
"""Numbers of the training pictures whose spread is taken, for memory's sake: 60,000 pictures of 38 pixels."""
BATCH = 250


class Reference(NamedTuple):
    """The data in features: their moments and some features, (N, F); the pictures; and what it is called.

    `mirrored` says that a field may have learned them mirrored, too.
    """

    name: str
    sha256: str
    moments: Moments
    features: Tensor
    pictures: Images
    apart: tuple[Tensor, Tensor | None]
    mirrored: bool


class Yardstick(NamedTuple):
    """A network, the data in its features (on the first process alone), and a judge of labels where there are any."""

    extractor: Extractor
    reference: Reference | None
    judge: Classifier | None


class Drawn(NamedTuple):
    """Samples in features: moments of all of them; features, pixels and labels of those kept, the first.

    `not_finite` of them held a number that is none, and were taken for what is nearest to it in bytes.
    """

    number: int
    nfe: int
    moments: Moments
    features: Tensor
    pixels: Tensor
    labels: Tensor | None
    not_finite: int


def find_extractor(
    features: str, shape: tuple[int, ...], device: torch.device, file: str | None = None, download: bool = False
) -> Extractor | None:
    """The network that is asked for; None for `proxy`, which the data decide.

    Args:
        features: See --features of flowimg evaluate.
        shape: Of a picture.
        device: Where it runs.
        file: Weights of Inception.
        download: Fetch what is not on this machine.
    Raises:
        SettingsError: If it calls itself proxy and is none.
        ExtractorError: If there is no such network.
    """
    if features == "proxy":
        return None
    if features.startswith("proxy") and features != "proxy-random":
        raise SettingsError(
            f"there are no features {features}: proxy is the classifier of the data's labels where there are any, and "
            "proxy-random needs none"
        )
    if features == "proxy-random":
        return extractors.random_convolutions(shape[0], shape[1], device)
    if features == "inception":
        return extractors.inception(file, download, device)
    return extractors.transformer(features, download, device)


def find_yardstick(
    config: Config, facts: DataFacts, extractor: Extractor | None, state: PartialState, learned: str | None = None
) -> Yardstick:
    """A network, and the run's data seen by it; kept in the cache folder for the next time.

    Args:
        config: The run.
        facts: What it learned of its data.
        extractor: The network; None for the one that the data decide: a classifier of their labels, or fixed filters.
        state: The processes.
        learned: The fingerprint of what it learned from, if known; other data of the same form are warned of.
    Raises:
        DataError: If the data are of another form than what the run learned from.
    """
    # by whom samples are judged, or what they are compared in: a run without labels may be compared in what those of
    # its data teach
    wanted = extractor is None or config.data.labels
    seen = config.model_copy(update={"data": config.data.model_copy(update={"labels": wanted})})
    with state.main_process_first():  # one fills the cache of what was looked through, the others read it
        source = build_source(seen)
    check_same(config, facts, source.facts)
    classes = len(source.facts.classes)
    judged = classes > 1  # of a single class there is nothing to tell apart, and nothing that a classifier would learn
    cache = cache_folder(config.data.cache)  # type: ignore[union-attr]
    pictures = apart = None
    if state.is_main_process:
        batches: Any = source.load(torch.device("cpu"))
        if wanted == config.data.labels and learned not in (None, batches.fingerprint):
            print(
                f"warning   {config.data.source} has changed: the run learned from pictures of fingerprint {learned}, "  # type: ignore[union-attr]
                f"and is compared with those there now, {batches.fingerprint}"
            )
        pictures = batches.some(min(MOST_PICTURES, MOST_BYTES // math.prod(facts.shape)))
        apart = batches.held_out(config.data.held_out)
        if isinstance(batches, StreamBatches):
            batches.close()
    # told by the first to the others: one trained elsewhere would round otherwise, and see otherwise
    sha256 = fingerprint(pictures) if pictures else ""
    weights: list[Any] = [_judge(cache, sha256, pictures, classes) if pictures and judged else None]
    broadcast_object_list(weights)
    judge = None
    if weights[0] is not None:
        judge = Classifier(source.facts.shape[0], classes)
        judge.load_state_dict(weights[0])
        judge = judge.eval()
    if extractor is None and judge is not None:
        extractor = extractors.classifier_features(judge, state.device)
    elif extractor is None:
        extractor = extractors.random_convolutions(facts.shape[0], facts.shape[1], state.device)
    reference = _reference(seen, cache, sha256, pictures, apart, extractor) if pictures and apart else None
    return Yardstick(extractor, reference, judge)


def _judge(cache: Path, sha256: str, pictures: Images, classes: int) -> dict[str, Tensor]:
    """The weights of a classifier of the data, trained once."""
    assert pictures.labels is not None
    path = cache / "classifiers" / f"{name_of(sha256, classes, 1)}.npz"
    if kept := read_arrays(path):
        return {name: torch.from_numpy(value) for name, value in kept.items()}
    print("training   a classifier of the real pictures, once", flush=True)
    weights = train_classifier(pictures.pixels, pictures.labels, classes).state_dict()
    keep_arrays(path, **{name: value.numpy() for name, value in weights.items()})
    return weights


def _reference(
    config: Config,
    cache: Path,
    sha256: str,
    pictures: Images,
    apart: tuple[Tensor, Tensor | None],
    extractor: Extractor,
) -> Reference:
    count = len(pictures.pixels)
    path = cache / "references" / f"{name_of(sha256, extractor.name, extractor.sha256, extractor.resize)}.npz"
    kept = read_arrays(path)
    if kept is None:
        found, parts, wanted = None, [], evenly(count, KEPT)
        bar = tqdm(total=count, unit="picture", desc="the data in features", leave=False, disable=None)
        for rows in torch.arange(count).split(BATCH):
            seen = extractor(pictures.pixels[rows[0] : rows[-1] + 1])
            found = moments(seen) if found is None else merge(found, moments(seen))
            parts.append(seen[wanted[(wanted >= rows[0]) & (wanted <= rows[-1])] - rows[0]])
            bar.update(len(rows))
        bar.close()
        assert found is not None
        features = torch.cat(parts)
        keep_arrays(
            path, mean=found.mean.cpu().numpy(), covariance=found.covariance.cpu().numpy(), features=features.numpy()
        )
    else:
        found = Moments(count, torch.from_numpy(kept["mean"]), torch.from_numpy(kept["covariance"]))
        features = torch.from_numpy(kept["features"])
    data = config.data
    name = f"{count:,} training pictures of {data.source}, {data.split}"  # type: ignore[union-attr]
    mirrored = data.flip or data.augment > 0  # type: ignore[union-attr]
    return Reference(name, sha256, found, features, pictures, apart, mirrored)


class Share(NamedTuple):
    """What one process drew: evaluations counted, samples not finite, and, batch by batch, features and kept pixels."""

    nfe: int
    not_finite: int
    features: list[Tensor]
    pixels: list[Tensor]


def draw_all(
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    how: Solving,
    seeds: range,
    extractor: Extractor,
    state: PartialState,
    inside: Sequence[AbstractContextManager[Any]] = (),
    batch_size: int | None = None,
    kept: int = KEPT,
) -> Drawn | None:
    """Draw the samples of these seeds, shared out over all processes, and see them.

    Args:
        field: The field, and what it was built from: `config` and `facts`.
        config: See above.
        facts: See above.
        how: How the flow is followed.
        seeds: One a sample.
        extractor: What sees them.
        state: The processes.
        inside: Contexts to draw in; one that ends the drawing gives up the whole.
        batch_size: Samples at once.
        kept: Samples whose features and pixels are kept; the moments are of all.
    Returns:
        All samples in features, on the first process; None elsewhere, and where a process gave up its share.
    """
    own = None
    with ExitStack() as stack:
        for context in inside:
            stack.enter_context(context)
        own = _draw_share(field, config, facts, how, seeds, extractor, state, batch_size, kept)
    shares: list[Share | None] = gather_object([own])
    drawn = [part for part in shares if part is not None]
    if not state.is_main_process or len(drawn) < len(shares):
        return None
    features = torch.cat([batch for part in drawn for batch in part.features])
    pixels = torch.cat([batch for part in drawn for batch in part.pixels] or [torch.zeros(0)])[:kept]
    labels = turns(seeds[:kept], facts.classes)
    nfe = max(part.nfe for part in drawn)
    not_finite = sum(part.not_finite for part in drawn)
    return Drawn(len(seeds), nfe, moments(features), features[:kept], pixels, labels, not_finite)


def _draw_share(
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    how: Solving,
    seeds: range,
    extractor: Extractor,
    state: PartialState,
    batch_size: int | None,
    kept: int,
) -> Share:
    """This process's share; pixels past the first `kept` are let go."""
    mine = share(range(len(seeds)), state.process_index, state.num_processes)
    labels = turns(seeds, facts.classes)
    wanted = None if labels is None else labels[list(mine)]
    found, done = Share(0, 0, [], []), 0
    shown = None if state.is_main_process else True
    with tqdm(total=len(mine), unit="sample", leave=False, disable=shown) as bar:
        for batch in stream(field, config, facts, how, [seeds[row] for row in mine], wanted, batch_size):
            seen = to_uint8(batch.x_1.float())
            found.features.append(extractor(seen))
            if mine[done] < kept:
                found.pixels.append(seen)
            bad = int((~batch.x_1.isfinite()).flatten(1).any(1).sum())
            found = found._replace(nfe=max(found.nfe, batch.nfe), not_finite=found.not_finite + bad)
            done += len(seen)
            bar.update(len(seen))
    return found


def distance(drawn: Drawn, yard: Yardstick) -> float:
    """The Fréchet distance of samples, on the first process."""
    assert yard.reference is not None
    return frechet(yard.reference.moments, drawn.moments)


def score(drawn: Drawn, yard: Yardstick) -> tuple[dict[str, Any], Nearest]:
    """All scores of samples, on the first process, and the training pictures nearest to them."""
    reference = yard.reference
    assert reference is not None
    # subsets of all that is there would have no spread to tell of
    few = min(len(reference.features), len(drawn.features))
    mean, spread = kid(reference.features, drawn.features, size=max(2, min(SUBSET, few // 2)))
    scores: dict[str, Any] = {"frechet": distance(drawn, yard), "kid": mean, "kid_spread": spread}
    if drawn.not_finite:
        scores["not_finite"] = drawn.not_finite
    if few > NEAREST:
        # as many of each: among more data fewer are covered, however good the samples
        data_features = reference.features[evenly(len(reference.features), len(drawn.features))]
        scores |= neighbourhoods(data_features, drawn.features[: len(data_features)])._asdict()
    pixels = reference.pictures.pixels
    search = nearest_or_mirrored if reference.mirrored else nearest
    found = search(drawn.pixels[:1000], pixels, 4)
    scores["nearest"] = copying(found, pixels, search)
    apart, apart_labels = reference.apart
    if drawn.labels is not None and yard.judge is not None:
        assert apart_labels is not None
        assert reference.pictures.labels is not None
        some = evenly(len(pixels), max(1, MOST_NUMBERS // pixels[0].numel()))
        data = to_unit(pixels.index_select(0, some)).flatten(1)
        x = to_unit(drawn.pixels).flatten(1)
        scores |= {
            "agreement": agreement(yard.judge, to_unit(drawn.pixels), drawn.labels),
            "judge": agreement(yard.judge, apart, apart_labels),
            "spread": within_class_spread(x, drawn.labels) / within_class_spread(data, reference.pictures.labels[some]),
        }
    return scores, found


def told(yard: Yardstick, drawn: Drawn) -> dict[str, Any]:
    """What the figures were measured with, for the protocol line."""
    assert yard.reference is not None
    return {
        "distance": extractors.distance_name(yard.extractor, drawn.number),
        "features": yard.extractor.name,
        "features_sha256": yard.extractor.sha256[:16],
        "resize": yard.extractor.resize,
        "reference": yard.reference.name,
        "reference_hash": yard.reference.sha256[:16],
        "in_turns": drawn.labels is not None,
    }
