"""Tar shards in the form of WebDataset: files of one name before the first dot are one sample, side by side.

    000017.jpg  000017.cls      a picture, and its class as a number or a name
    000018.jpg  000018.json     or in JSON: data.label_column json.KEY

Each shard is read through once, its headers alone, for where every picture lies; that is kept in the cache. Pictures
are then read straight from their place. Nothing is unpacked, so names in a shard are never paths.
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, stamp_of, unpack
from flowimg.data.listing import Listing, Source, first_line, listed, plain
from flowimg.data.pictures import Encoded
from flowimg.data.sources.folders import ENDINGS, SPLITS, Entries
from flowimg.data.workers import cores, spread
from flowimg.errors import DataError

Found = TypeVar("Found")

LABEL = "cls"
"""Ending of a file that is the label of its sample, unless data.label_column names another."""
MOST_SHARDS = 10**6
"""Shards that a range may name."""
MOST_LABEL = 2**20
"""Bytes of a label's file at most."""


class Shard(NamedTuple):
    """Where the pictures of a tar file lie: starts and sizes (N,) in bytes; their names and labels, as text."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: list[str]
    labels: list[str] | None
    cut_off: bool


def tar_files(where: str, path: Path) -> list[str]:
    """The tar files that `*` or `{0000..0099}` in a path means; none if there is no such thing in it.

    Raises:
        DataError: If it means no file that is there.
    """
    text = str(path)
    if spread_out := re.fullmatch(r"(.*)\{(\d{1,18})\.\.(\d{1,18})\}(.*\.tar)", text):
        before, first, last, after = spread_out.groups()
        count = int(last) - int(first) + 1
        if not 0 < count <= MOST_SHARDS:
            raise DataError(f"{where}: {first}..{last} is no range of shards: give the lower number first")
        names = [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]
    elif glob.has_magic(text):
        names = sorted(glob.glob(text))
        if not names or not all(name.endswith(".tar") for name in names):
            raise DataError(f"{where} matches no tar files: name a folder of pictures as a folder")
    else:
        return []
    if gone := next((name for name in names if not os.path.isfile(name)), None):
        raise DataError(f"{where}: there is no {gone}, which the range names")
    return names


def shards_below(path: Path, entries: Entries) -> list[str]:
    """The tar files among a folder's entries."""
    return [
        os.path.join(path, name)
        for name in entries.paths
        if name.lower().endswith(".tar") and name not in entries.wrong
    ]


def shards(
    where: str,
    files: list[str],
    cache: Path,
    *,
    split: str,
    image_column: str | None,
    label_column: str | None,
    labels: bool,
    named: bool,
) -> Source:
    """The pictures of tar shards.

    Raises:
        DataError: If there is no such split.
    """
    files = of_split(where, files, split)
    signature = name_of(files, [stamp_of(os.stat(file)) for file in files])
    column = (label_column or LABEL) if labels or named else None
    make = partial(_listing, where, files, cache, image_column, column, label_column is not None)
    return Source(f"{len(files):,} tar shard{'s' if len(files) > 1 else ''}", where, signature, make)


def of_split(where: str, files: list[str], split: str) -> list[str]:
    """The files of a split, where there are several and all of their names, or of the folders that differ, tell it.

    Raises:
        DataError: If there are none of this split.
    """
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    below = [os.path.relpath(file, root or ".") for file in files]
    words = [[word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS] for name in below]
    named = len(files) > 1 and all(words)
    told = [found[0] for found in words] if named else ["train"] * len(files)
    chosen = [file for file, which in zip(files, told, strict=True) if which == split]
    if not chosen:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(sorted(set(told)))}")
    return chosen


def _listing(where: str, files: list[str], cache: Path, image: str | None, label: str | None, asked: bool) -> Listing:
    found = look_up(where, partial(kept_or_read, cache=cache, image=image, label=label), files)
    shard = np.repeat(np.arange(len(files)), [len(part.starts) for part in found])
    starts = np.concatenate([part.starts for part in found])
    sizes = np.concatenate([part.sizes for part in found])
    if not len(starts):
        raise DataError(f"{where} holds no pictures: its shards have no files that end in {image or 'jpg, png, ...'}")
    first = np.cumsum([0, *(len(part.starts) for part in found)])
    # what comes after the place where a shard is broken is lost; the picture before it may be half
    cut = {
        int(first[number + 1]) - 1: "the shard is broken off here"
        for number, part in enumerate(found)
        if part.cut_off and len(part.starts)
    }

    def read(rows: NDArray[np.int64]) -> list[Encoded]:
        return [Encoded(None, files[shard[row]], int(starts[row]), int(sizes[row])) for row in rows]

    def name(row: int) -> str:
        part = int(shard[row])
        return f"{files[part]}:{found[part].names[row - first[part]]}"

    numbers: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    texts = [text for part in found for text in part.labels or ()]
    if label is not None and (asked or any(texts)):
        known = [text for row, text in enumerate(texts) if row not in cut]
        if "" in known:
            raise lacks_label(where, label)
        numbers_of, classes = classes_of(set(known))
        numbers = np.array([numbers_of.get(text, 0) for text in texts], np.int64)
    told = ("", f"of {label}" if numbers is not None else "")
    return Listing(len(starts), read, name, numbers, classes, sizes, wrong=cut, told=told)


def lacks_label(where: str, label: str) -> DataError:
    """That some pictures have no label."""
    return DataError(
        f"{where}: not every picture has a label {label}: name another by data.label_column, or give data.labels false"
    )


def classes_of(texts: set[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The number of each label, by its text, and the names of the classes: in order of value where all are numbers."""
    whole = all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts)
    values = {text: int(text) if whole else text for text in texts}
    known = sorted(set(values.values()))  # type: ignore[type-var]
    numbers = {value: number for number, value in enumerate(known)}
    return {text: numbers[value] for text, value in values.items()}, tuple(str(value) for value in known)


def look_up(where: str, do: Callable[[str], Found | str], files: list[str]) -> list[Found]:
    """What is found in each shard, several read at once.

    Raises:
        DataError: Where `do` gives a text: of a shard that is no tar file, or has two pictures for a sample.
    """
    found = []
    for told in spread(do, files, cores()):
        if isinstance(told, str):
            raise DataError(f"{where}: {told}")
        found.append(told)
    return found


def kept_or_read(file: str, cache: Path, image: str | None, label: str | None) -> Shard | str:
    """A shard as the cache has it, or read through now and kept; what is wrong with it, as a text."""
    name = name_of("shard 2", os.path.realpath(file), stamp_of(os.stat(file)), image, label)
    path = cache / "shards" / f"{name}.npz"
    kept = read_arrays(path)
    if kept is not None:
        labels = unpack(kept["labels"]) if "labels" in kept else None
        return Shard(kept["starts"], kept["sizes"], unpack(kept["names"]), labels, bool(kept["cut_off"]))
    shard = read_shard(file, image, label)
    if isinstance(shard, Shard):
        more = {} if shard.labels is None else {"labels": pack(shard.labels)}
        keep_arrays(path, starts=shard.starts, sizes=shard.sizes, names=pack(shard.names),
                    cut_off=np.array(shard.cut_off), **more)  # fmt: skip
    return shard


def read_shard(file: str, image: str | None, label: str | None) -> Shard | str:
    """Read a tar file's headers; what is wrong with it, as a text.

    Args:
        file: The tar file.
        image: The ending of pictures; None for the only one that a sample has.
        label: The ending of labels, or json.KEY; None for no labels.
    """
    ending, _, field = (label or "").partition(".")
    image = image.lower() if image else None
    starts, sizes, names, labels = [], [], [], []
    sample, has_picture, text = None, False, ""
    cut_off = False
    try:
        with tarfile.open(file, "r:") as tar, open(file, "rb") as raw:
            end = os.fstat(raw.fileno()).st_size
            while True:
                try:
                    member = tar.next()
                except tarfile.TarError:
                    member, cut_off = None, True
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member is not None and (not member.isreg() or member.sparse or member.size < 0):
                    continue
                folder, _, base = member.name.rpartition("/") if member else ("", "", "")
                stem, _, kind = base.partition(".")
                if base.startswith("."):
                    continue
                if member is None or (folder, stem) != sample:
                    if has_picture:
                        labels.append(text)
                    sample, has_picture, text = (folder, stem), False, ""
                if member is None:
                    break
                kind = kind.lower()
                if kind == image or (image is None and f".{kind.rpartition('.')[2]}" in ENDINGS):
                    if has_picture:
                        name = plain(member.name)
                        return f"{name} in {file} is a second picture of its sample: name one by data.image_column"
                    has_picture = True
                    starts.append(member.offset_data)
                    sizes.append(member.size)
                    names.append(member.name)
                elif label is not None and kind == ending:
                    raw.seek(member.offset_data)
                    text = _label(raw.read(min(member.size, MOST_LABEL)), field)
            # tarfile takes a header that is broken for the end; at the end there is nothing, or zeros
            raw.seek(min(tar.offset, end))
            cut_off |= bool(raw.read(2 * tarfile.BLOCKSIZE).strip(b"\0")) or 0 < (end - tar.offset) < tarfile.BLOCKSIZE
            cut_off |= bool(starts) and starts[-1] + sizes[-1] > end
    except Exception as error:  # a stranger's headers may break the reader in a dozen ways
        return f"{file} is no tar file that can be read ({first_line(error)})"
    arrays = (np.array(starts, np.int64), np.array(sizes, np.int64))
    return Shard(*arrays, names, labels if label is not None else None, cut_off)


def _label(content: bytes, field: str) -> str:
    try:
        text = content.decode().strip()
        if field:
            value: Any = json.loads(text).get(field, "")
            text = "" if value is None else str(value)
        return text
    except (UnicodeDecodeError, ValueError, AttributeError):
        return ""
