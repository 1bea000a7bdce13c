"""Sources that are read as they come: tar shards, and parquet on disk or on the hub, a row group a shard.

Only sizes and labels are looked at beforehand, once. A shard is opened when its turn comes and forgotten after.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowimg.data.cache import name_of
from flowimg.data.listing import Opened, Stream
from flowimg.data.pictures import Encoded
from flowimg.data.sources.folders import walk
from flowimg.data.sources.parquet import parquet_stream
from flowimg.data.sources.shards import (
    LABEL,
    Shard,
    classes_of,
    kept_or_read,
    lacks_label,
    look_up,
    of_split,
    shards_below,
    tar_files,
)
from flowimg.errors import DataError


def open_stream(
    source: str,
    cache: Path,
    *,
    subset: str | None,
    split: str,
    image_column: str | None,
    label_column: str | None,
    labels: bool,
) -> Stream:
    """Look up what shards a source has.

    Raises:
        DataError: If it is none that can be streamed, or does not hold what is asked for.
    """
    where = f"data.source {source}"
    path = Path(source).expanduser()
    files = [source] if path.suffix == ".tar" and os.path.isfile(path) else []
    if os.path.isdir(path):
        entries = walk(path)
        tables = any(name.endswith(".parquet") for name in entries.paths)  # as where it is decoded beforehand
        files = [] if tables else shards_below(path, entries)
    elif not files and "://" not in source:
        files = tar_files(where, path)
    if files:
        return _tar_stream(where, of_split(where, files, split), cache, image_column, label_column, labels)
    return parquet_stream(where, source, cache, subset, split, image_column, label_column, labels)


class Summary(NamedTuple):
    """A shard in short: how many pictures, which labels, how many have one, and whether it ends in the middle."""

    pictures: int
    labels: tuple[str, ...]
    labelled: int
    cut_off: bool


def _tar_stream(
    where: str, files: list[str], cache: Path, image: str | None, label_column: str | None, labels: bool
) -> Stream:
    label = (label_column or LABEL) if labels else None
    read = partial(kept_or_read, cache=cache, image=image, label=label)
    found = look_up(where, partial(_summary, read), files)
    counts = np.array([part.pictures for part in found], np.int64)
    if not counts.sum():
        raise DataError(f"{where} holds no pictures: its shards have no files that end in {image or 'jpg, png, ...'}")
    numbers: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    labelled = sum(part.labelled for part in found)
    if label and (label_column or labelled):
        if labelled < counts.sum():
            raise lacks_label(where, label)
        numbers, classes = classes_of({text for part in found for text in part.labels})
    full = np.flatnonzero(counts)
    cut = sum(part.cut_off for part in found)
    story = f"{len(full):,} tar shards, {counts.sum():,} pictures, streamed"
    story += f"; {cut} shards are broken off" if cut else ""

    def open_one(shard: int) -> Opened:
        file = files[full[shard]]
        part = read(file)
        if isinstance(part, str):
            raise DataError(f"{where}: {part}")
        found_labels = np.array([numbers.get(text, 0) for text in part.labels or ()], np.int64) if numbers else None
        return Opened(partial(_stretch, file, part), lambda row: f"{file}:{part.names[row]}", found_labels)

    fingerprint = name_of([Path(file).name for file in files], counts, classes)
    return Stream(where, story, counts[full], classes, open_one, fingerprint)


def _summary(read: Callable[[str], Shard | str], file: str) -> Summary | str:
    shard = read(file)
    if isinstance(shard, str):
        return shard
    count = len(shard.starts) - shard.cut_off  # the last picture of a shard that is broken off may be half
    labels = (shard.labels or [])[:count]
    return Summary(count, tuple(sorted(set(labels) - {""})), len(labels) - labels.count(""), shard.cut_off)


def _stretch(file: str, part: Shard, row: int) -> Encoded:
    return Encoded(None, file, int(part.starts[row]), int(part.sizes[row]))
