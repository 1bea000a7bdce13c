"""What a source holds of what is asked for: which pictures, labels, classes and shape. Nothing is decoded yet."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.listing import Listing, Source, listed
from flowimg.data.pictures import depth_of
from flowimg.data.scan import Scan, kept_at, scan
from flowimg.data.sources.recognise import recognise
from flowimg.data.workers import cores
from flowimg.errors import DataError

FEW = 1000
"""Pictures below which a field may learn them by heart."""


class Bad(NamedTuple):
    """A picture that is left out, as a person finds it, and why."""

    name: str
    reason: str


class Found(NamedTuple):
    """Pictures that were found and not decoded yet.

    `rows` (N,) are those of the source's listing that are asked for and good, `hashes` (N, 16) of their files;
    `labels` (N,) are None without classes; `shape` (C, H, W) is what decoding will give; `story` says in words what
    was found; `bad` are left out; `open` gives the listing; `scan` is the file that keeps what was seen.
    """

    rows: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    story: str
    bad: tuple[Bad, ...]
    where: str
    open: Callable[[], Listing]
    scan: Path


def find(
    source: str,
    cache: Path,
    *,
    subset: str | None = None,
    root: str = "data",
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    labels: bool = True,
    classes: Sequence[str] = (),
    first: int | None = None,
    size: int | None = None,
    channels: str = "auto",
    background: Sequence[int] = (255, 255, 255),
    max_bad: float = 0.01,
    workers: int | None = None,
    bar: bool = False,
) -> Found:
    """Look a source through: which columns, classes, sizes and counts it has.

    Args:
        source: A set known by name; a folder or file on disk (pictures, parquet, arrow, tar); or the id of a dataset
            on the hub.
        cache: The folder that keeps what was seen.
        subset: The configuration of a hub dataset that has several.
        root: The folder that torchvision's sets lie in.
        split: Which split.
        image_column: The column (in shards, the ending) of pictures; None for the only one there is.
        label_column: The column (in shards, the ending) of labels; None for the usual one, if any.
        labels: Keep the labels, where there are any.
        classes: Keep pictures of these classes alone; empty keeps all.
        first: Keep this many, from the start, of those.
        size: Pixels a side that pictures will be brought to; None asks for pictures that are all of one size.
        channels: "grey", "rgb", or "auto": grey if no picture has colour.
        background: The colour under transparent pixels; a colour makes grey transparent pictures colour ones.
        max_bad: The share of pictures that may be bad.
        workers: Processes to look in; None takes all cores.
        bar: Show progress on a terminal.
    Raises:
        DataError: If the source cannot be had, or does not hold what is asked for, or too many pictures are bad.
    """
    known, key = recognise_asked(
        source,
        cache,
        subset,
        root,
        split=split,
        image_column=image_column,
        label_column=label_column,
        labels=labels or bool(classes),
        named=bool(classes),
    )
    seen = scan(known, cache, key, workers or cores(), bar)
    kept = kept_at(known, cache, key)
    return choose(known, seen, split, labels, classes, first, size, channels, background, max_bad, kept)


def recognise_asked(source: str, cache: Path, subset: str | None, root: str, **asked: Any) -> tuple[Source, str]:
    """What a string means, and a name of what was asked of it, under which its scan is kept; see `recognise`."""
    return recognise(source, subset=subset, root=root, cache=cache, **asked), repr((subset, root, asked))


def choose(
    known: Source,
    seen: Scan,
    split: str,
    labels: bool,
    classes: Sequence[str],
    first: int | None,
    size: int | None,
    channels: str,
    background: Sequence[int],
    max_bad: float,
    scan_kept: Path,
) -> Found:
    """What is asked for of a source that was looked through; see `find`."""
    where = known.where
    whole = len(seen.kind)
    kept, well, numbers, names = select(where, seen, classes, first)
    bad = tuple(Bad(seen.names[row], seen.wrong[row]) for row in kept[~well[kept]].tolist())
    rows = kept[well[kept]]
    if failed := seen.fleeting & set(kept.tolist()):
        first_failed = min(failed)
        raise DataError(
            f"{seen.names[first_failed]} could not be read now ({seen.wrong[first_failed]}), one of {len(failed):,}: "
            "start again when the disk is well"
        )
    refuse_many(where, bad, len(kept), max_bad)
    if len(rows) == 0:
        raise DataError(f"{where}: split {split!r} holds no picture that is asked for")

    shape, sizes = _shape(where, seen, rows, size, channels, background)
    among, by = seen.told
    kinds = f"{len(names)} classes ({by}): {listed(names)}" if by else f"{len(names)} classes: {listed(names)}"
    kinds = kinds if names else "no classes"
    if not labels:
        kinds = f"of {listed(names)}, labels not used" if classes else "labels not used"
        numbers, names = None, ()
    told = f" ({among})" if among else ""
    story = f"{len(rows):,} of {whole:,} pictures of {split}" if len(rows) < whole else f"{whole:,} pictures of {split}"
    story = f"{known.kind}: {story}{told}, {sizes}; {kinds}"
    if bad:
        story += f"; {len(bad):,} bad left out"
    chosen = None if numbers is None else numbers[rows].astype(np.int64)
    return Found(rows, seen.hashes[rows], chosen, tuple(names), shape, story, bad, where, known.list, scan_kept)


def select(
    where: str, seen: Scan, classes: Sequence[str], first: int | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64] | None, tuple[str, ...]]:
    """The rows that are asked for, bad ones among them; which of all rows are good; and labels of all, numbered afresh.

    Raises:
        DataError: If there is no such class.
    """
    numbers, names = seen.labels, seen.classes
    kept = np.arange(len(seen.kind))
    if classes:
        if numbers is None:
            raise DataError(f"{where} has no labels to keep data.classes by")
        if unknown := [name for name in classes if name not in names]:
            near = get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed(names)}"
            raise DataError(f"{where} has no class {unknown[0]!r} (data.classes): {hint}")
        old = [names.index(name) for name in names if name in classes]
        kept = np.flatnonzero(np.isin(numbers, old))
        names = tuple(names[number] for number in old)
        numbers = np.searchsorted(old, numbers)
    well = np.ones(len(seen.kind), np.bool_)
    well[list(seen.wrong)] = False
    if first is not None:  # as many good ones, and the bad ones among them
        kept = kept[: int(np.searchsorted(np.cumsum(well[kept]), first) + 1)]
    return kept, well, numbers, names


def refuse_many(where: str, bad: Collection[Bad], count: int, most: float) -> None:
    """Stop where too large a share of the pictures is bad.

    Raises:
        DataError: If so, with the first of them.
    """
    if len(bad) > most * count:
        some = "; ".join(f"{name} ({reason})" for name, reason in islice(bad, 3))
        more = f" and {len(bad) - 3:,} more" if len(bad) > 3 else ""
        raise DataError(
            f"{where}: {len(bad):,} of {count:,} pictures cannot be used, more than data.max_bad {most:g} allows: "
            f"{some}{more}; `flowimg data check` lists all: mend or remove them, or raise data.max_bad"
        )


def _shape(
    where: str,
    seen: Scan,
    rows: NDArray[np.int64],
    size: int | None,
    channels: str,
    background: Sequence[int],
) -> tuple[tuple[int, int, int], str]:
    """The shape that decoding will give, and what the files are."""
    pairs, counts = np.unique(seen.sizes[rows], axis=0, return_counts=True)
    sizes = Counter({(int(h), int(w)): int(n) for (h, w), n in zip(pairs, counts, strict=True)})
    modes = seen.of_kind(rows, 0)
    tinted = len(set(background)) > 1
    if size is None and len(sizes) > 1:
        common = ", ".join(f"{w} x {h} ({count:,})" for (h, w), count in sizes.most_common(3))
        raise DataError(f"{where} has pictures of {len(sizes)} sizes, {common}: give the one to use by data.size")
    ends = [f"{w} x {h}" for h, w in (min(sizes, key=math.prod), max(sizes, key=math.prod))]
    said = ends[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {ends[0]} to {ends[1]}"
    depth = depth_of(channels, modes, tinted and bool(seen.clear[rows].any()))
    height, width = (size, size) if size is not None else next(iter(sizes))
    return (depth, height, width), f"{said}, {'/'.join(sorted(modes))}"
