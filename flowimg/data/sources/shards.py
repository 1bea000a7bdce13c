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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, unpack
from flowimg.data.listing import DataError, Listing, Source, listed, number_labels
from flowimg.data.pictures import Encoded
from flowimg.data.sources.folders import ENDINGS, SPLITS
from flowimg.data.workers import cores, spread

LABEL = "cls"
"""Ending of a file that is the label of its sample, unless data.label_column names another."""
MOST_LABEL = 2**20
"""Bytes of a label's file at most."""


class Shard(NamedTuple):
    """Where the pictures of a tar file lie: starts and sizes (N,) in bytes; their names and labels, as text."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: list[str]
    labels: list[str] | None
    cut_off: bool


def tar_files(path: Path) -> list[str]:
    """The tar files that a path means: one, a folder of them, `*` or `{0000..0099}`; none if it means no shards."""
    text = str(path)
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*.tar") if not file.name.startswith("."))
    if not text.endswith(".tar"):
        return []
    spread_out = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", text)
    if spread_out:
        before, first, last, after = spread_out.groups()
        return [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]
    return sorted(glob.glob(text)) if glob.has_magic(text) else [text] if path.is_file() else []


def shards(
    where: str,
    files: list[str],
    cache: Path,
    *,
    split: str,
    image_column: str | None,
    label_column: str | None,
    labels: bool,
    classes: Sequence[str],
) -> Source:
    """The pictures of tar shards.

    Raises:
        DataError: If a shard is not there, or there is no such split.
    """
    files = of_split(where, files, split)
    try:
        stamps = [os.stat(file) for file in files]
    except OSError as error:
        raise DataError(
            f"{where}: {error.filename} is not there; a range such as {{0000..0099}} names all of it"
        ) from None
    signature = name_of(files, [(stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns) for stamp in stamps])
    column = label_column or LABEL
    needed = labels or bool(classes)
    make = partial(_listing, where, files, cache, image_column, column if needed else None, label_column is not None)
    return Source(f"{len(files):,} tar shard{'s' if len(files) > 1 else ''}", where, signature, make)


def of_split(where: str, files: list[str], split: str) -> list[str]:
    """The shards of a split, where their names or folders say which they are of.

    Raises:
        DataError: If there are none of this split.
    """
    told = {
        file: next(iter(SPLITS & set(re.split(r"[^a-z]+", file.lower()))), None)
        for file in map(os.path.basename, files)
    }
    known = {name for name in told.values() if name}
    if None in told.values() or not known:
        known = {"train"}
        chosen = files if split == "train" else []
    else:
        chosen = [file for file in files if told[os.path.basename(file)] == split]
    if not chosen:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(sorted(known))}")
    return chosen


def _listing(where: str, files: list[str], cache: Path, image: str | None, label: str | None, asked: bool) -> Listing:
    found = index(where, files, cache, image, label)
    shard = np.repeat(np.arange(len(files)), [len(part.starts) for part in found])
    starts = np.concatenate([part.starts for part in found])
    sizes = np.concatenate([part.sizes for part in found])
    if not len(starts):
        raise DataError(f"{where} holds no pictures: its shards have no files that end in {image or 'jpg, png, ...'}")
    first = np.cumsum([0, *(len(part.starts) for part in found)])

    def read(rows: NDArray[np.int64]) -> list[Encoded]:
        return [Encoded(None, files[shard[row]], int(starts[row]), int(sizes[row])) for row in rows]

    def name(row: int) -> str:
        part = int(shard[row])
        return f"{files[part]}:{found[part].names[row - first[part]]}"

    numbers: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    texts = [text for part in found for text in part.labels or ()]
    if label is not None and (asked or len(texts) == len(starts)):
        if len(texts) != len(starts) or "" in texts:
            raise DataError(f"{where}: not every picture has a label {label}: name another by data.label_column, or "
                            "give data.labels false")  # fmt: skip
        whole = all(text.isdigit() for text in texts)
        numbers, classes = number_labels([int(text) for text in texts] if whole else texts)
    cut = {
        int(first[n + 1]) - 1: "the shard ends in the middle"
        for n, part in enumerate(found)
        if part.cut_off and len(part.starts)
    }
    told = ("", f"of {label}" if numbers is not None else "")
    return Listing(len(starts), read, name, numbers, classes, sizes, wrong=cut, told=told)


def index(where: str, files: list[str], cache: Path, image: str | None, label: str | None) -> list[Shard]:
    """Where the pictures of each shard lie: kept from before, or read through, several at once.

    Raises:
        DataError: If a shard is no tar file, or several of a sample's files may be its picture.
    """
    look = partial(kept_or_read, cache=cache, image=image, label=label)
    found = []
    for told in spread(look, files, cores()):
        if isinstance(told, str):
            raise DataError(f"{where}: {told}")
        found.append(told)
    return found


def kept_or_read(file: str, cache: Path, image: str | None, label: str | None) -> Shard | str:
    """A shard as the cache has it, or read through now and kept; what is wrong with it, as a text."""
    stamp = os.stat(file)
    name = name_of("shard 1", os.path.realpath(file), stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns, image, label)
    path = cache / "shards" / f"{name}.npz"
    kept = read_arrays(path)
    if kept is not None:
        count = len(kept["starts"])
        labels = unpack(kept["labels"], count) if "labels" in kept else None
        return Shard(kept["starts"], kept["sizes"], unpack(kept["names"], count), labels, bool(kept["cut_off"]))
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
    starts, sizes, names, labels = [], [], [], []
    sample, has_picture, text = None, False, ""
    cut_off = False
    try:
        with tarfile.open(file, "r:") as tar, open(file, "rb") as raw:
            members = iter(tar)
            while True:
                try:
                    member = next(members, None)
                except tarfile.TarError:
                    cut_off = True
                    break
                if member is not None and (not member.isreg() or member.sparse):
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
                        return (
                            f"{member.name} in {file} is a second picture of its sample: name one by data.image_column"
                        )
                    has_picture = True
                    starts.append(member.offset_data)
                    sizes.append(member.size)
                    names.append(member.name)
                elif label is not None and kind == ending:
                    raw.seek(member.offset_data)
                    text = _label(raw.read(min(member.size, MOST_LABEL)), field)
            if cut_off and has_picture:
                labels.append(text)
            if starts and starts[-1] + sizes[-1] > os.fstat(raw.fileno()).st_size:
                cut_off = True
    except (tarfile.TarError, OSError) as error:
        return f"{file} is no tar file ({error})"
    arrays = (np.array(starts, np.int64), np.array(sizes, np.int64))
    return Shard(*arrays, names, labels if label is not None else None, cut_off)


def _label(content: bytes, field: str) -> str:
    try:
        text = content.decode().strip()
        if field:
            value: Any = json.loads(text).get(field, "")
            text = "" if value is None else str(value)
        return text.replace("\0", "")
    except (UnicodeDecodeError, ValueError, AttributeError):
        return ""
