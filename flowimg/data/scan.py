"""Looking pictures through before anything is decoded: sizes, modes and hashes from their files, in parallel, kept.

A scan is kept in the cache and found again as long as no file of the source has changed; of a folder that has grown,
only what is new is read.
"""

from collections import Counter
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from tqdm import tqdm

from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, unpack
from flowimg.data.listing import Listing, Source, chunks, plain
from flowimg.data.pictures import (
    BadPictureError,
    Encoded,
    moves,
    open_picture,
    read_bytes,
    see_through,
    to_pixels,
    upright_size,
)
from flowimg.data.workers import spread

VERSION = 2
"""Rises when scans of older versions are to be made anew."""
Arrays = dict[str, NDArray[Any]]

HASH = 16
"""Bytes of a picture's hash."""


class Scan(NamedTuple):
    """What a listing holds, an entry a picture.

    Its hash (N, 16), size in pixels (N, 2) as height and width, mode and format as a number into `kinds`, whether one
    can see through it, whether it moves; what is wrong with some, and their names. Labels, classes and `told` are the
    listing's. `fleeting` are rows that the disk or the memory failed for, and that may be good another time.
    """

    hashes: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    kind: NDArray[np.int32]
    clear: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    kinds: list[str]
    wrong: dict[int, str]
    names: dict[int, str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    told: tuple[str, str]
    left_alone: tuple[str, ...] = ()
    fleeting: frozenset[int] = frozenset()

    def of_kind(self, rows: NDArray[np.int64], part: int) -> Counter[str]:
        """How many of these rows have which mode (part 0) or format (part 1)."""
        numbers, counts = np.unique(self.kind[rows], return_counts=True)
        found: Counter[str] = Counter()
        for number, count in zip(numbers, counts, strict=True):
            found[self.kinds[number].split(" ")[part]] += int(count)
        return found


class Seen(NamedTuple):
    """What is to be said of one picture: its hash, height, width, "MODE FORMAT", whether it is clear and moves.

    Or what is wrong with it, and whether that may be another time.
    """

    hash: bytes
    height: int
    width: int
    kind: str
    clear: bool
    moving: bool
    wrong: str | None = None
    fleeting: bool = False


def look(pictures: list[Encoded], deep: bool = False) -> list[Seen]:
    """Look at some pictures; `deep` decodes them as well, and their hash is of what is seen and not of the file."""
    return [_look(picture, deep) for picture in pictures]


def _look(encoded: Encoded, deep: bool) -> Seen:
    try:
        content = read_bytes(encoded)
        with open_picture(content) as picture:
            width, height = upright_size(picture)
            kind, clear, moving = f"{picture.mode} {picture.format}", see_through(picture), moves(picture)
            found = content
            if deep:
                pixels = to_pixels(picture, 3, None, "keep", (255, 255, 255))
                found = repr(pixels.shape).encode() + pixels.tobytes()
        return Seen(blake2b(found, digest_size=HASH).digest(), height, width, kind, clear, moving)
    except BadPictureError as error:
        return Seen(bytes(HASH), 0, 0, "? ?", False, False, str(error), error.fleeting)


def kept_at(source: Source, cache: Path, key: str, deep: bool = False) -> Path:
    """The file that keeps what a source was found to hold."""
    return cache / "scans" / f"{name_of(VERSION, PIL.__version__, source.kind, source.where, key, deep)}.npz"


def scan(source: Source, cache: Path, key: str, workers: int, bar: bool = False, deep: bool = False) -> Scan:
    """What a source holds: as it was kept, or looked through now.

    Args:
        source: A source that was recognised.
        cache: The cache folder.
        key: A name of what was asked of the source.
        workers: Processes to look in.
        bar: Show progress on a terminal.
        deep: Decode every picture too; such scans are kept apart.
    Raises:
        DataError: If the source cannot be listed.
    """
    path = kept_at(source, cache, key, deep)
    kept = read_arrays(path)
    if kept and source.signature and _text(kept["signature"]) == source.signature:
        return _unpacked(kept)
    listing = source.list()
    # a table that points to files elsewhere does not change with them: what its listing knows of them counts
    outside = listing.signature is not None and listing.stamps is not None
    signature = listing.signature if outside else source.signature or listing.signature
    if kept and signature and _text(kept["signature"]) == signature:
        return _unpacked(kept)
    found = _looked(listing, kept, workers, bar, deep)
    if signature and not found.fleeting:
        keep_arrays(path, **_packed(found, signature, listing))
    return found


def _looked(listing: Listing, kept: Arrays | None, workers: int, bar: bool, deep: bool) -> Scan:
    """A scan made now, with what is still true of an older one."""
    count = listing.count
    hashes, sizes = np.zeros((count, HASH), np.uint8), np.zeros((count, 2), np.int32)
    kind = np.zeros(count, np.int32)
    clear, moving = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    kinds: dict[str, int] = {"? ?": 0}
    wrong = dict(listing.wrong)
    fleeting: set[int] = set()
    fresh = np.ones(count, np.bool_)
    fresh[list(wrong)] = False
    if kept and listing.stamps is not None and "stamps" in kept:
        old = _unpacked(kept)
        kinds = {name: number for number, name in enumerate(old.kinds)}
        here, there = _same(listing, kept)
        well = np.array([there_row not in old.wrong for there_row in there.tolist()], np.bool_)
        here, there = here[well & fresh[here]], there[well & fresh[here]]
        for new, before in zip((hashes, sizes, kind, clear, moving), old[:5], strict=True):
            new[here] = before[there]  # type: ignore[index, call-overload]
        fresh[here] = False
    rows = np.flatnonzero(fresh)
    parts = chunks(rows, listing.bytes)
    with tqdm(total=len(rows), unit="picture", desc="looking", leave=False, disable=None if bar else True) as progress:
        tasks = (listing.read(part) for part in parts)
        for part, told in zip(parts, spread(partial(look, deep=deep), tasks, workers), strict=True):
            for row, seen in zip(part.tolist(), told, strict=True):
                if seen.wrong is not None:
                    wrong[row] = seen.wrong
                    if seen.fleeting:
                        fleeting.add(row)
                    continue
                hashes[row] = np.frombuffer(seen.hash, np.uint8)
                sizes[row] = seen.height, seen.width
                kind[row] = kinds.setdefault(seen.kind, len(kinds))
                clear[row], moving[row] = seen.clear, seen.moving
            progress.update(len(part))
    wrong = dict(sorted(wrong.items()))
    names = {row: plain(listing.name(row)) for row in wrong}
    return Scan(
        hashes, sizes, kind, clear, moving, list(kinds), wrong, names,
        listing.labels, listing.classes, listing.told, tuple(map(plain, listing.left_alone)), frozenset(fleeting),
    )  # fmt: skip


def _same(listing: Listing, kept: Arrays) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of now and of then that are the same file, unchanged."""
    assert listing.stamps is not None
    before = {
        (name, *stamp): row
        for row, (name, stamp) in enumerate(zip(unpack(kept["files"]), kept["stamps"].tolist(), strict=True))
    }
    now = [before.get((listing.name(row), *stamp), -1) for row, stamp in enumerate(listing.stamps.tolist())]
    there = np.array(now, np.int64)
    there[~listing.stamps.any(axis=1)] = -1  # rows that are no files of their own
    here = np.flatnonzero(there >= 0)
    return here, there[here]


def _text(packed: NDArray[np.uint8]) -> str:
    return unpack(packed)[0]


def _packed(found: Scan, signature: str, listing: Listing) -> Arrays:
    arrays: Arrays = {
        **{name: getattr(found, name) for name in ("hashes", "sizes", "kind", "clear", "moving")},
        "signature": pack([signature]),
        "kinds": pack(found.kinds),
        "classes": pack(found.classes),
        "told": pack(found.told),
        "left_alone": pack(found.left_alone),
        "wrong": np.array(list(found.wrong), np.int64),
        "reasons": pack(list(found.wrong.values())),
        "names": pack(list(found.names.values())),
    }
    if found.labels is not None:
        arrays["labels"] = found.labels
    if listing.stamps is not None:
        arrays |= {"stamps": listing.stamps, "files": pack([listing.name(row) for row in range(listing.count)])}
    return arrays


def _unpacked(kept: Arrays) -> Scan:
    rows = kept["wrong"].tolist()
    among, by = unpack(kept["told"])
    return Scan(
        hashes=kept["hashes"],
        sizes=kept["sizes"],
        kind=kept["kind"],
        clear=kept["clear"],
        moving=kept["moving"],
        kinds=unpack(kept["kinds"]),
        wrong=dict(zip(rows, unpack(kept["reasons"]), strict=True)),
        names=dict(zip(rows, unpack(kept["names"]), strict=True)),
        labels=kept.get("labels"),
        classes=tuple(unpack(kept["classes"])),
        told=(among, by),
        left_alone=tuple(unpack(kept["left_alone"])),
    )
