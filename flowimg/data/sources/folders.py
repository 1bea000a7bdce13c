"""A folder of pictures: all pictures below it in the order of names; its folders are classes, if it has several.

Links are followed, and each folder is visited once. Only regular files are ever opened. Listing reads directory entries
only, so 100,000 files take half a second.
"""

import os
import stat
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowimg.data.cache import NO_STAMP, Stamp, name_of, stamp
from flowimg.data.listing import Listing, Request, Source, check_split, listed, of_files, several
from flowimg.data.sources.splits import is_split, named
from flowimg.errors import DataError
from flowimg.names import one_line, text_of

ARRAY = ".npy"
"""Ending of a file of NumPy: each is one picture in a folder without pictures of other kinds."""
ENDINGS = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif"),
    *(".jp2", ".tga", ".ico", ".heic", ".heif", ".hif"),
    ARRAY,
}
"""Endings of picture files; see `readers` for those that need another package."""


class Entry(NamedTuple):
    """A file, or anything else below a folder that is not a folder to walk.

    `path` is relative, with / between its parts; `wrong` is the reason why it cannot be read as a file; `is_folder`
    marks a folder that cannot be read.
    """

    path: str
    stamp: Stamp = NO_STAMP
    wrong: str | None = None
    is_folder: bool = False


def signature_of(entries: list[Entry]) -> str:
    """A hash of all names and stamps: it changes when a file is added, removed or changed."""
    paths, stamps = [entry.path for entry in entries], np.array([entry.stamp for entry in entries], dtype=np.int64)
    return name_of("\0".join(paths), stamps, {entry.path: entry.wrong for entry in entries if entry.wrong is not None})


def walk(root: Path) -> tuple[list[Entry], list[str]]:
    """All entries below a folder that are not hidden, in the order of names; remarks on folders that give none.

    Raises:
        DataError: If the folder itself cannot be read.
    """
    found: list[Entry] = []
    odd: list[str] = []
    empty: list[str] = []
    visited: set[tuple[int, int]] = set()
    folders: list[str] = []
    links: deque[str] = deque()

    def visit(folder: str) -> None:
        with suppress(OSError):  # it was deleted in the meantime
            status = os.stat(os.path.join(root, folder))  # not every system has the inode in the entry
            inode = status.st_dev, status.st_ino
            if inode in visited:
                odd.append(f"{one_line(folder)}: a folder already visited through a link")
            else:
                folders.append(folder)
            visited.add(inode)

    visit("")
    while folders or links:
        if not folders:  # folders that really are below the root come before those that links lead to
            visit(links.popleft())
            continue
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as inside:
                entries = sorted((one for one in inside if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            if not folder:
                raise DataError(f"data.source {one_line(str(root))} cannot be read: {error.strerror}") from None
            why = f"a folder that cannot be read ({(error.strerror or 'unknown').lower()})"
            found.append(Entry(folder, wrong=why, is_folder=True))
            continue
        if folder and not entries:
            empty.append(folder)
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                status = entry.stat()
            except OSError as error:
                found.append(Entry(path, wrong=_why_no_status(entry, error)))
                continue
            if not stat.S_ISDIR(status.st_mode):
                wrong = None if stat.S_ISREG(status.st_mode) else "not a regular file"
                found.append(Entry(path, stamp(status), wrong))
            elif entry.is_symlink():
                links.append(path)
            else:
                visit(path)
    if empty:
        odd.append(f"{several(sorted(empty))}: empty")
    return sorted(found, key=lambda entry: entry.path.replace("/", "\0")), odd


def _why_no_status(entry: os.DirEntry[str], error: OSError) -> str:
    reason = str(error.strerror or "unknown")
    if not entry.is_symlink():
        return reason.lower()
    return "a link that leads to itself" if error.errno == 40 or "levels" in reason else "a link to nothing"


class Chosen(NamedTuple):
    """The picture files of a split, the folder that they lie in ("" if it is the source itself), and remarks."""

    pictures: list[Entry]
    prefixes: tuple[str, ...]
    unused: list[str]


def choose(where: str, entries: list[Entry], beside: Sequence[str], split: str) -> Chosen:
    """The pictures of a split among a folder's entries: if all folders are called as splits are, they are splits.

    Args:
        where: Names the folder in errors.
        entries: What lies below it.
        beside: Remarks on whatever else lies there.
        split: The split.

    Raises:
        DataError: If there are no pictures, or no such split.
    """
    pictures = [entry for entry in entries if _is_picture(entry)]
    others = [entry for entry in pictures if not entry.path.lower().endswith(ARRAY)]
    if arrays := [entry.path for entry in pictures if entry not in others] if _any_good(others) else []:
        # labels or depths, rather than pictures; they must not undo the folders of classes
        beside = [f"{several(arrays)}: arrays are read in a folder without other pictures", *beside]
        pictures = others
    good = [entry.path for entry in pictures if entry.wrong is None]
    if not good:
        odd = next((f"; {one_line(entry.path)} is {entry.wrong}" for entry in pictures), "")
        odd = odd or "".join(f"; {remark}" for remark in beside[:1])
        raise DataError(f"{where} holds no pictures, no parquet or arrow files and no tar shards{odd}")
    unused: list[str] = []
    tops = sorted({path.split("/")[0] for path in good if "/" in path})
    words = [name for name in tops if is_split(name)]
    prefixes: tuple[str, ...] = ()
    if words and words == tops:
        prefixes = tuple(f"{name}/" for name in named(where, split, tops))
        unused += [f"{entry.path}: next to the folders of splits" for entry in pictures if "/" not in entry.path]
        pictures = [entry for entry in pictures if entry.path.startswith(prefixes)]
    else:
        check_split(where, split)
        if words:
            other = next(name for name in tops if name not in words)
            kinds = "classes, not as splits" if len(words) > 1 else "a class, not as a split"
            unused.append(f"{listed(words)}: read as {kinds}, because the folder {one_line(other)} is none")
    return Chosen(pictures, prefixes, [*unused, *beside])


def _any_good(entries: list[Entry]) -> bool:
    return any(entry.wrong is None for entry in entries)


def picture_folder(where: str, root: Path, entries: list[Entry], beside: Sequence[str], request: Request) -> Source:
    """The pictures among a folder's entries; `beside` are remarks on the others.

    Raises:
        DataError: If there are none, or no such split.
    """
    chosen = choose(where, entries, beside, request.split)
    listing = partial(_listing, where, root, chosen, request.reads_labels)
    signature = name_of(signature_of(chosen.pictures), chosen.unused)
    return Source("a folder of pictures", where, signature, listing)


def _is_picture(entry: Entry) -> bool:
    """By its ending; an unreadable entry without an ending may be a folder of pictures, so it is one too."""
    ending = os.path.splitext(entry.path)[1].lower()
    return ending in ENDINGS or entry.is_folder or (entry.wrong is not None and not ending)


def _listing(where: str, root: Path, chosen: Chosen, labelled: bool) -> Listing:
    pictures, unused = chosen.pictures, list[str]()
    below = [entry.path.partition("/")[2] if chosen.prefixes else entry.path for entry in pictures]
    good = [path for path, entry in zip(below, pictures, strict=True) if entry.wrong is None]
    tops = {path.split("/")[0] for path in good if "/" in path}
    loose = [path for path in good if "/" not in path]
    classes = tuple(sorted(set(map(text_of, tops))))
    numbers = {name: number for number, name in enumerate(classes)}
    if len(classes) < len(tops):  # one has a letter that is not UTF-8, and another is called as that is written
        twice = Counter(map(text_of, tops)).most_common(1)[0][0]
        raise DataError(f"{where} has two folders whose names are both written {one_line(twice)}: rename one")

    def name(row: int) -> str:
        return os.path.join(root, pictures[row].path)

    wrong = {row: entry.wrong for row, entry in enumerate(pictures) if entry.wrong is not None}
    more: dict[str, Any] = {}
    if len(classes) > 1 and not loose:
        labels = np.array([numbers.get(text_of(path.split("/")[0]), 0) for path in below], dtype=np.int64)
        more = {"labels": labels, "classes": classes, "origin": ("", "a folder each")}
    elif labelled and len(classes) > 1:
        unused.append(f"the folders {listed(classes)}: move {several(loose)} into one of them, and each is a class")
    elif labelled and not loose:
        inner = sorted({path.split("/")[1] for path in good if path.count("/") > 1})
        if len(inner) > 1 and all(path.count("/") > 1 for path in good):
            outer = os.path.join(root, pictures[0].path.removesuffix(below[0]), classes[0])
            unused.append(f"the folders {listed(inner)}: each is a class of data.source {one_line(outer)}")
    return of_files(name, [entry.stamp for entry in pictures], wrong=wrong, unused=(*unused, *chosen.unused), **more)
