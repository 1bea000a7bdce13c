"""Which pictures of a source a run gets, with their labels, classes and shape. Nothing is decoded yet."""

import math
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.arrays import channels_of
from flowimg.data.listing import Ints, Listing, Request, Shape, listed
from flowimg.data.scan import Scan, kept_at, scan
from flowimg.data.sources.recognise import recognise
from flowimg.errors import DataError
from flowimg.machine.cores import cores

GIVE = "give the one to use by data.size, a side or a height and a width"
"""The way out where pictures have several sizes."""
FEW = 1000
"""With fewer pictures, a field may memorise them."""


class Bad(NamedTuple):
    """A picture that is left out: its name for the user, and the reason."""

    name: str
    reason: str


class Found(NamedTuple):
    """Pictures that were found and are not decoded yet.

    `rows` (N,) are the rows of the source's listing that are requested and good, `hashes` (N, 16) those of their files;
    `labels` (N,) are None without classes; `shape` (C, H, W) is that of a decoded picture; `story` describes what was
    found; `bad` are left out; `open` returns the listing; `scan` is the file of the cache with the scan; `unused` are
    remarks on what looks meant and is not used; `sizes` (N, 2) are the heights and widths of the files.
    """

    rows: Ints
    hashes: NDArray[np.uint8]
    labels: Ints | None
    classes: tuple[str, ...]
    shape: Shape
    story: str
    bad: tuple[Bad, ...]
    where: str
    open: Callable[[], Listing]
    scan: Path
    unused: tuple[str, ...]
    sizes: NDArray[np.int32]

    def part(self, rows: NDArray[np.int64], height: int, width: int) -> "Found":
        """Some of them, in another shape; bad ones belong to no part."""
        labels = None if self.labels is None else self.labels[rows]
        shape = (self.shape[0], height, width)
        return self._replace(
            rows=self.rows[rows], hashes=self.hashes[rows], labels=labels, sizes=self.sizes[rows], shape=shape, bad=()
        )


def find(source: str, cache: Path, *, workers: int | None = None, bar: bool = False, **requested: Any) -> Found:
    """Scan a source for the pictures of a run.

    Args:
        source: A set known by name; a folder or file on disk (pictures, parquet, arrow, tar); or the id of a dataset
            on the hub.
        cache: The cache folder.
        workers: Number of processes; None uses all cores.
        bar: Show progress on a terminal.
        requested: Fields of `Request`.

    Raises:
        DataError: If the source is unavailable, or does not hold what is requested, or has too many bad pictures.
    """
    request = Request(**requested)
    known = recognise(source, cache, request)
    where = known.where
    seen = scan(known, cache, request, workers or cores(), bar)
    chosen, well, labels, classes = select(where, seen, request.classes, request.first)
    bad = tuple(Bad(seen.names[row], seen.wrong[row]) for row in chosen[~well[chosen]].tolist())
    rows = chosen[well[chosen]]
    if failed := seen.fleeting & set(chosen.tolist()):
        row = min(failed)
        raise DataError(
            f"{seen.names[row]} could not be read now ({seen.wrong[row]}), one of {len(failed):,}: retry once the disk "
            "is healthy"
        )
    refuse_many(where, bad, len(chosen), request.max_bad)
    if len(rows) == 0:
        raise DataError(f"{where}: split {request.split!r} holds none of the requested pictures")
    shape, sizes = _shape(where, seen, rows, request)

    pictures_from, labels_from = seen.origin
    total = len(well)
    count = f"{total:,}" if len(rows) == total else f"{len(rows):,} of {total:,}"
    column = f" ({pictures_from})" if pictures_from else ""
    if request.labels:
        of = f" ({labels_from})" if labels_from else ""
        kinds = f"{len(classes)} classes{of}: {listed(classes)}" if classes else "no classes"
    else:
        kinds = f"of {listed(classes)}, labels not used" if request.classes else "labels not used"
        labels, classes = None, ()
    story = f"{known.kind}: {count} pictures of {request.split}{column}, {sizes}; {kinds}"
    story += f"; {len(bad):,} bad left out" if bad else ""
    hashes, labels = seen.table["hashes"][rows], None if labels is None else labels[rows].astype(np.int64)
    file = kept_at(known, cache, request.key)
    return Found(
        rows,
        hashes,
        labels,
        tuple(classes),
        shape,
        story,
        bad,
        where,
        known.list,
        file,
        seen.unused,
        seen.table["sizes"][rows],
    )


def select(
    where: str, seen: Scan, classes: Sequence[str], first: int | None
) -> tuple[Ints, NDArray[np.bool_], Ints | None, tuple[str, ...]]:
    """The requested rows, including bad ones; which of all rows are good; the labels of all, renumbered; the classes.

    Raises:
        DataError: If there is no such class.
    """
    numbers, names = seen.labels, seen.classes
    chosen = np.arange(len(seen.table))
    if classes:
        if numbers is None:
            raise DataError(f"{where} has no labels to choose data.classes by")
        if unknown := [name for name in classes if name not in names]:
            near = get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed(names)}"
            raise DataError(f"{where} has no class {unknown[0]!r} (data.classes): {hint}")
        old = [names.index(name) for name in names if name in classes]
        chosen = np.flatnonzero(np.isin(numbers, old))
        names = tuple(names[number] for number in old)
        numbers = np.searchsorted(old, numbers)
    well = np.ones(len(seen.table), np.bool_)
    well[list(seen.wrong)] = False
    if first is not None:  # N good ones, and the bad ones among them
        chosen = chosen[: int(np.searchsorted(np.cumsum(well[chosen]), first) + 1)]
    return chosen, well, numbers, names


def refuse_many(where: str, bad: Collection[Bad], count: int, most: float) -> None:
    """Stop if too large a share of the pictures is bad.

    Raises:
        DataError: With the first bad pictures.
    """
    if len(bad) > most * count:
        some = "; ".join(f"{name} ({reason})" for name, reason in islice(bad, 3))
        more = f" and {len(bad) - 3:,} more" if len(bad) > 3 else ""
        raise DataError(
            f"{where}: {len(bad):,} of {count:,} pictures cannot be used, more than data.max_bad {most:g} allows: "
            f"{some}{more}; `flowimg data check` lists all: repair or remove them, or raise data.max_bad"
        )


def _shape(where: str, seen: Scan, rows: Ints, request: Request) -> tuple[Shape, str]:
    """The shape of a decoded picture, and a description of the files' sizes and modes."""
    sizes, modes = seen.of_size(rows), seen.of_kind(rows, 0)
    if request.shape is None and len(sizes) > 1 and not request.shapes:
        common = ", ".join(f"{w} x {h} ({count:,})" for (h, w), count in sizes.most_common(3))
        raise DataError(f"{where} has pictures of {len(sizes)} sizes, {common}, width x height: {GIVE}")
    rising = sorted(sizes, key=lambda size: (math.prod(size), size))  # also where all have the same area
    smallest, largest = (f"{w} x {h}" for h, w in (rising[0], rising[-1]))
    described = smallest if len(sizes) == 1 else f"{len(sizes)} sizes (width x height) from {smallest} to {largest}"
    tinted = len(set(request.background)) > 1 and bool(seen.table["clear"][rows].any())
    height, width = request.shape or next(iter(request.shapes), None) or next(iter(sizes))
    try:
        channels = channels_of(request.channels, modes, tinted)
    except ValueError as error:
        raise DataError(f"{where} has {error}") from None
    return (channels, height, width), f"{described}, {'/'.join(sorted(modes))}"
