"""Settings to images: found, stored or streamed, of one shape or of several, and of any depth."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowimg.build.facts import DataFacts, FoundData
from flowimg.data.arrays import Reading
from flowimg.data.batches import Batches, ImageBatches
from flowimg.data.buckets import BucketBatches, cut_away, nearest_shapes, shapes_of, share_out
from flowimg.data.cache import cache_folder
from flowimg.data.decode import Decoding
from flowimg.data.find import Found, find, refuse_many
from flowimg.data.listing import absent, listed
from flowimg.data.store import Stored, hold_out, store
from flowimg.data.workers import share_of_cores
from flowimg.errors import DataError, SettingsError
from flowimg.flow.randomness import key
from flowimg.machine.device import memory_bytes
from flowimg.machine.home import settle_home
from flowimg.names import one_line
from flowimg.settings.data import ImageData
from flowimg.settings.run import Config
from flowimg.spaces.depth import BYTES, WORDS, Depth
from flowimg.spaces.pixels import Pixels

LONGEST = 4096
"""Pixels of a side at most, as of data.size."""
DEPTHS: dict[int | str, Depth] = {8: BYTES, 16: WORDS, "float": Depth("float32", 0, 1)}


def depth_of(data: ImageData) -> Depth:
    """How the numbers of a run's pictures are stored."""
    low, high = data.range or DEPTHS[data.depth][1:]
    return Depth(DEPTHS[data.depth].type, low, high)


def reading_of(data: ImageData) -> Reading:
    """What is read of the files of a run's pictures."""
    return Reading(depth_of(data), data.channels == "all")


def pixels_of(data: Any, shape: tuple[int, ...]) -> Pixels:
    """The space of pictures of this shape."""
    return Pixels(shape, depth_of(data), data.channels == "rgba")


def found_images(config: Config) -> FoundData:
    """The images of a run, found and not loaded yet."""
    data: Any = config.data
    return (_streamed if data.stream else _bucketed if data.buckets.area else _stored)(config, data)


def _common(config: Config, data: ImageData, shape: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """What all batches of images take: `PictureBatches`."""
    return {
        "space": pixels_of(data, shape), "batch_size": config.train.batch_size, "device": device, "seed": config.seed,
        "flip": data.flip, "window": data.shape if data.random_crop else None, "augment": data.augment,
    }  # fmt: skip


def _held_out(data: ImageData) -> str:
    return f"{data.held_out:,} held out" if data.held_out else "none held out, so there is no held-out loss"


def _cache(data: ImageData) -> Path:
    """The cache folder of images, also for packages that read them and cannot write their own."""
    cache = cache_folder(data.cache)
    settle_home(cache)
    return cache


def find_images(data: ImageData) -> Found:
    """The images of a source, checked but not decoded into the cache."""
    names = "source subset root split image_column label_column labels classes first channels background max_bad"
    options = data.model_dump(include=set(names.split()))
    how: dict[str, Any] = {"shape": data.shape, "shapes": shapes_of_buckets(data), "depth": depth_of(data)}
    return find(cache=_cache(data), workers=data.workers, bar=True, **how, **options)


def shapes_of_buckets(data: ImageData) -> tuple[tuple[int, int], ...]:
    """The shapes of `data.buckets`, the one nearest to a square first.

    Raises:
        SettingsError: If two of them are the same.
    """
    if not data.buckets.area:
        return ()
    shapes = shapes_of(data.buckets.area, data.buckets.ratios, data.buckets.multiple)
    if twice := [shape for number, shape in enumerate(shapes) if shape in shapes[:number]]:
        height, width = twice[0]
        raise SettingsError(
            f"data.buckets gives the shape {height} {width} twice: give ratios farther apart, a larger area, or a "
            "smaller multiple"
        )
    if large := [shape for shape in shapes if max(shape) > LONGEST]:
        raise SettingsError(
            f"data.buckets gives {large[0][0]} x {large[0][1]} pixels, and a side has {LONGEST} at most"
        )
    return tuple(sorted(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0]))))


def store_images(data: ImageData, found: Found) -> list[Stored]:
    """Decode the images that were found, unless the cache holds them already: all, or those of each bucket.

    Raises:
        DataError: If more than `data.max_bad` of all are broken.
    """
    if not data.buckets.area:
        return [_store(data, found, data.max_bad)]
    # a bucket may be small: what is broken counts among the images of all of them
    stored = [_store(data, part, 1.0) for part in parts_of(data, found)]
    bad = [*found.bad, *(one for kept in stored for one in kept.bad)]
    refuse_many(found.where, bad, len(found.rows) + len(found.bad), data.max_bad)
    return stored


def _store(data: ImageData, found: Found, max_bad: float) -> Stored:
    options: dict[str, Any] = data.model_dump(include={"resize", "background", "workers"}) | {"max_bad": max_bad}
    reading = reading_of(data)
    return store(found, cache_folder(data.cache), cut_from=data.stored, reading=reading, bar=True, **options)


def _stored(config: Config, data: ImageData) -> FoundData:
    found = find_images(data)

    def check_enough(count: int, what: str) -> None:
        if count <= data.held_out:
            less = "give a smaller data.held_out, or 0 for none"
            raise DataError(f"data.held_out {data.held_out} leaves nothing to train on: {what}; {less}")

    def load(device: torch.device) -> Batches:
        (stored,) = store_images(data, found)
        images, count = stored.images, len(stored.images.pixels)
        check_enough(count, f"{count} images are good")
        if device.type != "cpu" and images.pixels.nbytes <= data.gpu_share * memory_bytes(device):
            images = images.to(device)
        apart, left_out = hold_out(count, data.held_out), (*found.bad, *stored.bad)
        common = _common(config, data, found.shape, device)
        return ImageBatches(images, apart, stored.fingerprint, left_out, **common)

    check_enough(len(found.rows), f"{one_line(data.source)} has {len(found.rows)} images")
    story = f"{one_line(data.source)}: {found.story}; {_held_out(data)}"
    trained = None if found.labels is None else np.delete(found.labels, hold_out(len(found.labels), data.held_out))
    facts = DataFacts(found.shape, found.classes, absent=absent(trained, found.classes))
    return FoundData(facts, story, load, found.unused)


def parts_of(data: ImageData, found: Found) -> list[Found]:
    """The pictures that were found, all of one shape: whole, or those of each bucket that has some."""
    if not data.buckets.area:
        return [found]
    shapes = shapes_of_buckets(data)
    which = nearest_shapes(found.sizes, shapes)
    rows = [np.flatnonzero(which == number) for number in range(len(shapes))]
    return [found.part(some, *shape) for shape, some in zip(shapes, rows, strict=True) if len(some)]


def told_of_buckets(data: ImageData, sizes: NDArray[np.int32]) -> str:
    """The pictures in each bucket, and how much of their area is cut away there, and in squares."""
    shapes = shapes_of_buckets(data)
    counts = np.bincount(nearest_shapes(sizes, shapes), minlength=len(shapes)).tolist()
    shares = [f"{height} x {width} ({count:,})" for (height, width), count in zip(shapes, counts, strict=True)]
    lost = f"; {cut_away(sizes, shapes):.1%} of the area is cut away, {cut_away(sizes, [(1, 1)]):.1%} in squares"
    return f"buckets, height x width: {', '.join(shares)}{lost if data.resize == 'crop' else ''}"


def _bucketed(config: Config, data: ImageData) -> FoundData:
    """Images in several shapes: each bucket is found and stored as a set of its own."""
    found, shapes = find_images(data), shapes_of_buckets(data)
    parts = parts_of(data, found)
    held = _held_of_each(data, [len(part.rows) for part in parts])

    def load(device: torch.device) -> Batches:
        stored = store_images(data, found)
        # what turned out bad is neither learned from nor held out
        good = _held_of_each(data, [len(kept.images.pixels) for kept in stored])
        on_gpu = sum(one.images.pixels.nbytes for one in stored) <= data.gpu_share * memory_bytes(device)
        buckets, bad = [], [*found.bad]
        for number, (part, kept, apart) in enumerate(zip(parts, stored, good, strict=True)):
            images = kept.images.to(device) if device.type != "cpu" and on_gpu else kept.images
            common = _common(config, data, part.shape, device) | {"seed": key("bucket", config.seed, number)}
            rows_apart = hold_out(len(images.pixels), apart)
            buckets.append(ImageBatches(images, rows_apart, kept.fingerprint, **common))
            bad += kept.bad
        return BucketBatches(tuple(buckets), tuple(bad), **_common(config, data, found.shape, device))

    story = f"{one_line(data.source)}: {found.story}; {told_of_buckets(data, found.sizes)}; {_held_out(data)}"
    learned = [(*part.shape[1:], len(part.rows) - apart) for part, apart in zip(parts, held, strict=True)]
    trained: list[Any] = [
        np.delete(part.labels, hold_out(len(part.rows), apart))
        for part, apart in zip(parts, held, strict=True)
        if part.labels is not None
    ]
    lacking = absent(np.concatenate(trained) if trained else None, found.classes)
    facts = DataFacts((found.shape[0], *shapes[0]), found.classes, absent=lacking, buckets=tuple(learned))
    return FoundData(facts, story, load, found.unused)


def _held_of_each(data: ImageData, counts: list[int]) -> list[int]:
    """How many of these numbers of images each bucket holds out.

    Raises:
        DataError: If a bucket is left with none to learn from.
    """
    if sum(counts) - len(counts) < data.held_out:
        raise DataError(
            f"data.held_out {data.held_out} leaves too little to train on: {sum(counts)} images in {len(counts)} "
            "buckets, each of which needs one; give a smaller one, or 0 for none"
        )
    return share_out(data.held_out, counts)


def _streamed(config: Config, data: ImageData) -> FoundData:
    from flowimg.data.sources.streams import open_stream
    from flowimg.data.stream import StreamBatches, keep_apart, look_into

    options = data.model_dump(include={"source", "subset", "split", "image_column", "label_column", "labels"})
    stream = open_stream(cache=_cache(data), **options)
    reading = reading_of(data)
    shape, seen = look_into(stream, data.shape, data.channels, data.background, reading)
    try:
        held = keep_apart(stream.counts, data.held_out)
    except ValueError as error:
        lack = f"data.held_out {data.held_out} leaves too little to train on: {error}"
        raise DataError(f"{lack}; give a smaller one, or 0 for none") from None
    channels, height, width = shape
    height, width = data.stored or (height, width)
    how = Decoding(channels, (height, width), data.resize, data.background, reading)

    def load(device: torch.device) -> Batches:
        workers, common = data.workers or share_of_cores(), _common(config, data, shape, device)
        return StreamBatches(stream, how, held, data.open_shards, workers, data.max_bad, **common)

    kinds = f"{len(stream.classes)} classes: {listed(stream.classes)}" if stream.classes else "no classes"
    story = f"{one_line(data.source)}: {stream.story}, {seen}; {kinds}; {_held_out(data)}"
    return FoundData(DataFacts(shape, stream.classes, absent=stream.absent), story, load, stream.unused)
