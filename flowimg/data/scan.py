"""Scans of pictures, made before any is decoded: sizes, modes and hashes from their files, read in parallel and cached.

A scan is reused as long as no file of the source has changed. If a folder has grown, only its new files are read.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from tqdm import tqdm

from flowimg.data.arrays import READING, Numbers, Reading, opened
from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, unpack
from flowimg.data.listing import Ints, Listing, Request, Source, chunks
from flowimg.data.numbers import to_numbers
from flowimg.data.pictures import BadPictureError, Encoded, moves, read_bytes, to_pixels, upright_size
from flowimg.data.readers import versions
from flowimg.data.workers import spread
from flowimg.names import one_line
from flowimg.spaces.depth import Depth

VERSION = 5
"""Increased when scans of older versions must be repeated."""
Arrays = dict[str, NDArray[Any]]

HASH = 16
"""Bytes of a picture's hash."""
COLUMNS = np.dtype(
    [
        ("hashes", np.uint8, HASH),
        ("sizes", np.int32, 2),  # height and width, upright
        ("kind", np.int32),  # "MODE FORMAT", as an index of `kinds`
        ("clear", np.bool_),  # has transparency
        ("moving", np.bool_),  # has several frames or pages
        ("brightest", np.uint8),  # the highest level of its pixels; 255 where they were not decoded
    ]
)


class Scan(NamedTuple):
    """What is known of the pictures of a listing.

    `table` (N,) has the `COLUMNS` of each; `wrong` and `names` are the reasons and names of those that cannot be used.
    Labels, classes, `origin` and `unused` are those of the listing. `fleeting` are rows for which the disk or the
    memory failed, and which may be usable later.
    """

    table: NDArray[np.void]
    kinds: list[str]
    wrong: dict[int, str]
    names: dict[int, str]
    labels: Ints | None
    classes: tuple[str, ...]
    origin: tuple[str, str]
    unused: tuple[str, ...] = ()
    fleeting: frozenset[int] = frozenset()

    def of_kind(self, rows: Ints, part: int) -> Counter[str]:
        """The number of these rows with each mode (part 0) or format (part 1)."""
        numbers, counts = np.unique(self.table["kind"][rows], return_counts=True)
        found: Counter[str] = Counter()
        for number, count in zip(numbers, counts, strict=True):
            found[self.kinds[number].split(" ")[part]] += int(count)
        return found

    def of_size(self, rows: Ints) -> Counter[tuple[int, int]]:
        """The number of these rows with each height and width."""
        pairs, counts = np.unique(self.table["sizes"][rows], axis=0, return_counts=True)
        return Counter({(h, w): n for (h, w), n in zip(pairs.tolist(), counts.tolist(), strict=True)})


class Seen(NamedTuple):
    """A scanned picture: its hash, height, width, "MODE FORMAT", transparency, motion, and its brightest level.

    Or the reason why it cannot be used, and whether that may be temporary.
    """

    hash: bytes
    height: int
    width: int
    kind: str
    clear: bool
    moving: bool
    brightest: int = 255
    wrong: str | None = None
    fleeting: bool = False


def look(pictures: list[Encoded], deep: bool = False, reading: Reading = READING) -> list[Seen]:
    """Scan some pictures; `deep` also decodes them, and hashes their pixels instead of their files."""
    return [_look(picture, deep, reading) for picture in pictures]


def _look(encoded: Encoded, deep: bool, reading: Reading) -> Seen:
    try:
        content = read_bytes(encoded)
        picture = opened(content, reading)
        if isinstance(picture, Numbers):
            return _look_at_numbers(picture, content, deep, reading.depth)
        with picture:
            width, height = upright_size(picture)
            kind, clear, moving = f"{picture.mode} {picture.format}", picture.has_transparency_data, moves(picture)
            brightest = 255
            if deep:
                pixels = to_pixels(picture, 3, None, "keep", (255, 255, 255))
                brightest = int(pixels.max())
                content = repr(pixels.shape).encode() + pixels.tobytes()
        return Seen(blake2b(content, digest_size=HASH).digest(), height, width, kind, clear, moving, brightest)
    except BadPictureError as error:
        return Seen(bytes(HASH), 0, 0, "? ?", False, False, 0, str(error), error.fleeting)


def _look_at_numbers(picture: Numbers, content: bytes, deep: bool, depth: Depth) -> Seen:
    brightest = 255
    if deep:
        array = to_numbers(picture, picture.channels, None, "keep", (255, 255, 255), depth)
        highest = (array[:-1] if picture.alpha else array).max()  # what is opaque is not bright
        brightest = round(255 * float(depth.share(highest.astype(np.float64))))
        content = repr(array.shape).encode() + array.tobytes()
    hashed, (height, width) = blake2b(content, digest_size=HASH).digest(), picture.size
    return Seen(hashed, height, width, f"{picture.mode} {picture.form}", picture.alpha, picture.moving, brightest)


def kept_at(source: Source, cache: Path, key: str, deep: bool = False) -> Path:
    """The file of the cache for a source's scan."""
    readers = PIL.__version__, *versions()
    return cache / "scans" / f"{name_of(VERSION, readers, source.kind, source.where, key, deep)}.npz"


def scan(source: Source, cache: Path, request: Request, workers: int, bar: bool = False, deep: bool = False) -> Scan:
    """The scan of a source, from the cache or made now.

    Args:
        source: A recognised source.
        cache: The cache folder.
        request: What is wanted of it.
        workers: Number of processes.
        bar: Show progress on a terminal.
        deep: Decode every picture too; such scans are cached separately.

    Raises:
        DataError: If the source cannot be listed.
    """
    path = kept_at(source, cache, request.key, deep)
    kept = read_arrays(path)
    old = _unpacked(kept) if kept else None
    before = unpack(kept["signature"])[0] if kept else None
    if old and source.signature and before == source.signature:
        return old
    listing = source.list()
    # a table that points to files elsewhere does not change with them, so the signature of its listing counts
    outside = listing.signature is not None and listing.stamps is not None
    signature = listing.signature if outside else source.signature or listing.signature
    if old and signature and before == signature:
        return old
    unchanged = _unchanged(listing, kept, old) if kept and old else np.full(listing.count, -1)
    found = _scanned(listing, old, unchanged, workers, bar, partial(look, deep=deep, reading=request.reading))
    if signature and not found.fleeting:
        keep_arrays(path, **_packed(found, signature, listing))
    return found


def _unchanged(listing: Listing, kept: Arrays, old: Scan) -> Ints:
    """The row in an older scan of each row that is the same file, unchanged and usable; -1 for other rows."""
    if listing.stamps is None or "stamps" not in kept:
        return np.full(listing.count, -1)
    files = zip(unpack(kept["files"]), kept["stamps"].tolist(), strict=True)
    before = {(name, *stamp): row for row, (name, stamp) in enumerate(files) if any(stamp) and row not in old.wrong}
    now = enumerate(listing.stamps.tolist())
    return np.array([before.get((listing.name(row), *stamp), -1) for row, stamp in now], np.int64)


def _scanned(
    listing: Listing,
    old: Scan | None,
    unchanged: Ints,
    workers: int,
    bar: bool,
    see: Callable[[list[Encoded]], list[Seen]],
) -> Scan:
    """A scan made now, except for the rows that an older one has."""
    table = np.zeros(listing.count, COLUMNS)
    kinds = {name: number for number, name in enumerate(old.kinds if old else ["? ?"])}
    wrong, fleeting = dict(listing.wrong), frozenset[int]()
    unchanged[list(wrong)] = -1
    if old:
        table[unchanged >= 0] = old.table[unchanged[unchanged >= 0]]
    fresh = unchanged < 0
    fresh[list(wrong)] = False
    parts = chunks(np.flatnonzero(fresh), listing.bytes)
    results = spread(see, (listing.read(part) for part in parts), workers)
    hidden = None if bar else True
    with tqdm(total=fresh.sum(), unit="picture", desc="scanning", leave=False, disable=hidden) as progress:
        for part, pictures in zip(parts, results, strict=True):
            for row, seen in zip(part.tolist(), pictures, strict=True):
                if seen.wrong is None:
                    kind = kinds.setdefault(seen.kind, len(kinds))
                    size = seen.height, seen.width
                    table[row] = tuple(seen.hash), size, kind, seen.clear, seen.moving, seen.brightest
                else:
                    wrong[row] = seen.wrong
                    fleeting |= {row} if seen.fleeting else set()
            progress.update(len(part))
    wrong = dict(sorted(wrong.items()))
    names = {row: one_line(listing.name(row)) for row in wrong}
    unused = tuple(map(one_line, listing.unused))
    return Scan(table, list(kinds), wrong, names, listing.labels, listing.classes, listing.origin, unused, fleeting)


def _packed(found: Scan, signature: str, listing: Listing) -> Arrays:
    arrays: Arrays = {
        **{name: found.table[name] for name in COLUMNS.names or ()},
        "signature": pack([signature]),
        "kinds": pack(found.kinds),
        "classes": pack(found.classes),
        "told": pack(found.origin),
        "left_alone": pack(found.unused),
        "wrong": np.array(list(found.wrong), np.int64),
        "reasons": pack(found.wrong.values()),
        "names": pack(found.names.values()),
    }
    if found.labels is not None:
        arrays["labels"] = found.labels
    if listing.stamps is not None:
        arrays |= {"stamps": listing.stamps, "files": pack([listing.name(row) for row in range(listing.count)])}
    return arrays


def _unpacked(kept: Arrays) -> Scan:
    table = np.zeros(len(kept["kind"]), COLUMNS)
    for name in COLUMNS.names or ():
        table[name] = kept[name]
    rows = kept["wrong"].tolist()
    pictures_from, labels_from = unpack(kept["told"])
    return Scan(
        table=table,
        kinds=unpack(kept["kinds"]),
        wrong=dict(zip(rows, unpack(kept["reasons"]), strict=True)),
        names=dict(zip(rows, unpack(kept["names"]), strict=True)),
        labels=kept.get("labels"),
        classes=tuple(unpack(kept["classes"])),
        origin=(pictures_from, labels_from),
        unused=tuple(unpack(kept["left_alone"])),
    )
