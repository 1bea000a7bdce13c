"""Sources that are streamed: tar shards, and parquet on disk or on the hub, where each row group is a shard.

Only sizes and labels are read beforehand, once. A shard is opened when it is needed and closed afterwards.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowimg.data.cache import name_of
from flowimg.data.listing import Opened, Request, Stream
from flowimg.data.sources import shards
from flowimg.data.sources.folders import walk
from flowimg.data.sources.parquet import parquet_stream
from flowimg.data.sources.splits import files_of_split
from flowimg.errors import DataError
from flowimg.names import on_disk, one_line


def open_stream(source: str, cache: Path, **requested: Any) -> Stream:
    """Find the shards of a source.

    Args:
        source: What data.source is.
        cache: The cache folder.
        requested: Fields of `Request`: the subset, the split, the columns, and whether labels are used.

    Raises:
        DataError: If it cannot be streamed, or lacks the split, column or labels.
    """
    request = Request(**requested)
    where = f"data.source {one_line(source)}"
    path = on_disk(source)
    files = [source] if path.suffix == ".tar" and os.path.isfile(path) else []
    if os.path.isdir(path):
        entries, _ = walk(path)
        has_tables = any(entry.path.endswith(".parquet") for entry in entries)  # which `recognise` prefers too
        files = [] if has_tables else shards.shards_below(path, entries)
    elif not files and "://" not in source:
        files = shards.tar_files(where, path)
    if files:
        files, unused = files_of_split(where, files, request.split)
        return _tar_stream(where, files, cache, request, unused)
    return parquet_stream(where, source, cache, request)


class Summary(NamedTuple):
    """A shard's number of pictures, its distinct labels, its number of labelled pictures, and whether it is cut off.

    `others` are the endings of the other files of its samples.
    """

    pictures: int
    labels: set[str]
    labelled: int
    cut_off: bool
    others: tuple[str, ...]


def _tar_stream(where: str, files: list[str], cache: Path, request: Request, unused: list[str]) -> Stream:
    label = (request.label_column or shards.LABEL) if request.labels else None
    read = partial(shards.kept_or_read, cache=cache, image=request.image_column, label=label)
    found = shards.look_up(where, partial(_summary, read), files)
    counts = np.array([part.pictures for part in found], np.int64)
    if not counts.sum():
        raise shards.no_pictures(where, request)
    numbers: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    labelled = sum(part.labelled for part in found)
    if label and (request.label_column or labelled):
        if labelled < counts.sum():
            raise shards.lacks_label(where, label)
        numbers, classes = shards.classes_of({text for part in found for text in part.labels})
    elif label:
        unused += shards.no_labels({kind for part in found for kind in part.others})
    full = np.flatnonzero(counts)
    cut = sum(part.cut_off for part in found)
    story = f"{len(full):,} tar shards, {counts.sum():,} pictures, streamed"
    story += f"; {cut} shards are broken off" if cut else ""

    def open_one(shard: int) -> Opened:
        file = files[full[shard]]
        part = read(file)
        if isinstance(part, str):
            raise DataError(f"{where}: {part}")
        labels = np.array([numbers.get(text, 0) for text in part.labels or ()], np.int64) if numbers else None
        return Opened(partial(part.picture, file), lambda row: f"{file}:{part.names[row]}", labels)

    fingerprint = name_of([Path(file).name for file in files], counts, classes)
    return Stream(where, story, counts[full], classes, open_one, fingerprint, unused=tuple(unused))


def _summary(read: Callable[[str], shards.Shard | str], file: str) -> Summary | str:
    shard = read(file)
    if isinstance(shard, str):
        return shard
    count = len(shard.starts) - shard.cut_off  # the last picture of a shard that is broken off may be incomplete
    labels = (shard.labels or [])[:count]
    return Summary(count, set(labels) - {""}, len(labels) - labels.count(""), shard.cut_off, shard.others)
