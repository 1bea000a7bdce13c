"""A folder of pictures, walked once: every picture below it in the order of names, a folder a class where they are.

Links are followed, each folder once; what is no regular file is named and never opened. Nothing is read but entries,
so 100,000 files take a second or two.
"""

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.cache import name_of
from flowimg.data.listing import DataError, Listing, Source, listed
from flowimg.data.pictures import Encoded

ENDINGS = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"),
    *(".jp2", ".tga", ".ico", ".heic", ".heif"),
}
"""Names of files that are pictures; the last two are counted and not read."""
SPLITS = {"train", "test", "val", "valid", "validation"}
"""Names of folders that are splits and not classes, where all of a folder's folders have such names."""
UNKNOWN = (0, 0, 0)


class Entry(NamedTuple):
    """A file below a folder: its parts, its size, times of content and of entry in ns, and why it is no picture."""

    parts: tuple[str, ...]
    stamp: tuple[int, int, int]
    wrong: str | None


def walk(root: Path) -> Iterator[Entry]:
    """Every file below a folder that is not hidden, in the order of names; folders that come round again are entries.

    Raises:
        DataError: If the folder itself cannot be read.
    """
    try:
        found = os.stat(root)
        os.scandir(root).close()
    except OSError as error:
        raise DataError(f"data.source {root} cannot be read: {error.strerror}") from None
    return _walk(str(root), (), {(found.st_dev, found.st_ino)})


def _walk(folder: str, parts: tuple[str, ...], seen: set[tuple[int, int]]) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Entry(parts, UNKNOWN, f"a folder that cannot be read ({(error.strerror or 'unknown').lower()})")
        return
    for entry in inside:
        if entry.name.startswith("."):
            continue
        here = (*parts, entry.name)
        try:
            found = entry.stat()
        except OSError as error:
            loops = error.errno == 40 or "levels" in str(error.strerror)
            link = "a link that leads to itself" if loops else "a link to nothing"
            yield Entry(here, UNKNOWN, link if entry.is_symlink() else (error.strerror or "unknown").lower())
            continue
        if stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in seen:
                yield Entry(here, UNKNOWN, "a link to a folder that was seen before")
                continue
            seen.add((found.st_dev, found.st_ino))
            yield from _walk(entry.path, here, seen)
        else:
            regular = stat.S_ISREG(found.st_mode)
            stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            yield Entry(here, stamp, None if regular else "not a regular file")


def signature(entries: list[Entry]) -> str:
    """A name of all entries with their stamps: another one when a file comes, goes or changes."""
    stamps = np.array([entry.stamp for entry in entries], dtype=np.int64)
    return name_of("\0".join("/".join(entry.parts) for entry in entries), stamps)


def picture_folder(where: str, root: Path, entries: list[Entry], split: str) -> Source:
    """The pictures among a folder's entries.

    Raises:
        DataError: If there are none, or no such split.
    """
    pictures = [entry for entry in entries if _is_picture(entry)]
    if not any(entry.wrong is None for entry in pictures):
        odd = f"; {'/'.join(pictures[0].parts)} is {pictures[0].wrong}" if pictures else ""
        raise DataError(f"{where} holds no pictures, no parquet or arrow files and no tar shards{odd}")
    tops = {entry.parts[0] for entry in pictures if entry.wrong is None}
    splits = tops if tops <= SPLITS and all(len(entry.parts) > 1 for entry in pictures) else {"train"}
    if split not in splits:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(sorted(splits))}")
    if splits == tops:
        root = root / split
        pictures = [entry._replace(parts=entry.parts[1:]) for entry in pictures if entry.parts[0] == split]
    return Source("a folder of pictures", where, signature(pictures), partial(_listing, root, pictures))


def _is_picture(entry: Entry) -> bool:
    """By its name; of what cannot be looked into also without an ending, as a folder may be meant."""
    ending = os.path.splitext(entry.parts[-1])[1].lower()
    return ending in ENDINGS or (entry.wrong is not None and not ending)


def _listing(root: Path, pictures: list[Entry]) -> Listing:
    files = [os.path.join(root, *entry.parts) for entry in pictures]
    stamps = np.array([entry.stamp for entry in pictures], dtype=np.int64).reshape(-1, 3)
    tops = [entry.parts[0] for entry in pictures]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    good = [entry for entry in pictures if entry.wrong is None]
    if len({entry.parts[0] for entry in good}) > 1 and all(len(entry.parts) > 1 for entry in good):
        classes = tuple(sorted({entry.parts[0] for entry in good}))
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers.get(top, 0) for top in tops], dtype=np.int64)
    return Listing(
        count=len(files),
        read=lambda rows: [Encoded(path=files[row]) for row in rows],
        name=files.__getitem__,
        labels=labels,
        classes=classes,
        bytes=stamps[:, 0],
        stamps=stamps,
        wrong={row: entry.wrong for row, entry in enumerate(pictures) if entry.wrong},
        told=("", "a folder each" if classes else ""),
    )
