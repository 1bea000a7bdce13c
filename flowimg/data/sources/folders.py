"""A folder of pictures, walked once: every picture below it in the order of names, a folder a class where they are.

Links are followed, each folder once; what is no regular file is named and never opened. Nothing is read but entries,
so 100,000 files take half a second.
"""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import Listing, Source, listed, plain
from flowimg.data.pictures import Encoded
from flowimg.errors import DataError

ENDINGS = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"),
    *(".jp2", ".tga", ".ico", ".heic", ".heif"),
}
"""Names of files that are pictures; the last two are counted and not read."""
SPLITS = {"train", "test", "val", "valid", "validation"}
"""Names of folders that are splits and not classes, where all of a folder's folders have such names."""
Stamp = tuple[int, int, int]
UNKNOWN = (0, 0, 0)


@dataclass
class Entries:
    """What lies below a folder and is not hidden, in the order of names.

    `paths` are relative, with / between their parts; `stamps` are size, and times of content and of entry in ns;
    `wrong` says why one is no file that could be read, by its path; `folders` are those that could not be;
    `again` are folders that were seen before, by a link.
    """

    paths: list[str] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    again: list[str] = field(default_factory=list)

    def add(self, path: str, stamp: Stamp, wrong: str | None = None) -> None:
        """One entry more."""
        self.paths.append(path)
        self.stamps.append(stamp)
        if wrong is not None:
            self.wrong[path] = wrong

    def only(self, rows: list[int]) -> "Entries":
        """Some of the entries."""
        paths = [self.paths[row] for row in rows]
        wrong = {path: self.wrong[path] for path in paths if path in self.wrong}
        return Entries(paths, [self.stamps[row] for row in rows], wrong, self.folders, self.again)

    @property
    def signature(self) -> str:
        """A name of all of it with its stamps: another one when a file comes, goes or changes."""
        return name_of("\0".join(self.paths), np.array(self.stamps, dtype=np.int64), self.wrong)


def walk(root: Path) -> Entries:
    """Everything below a folder: first what truly lies there, then what links lead to.

    Raises:
        DataError: If the folder itself cannot be read.
    """
    found = Entries()
    try:
        os.scandir(root).close()
    except OSError as error:
        raise DataError(f"data.source {root} cannot be read: {error.strerror}") from None
    seen = {_inode(str(root))}
    here: list[str] = [""]
    links: list[str] = []
    while here:
        folder = here.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            inside = []
            found.add(folder, UNKNOWN, f"a folder that cannot be read ({(error.strerror or 'unknown').lower()})")
            found.folders.add(folder)
        for entry in inside:
            if not entry.name.startswith("."):
                _enter(found, entry, f"{folder}/{entry.name}" if folder else entry.name, seen, here, links)
        while links and not here:  # what truly lies somewhere comes before what links lead to
            link = links.pop(0)
            with suppress(OSError):  # it was there a moment ago
                inode = _inode(os.path.join(root, link))
                if inode in seen:
                    found.again.append(link)
                else:
                    seen.add(inode)
                    here.append(link)
    order = sorted(range(len(found.paths)), key=lambda row: found.paths[row].replace("/", "\0"))
    return found.only(order)


def _enter(
    found: Entries, entry: os.DirEntry[str], path: str, seen: set[tuple[int, int]], here: list[str], links: list[str]
) -> None:
    """Take one entry of a folder in; folders to come go to `here`, those behind links to `links`."""
    try:
        status = entry.stat()
    except OSError as error:
        loops = error.errno == 40 or "levels" in str(error.strerror)
        link = "a link that leads to itself" if loops else "a link to nothing"
        found.add(path, UNKNOWN, link if entry.is_symlink() else (error.strerror or "unknown").lower())
        return
    if not stat.S_ISDIR(status.st_mode):
        found.add(path, stamp_of(status), None if stat.S_ISREG(status.st_mode) else "not a regular file")
    elif entry.is_symlink():
        links.append(path)
    elif (inode := _inode(entry.path)) not in seen:
        seen.add(inode)
        here.append(path)
    else:  # a link led to it before
        found.again.append(path)


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path)  # an entry of a folder does not know it on every system
    return status.st_dev, status.st_ino


def picture_folder(where: str, root: Path, entries: Entries, split: str) -> Source:
    """The pictures among a folder's entries.

    Raises:
        DataError: If there are none, or no such split.
    """
    pictures = entries.only([row for row, path in enumerate(entries.paths) if _is_picture(path, entries)])
    good = [path for path in pictures.paths if path not in pictures.wrong]
    if not good:
        odd = next((f"; {plain(path)} is {why}" for path, why in pictures.wrong.items()), "")
        raise DataError(f"{where} holds no pictures, no parquet or arrow files and no tar shards{odd}")
    left = [f"{path}: a folder that was seen before, by a link" for path in entries.again]
    tops = {path.split("/")[0] for path in good if "/" in path}
    splits = tops if tops and tops <= SPLITS else {"train"}
    if split not in splits:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(sorted(splits))}")
    if splits == tops:
        beside = [path for path in pictures.paths if "/" not in path]
        left += [f"{path}: beside the folders of splits" for path in beside]
        pictures = pictures.only([row for row, path in enumerate(pictures.paths) if path.startswith(f"{split}/")])
    prefix = f"{split}/" if splits == tops else ""
    signature = name_of(pictures.signature, left)
    return Source("a folder of pictures", where, signature, partial(_listing, root, pictures, prefix, left))


def _is_picture(path: str, entries: Entries) -> bool:
    """By its name; of what cannot be looked into also without an ending, as a folder may be meant."""
    ending = os.path.splitext(path)[1].lower()
    return ending in ENDINGS or path in entries.folders or (path in entries.wrong and not ending)


def _listing(root: Path, pictures: Entries, prefix: str, left: list[str]) -> Listing:
    paths = pictures.paths
    stamps = np.array(pictures.stamps, dtype=np.int64).reshape(-1, 3)
    below = [path.removeprefix(prefix) for path in paths]
    good = [path for path, whole in zip(below, paths, strict=True) if whole not in pictures.wrong]
    tops = {path.split("/")[0] for path in good}
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    if len(tops) > 1 and all("/" in path for path in good):
        classes = tuple(sorted(tops))
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers.get(path.split("/")[0], 0) for path in below], dtype=np.int64)

    def name(row: int) -> str:
        return os.path.join(root, paths[row])

    return Listing(
        count=len(paths),
        read=lambda rows: [Encoded(path=name(row)) for row in rows],
        name=name,
        labels=labels,
        classes=classes,
        bytes=stamps[:, 0],
        stamps=stamps,
        wrong={row: pictures.wrong[path] for row, path in enumerate(paths) if path in pictures.wrong},
        told=("", "a folder each" if classes else ""),
        left_alone=tuple(left),
    )
