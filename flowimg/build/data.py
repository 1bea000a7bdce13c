"""Settings to data: sources, toys, and the space of x."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flowimg.data import toys
from flowimg.data.batches import Batches, ImageBatches, PointBatches
from flowimg.data.cache import cache_folder
from flowimg.data.decode import Decoding
from flowimg.data.find import Found, find
from flowimg.data.listing import listed
from flowimg.data.store import Stored, hold_out, store
from flowimg.data.workers import share_of_cores
from flowimg.errors import DataError
from flowimg.flow.randomness import generator
from flowimg.machine.device import memory_bytes
from flowimg.settings.data import ImageData, PointData
from flowimg.settings.run import Config
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points
from flowimg.spaces.space import Space


class DataFacts(NamedTuple):
    """What a field must know of the data: the shape of a sample, and the names of the classes it is conditional on.

    `architecture` is that of a network that was fetched, in a run that continues from it. `numbers` is what
    `build_field` adds by the settings: how many numbers describe an augmentation.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    architecture: dict[str, Any] | None = None
    numbers: int = 0


class FoundData(NamedTuple):
    """Data that were found: their facts, and a line about them.

    `load` makes batches of them on a device; only then are pictures decoded.
    """

    facts: DataFacts
    story: str
    load: Callable[[torch.device], Batches]


TOYS: dict[str, Callable[[PointData], toys.Toy]] = {
    "checkerboard": lambda s: toys.Checkerboard(s.cells),
    "moons": lambda s: toys.Moons(),
    "eight_gaussians": lambda s: toys.EightGaussians(),
    "spirals": lambda s: toys.Spirals(),
    "rings": lambda s: toys.Rings(),
}

SPACES: dict[str, Callable[[Config, DataFacts], Space]] = {
    "points": lambda c, facts: _plane(build_toy(c)),
    "images": lambda c, facts: Pixels(facts.shape),
}


def build_toy(config: Config) -> toys.Toy:
    """The distribution of points that a run learns."""
    assert isinstance(config.data, PointData)
    return TOYS[config.data.source](config.data)


def _plane(toy: toys.Toy) -> Points:
    return Points(toy.extent, lambda count: toy.sample(torch.rand(count, 3, generator=generator("figure"))))


def build_space(config: Config, facts: DataFacts) -> Space:
    """What x is in a run."""
    return SPACES[config.data.kind](config, facts)


def _points(config: Config) -> FoundData:
    data = config.data
    assert isinstance(data, PointData)
    toy = build_toy(config)
    classes = tuple(str(part) for part in range(toy.parts)) if data.labels else ()
    story = f"{data.source}: points drawn afresh" + (f", {len(classes)} classes" if classes else "")
    return FoundData(
        DataFacts((2,), classes), story, lambda device: PointBatches(toy, data.labels, config.seed, device)
    )


def _images(config: Config) -> FoundData:
    data = config.data
    assert isinstance(data, ImageData)
    return (_streamed if data.stream else _stored)(config, data)


def find_images(data: ImageData) -> Found:
    """Look the source of pictures through."""
    asked = "source subset root split image_column label_column labels classes first size channels background max_bad"
    return find(
        cache=cache_folder(data.cache), workers=data.workers, bar=True, **data.model_dump(include=set(asked.split()))
    )


def store_images(data: ImageData, found: Found) -> Stored:
    """Decode what was found, or find it decoded."""
    return store(
        found,
        cache_folder(data.cache),
        data.resize,
        data.background,
        data.random_crop,
        data.max_bad,
        data.workers,
        bar=True,
    )


def _stored(config: Config, data: ImageData) -> FoundData:
    found = find_images(data)
    if len(found.rows) <= data.held_out:
        raise DataError(
            f"data.held_out {data.held_out} leaves nothing to train on: {data.source} has {len(found.rows)} images"
        )

    def load(device: torch.device) -> Batches:
        stored = store_images(data, found)
        count = len(stored.images.pixels)
        if count <= data.held_out:
            raise DataError(f"data.held_out {data.held_out} leaves nothing to train on: {count} images are good")
        images = stored.images
        if device.type != "cpu" and images.pixels.nbytes <= data.gpu_share * memory_bytes(device):
            images = images.to(device)
        return ImageBatches(
            images,
            Pixels(found.shape),
            hold_out(count, data.held_out),
            data.flip,
            config.seed,
            config.train.batch_size,
            device,
            data.size if data.random_crop else None,
            fingerprint=stored.fingerprint,
            left_out=(*found.bad, *stored.bad),
            augment=data.augment,
        )

    story = f"{data.source}: {found.story}; {data.held_out:,} held out"
    return FoundData(DataFacts(found.shape, found.classes), story, load)


def _streamed(config: Config, data: ImageData) -> FoundData:
    from flowimg.data.sources.streams import open_stream
    from flowimg.data.stream import StreamBatches, keep_apart, look_into

    asked = {"source", "subset", "split", "image_column", "label_column", "labels"}
    stream = open_stream(cache=cache_folder(data.cache), **data.model_dump(include=asked))
    shape, seen = look_into(stream, data.size, data.channels, data.background)
    try:
        held = keep_apart(stream.counts, data.held_out)
    except ValueError as error:
        raise DataError(f"data.held_out {data.held_out} leaves too little to train on: {error}") from None
    channels, height, width = shape
    side = data.random_crop or height
    whole = (channels, side, data.random_crop or width)
    how = Decoding(channels, side if whole[1] == whole[2] else None, data.resize, data.background, math.prod(whole))

    def load(device: torch.device) -> Batches:
        return StreamBatches(
            stream,
            how,
            Pixels(shape),
            held,
            data.flip,
            config.seed,
            config.train.batch_size,
            device,
            data.open_shards,
            data.workers or share_of_cores(),
            data.size if data.random_crop else None,
            data.max_bad,
            augment=data.augment,
        )

    kinds = f"{len(stream.classes)} classes: {listed(stream.classes)}" if stream.classes else "no classes"
    story = f"{data.source}: {stream.story}, {seen}; {kinds}; {data.held_out:,} held out"
    return FoundData(DataFacts(shape, stream.classes), story, load)


SOURCES: dict[str, Callable[[Config], FoundData]] = {"points": _points, "images": _images}


def cache_of(config: Config) -> Path:
    """The cache folder of a run's data; the usual one where they have none."""
    return cache_folder(getattr(config.data, "cache", None))


def build_source(config: Config) -> FoundData:
    """The data of a run: looked through, not yet loaded."""
    return SOURCES[config.data.kind](config)


def check_same(config: Config, before: DataFacts, now: DataFacts) -> None:
    """Refuse data that are of another form than a run learned from.

    Raises:
        DataError: With what differs.
    """
    if before.shape != now.shape:
        new, old = (" x ".join(map(str, facts.shape)) for facts in (now, before))
        differs = f"pictures of {new}, and the run learned from {old}"
    elif before.classes and before.classes != now.classes:
        differs = f"the classes {listed(now.classes)}, and the run learned {listed(before.classes)}"
    else:
        return
    raise DataError(f"{config.data.source}, {config.data.split}, has {differs}: give back the data of the run")  # type: ignore[union-attr]
