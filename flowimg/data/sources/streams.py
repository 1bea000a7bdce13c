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
from flowimg.data.listing import Label, Opened, Request, Stream
from flowimg.data.sources import shards
from flowimg.data.sources.parquet import parquet_stream
from flowimg.data.sources.splits import files_of_split
from flowimg.data.sources.unused import look_below
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
    files = [source] if path.suffix.lower() == ".tar" and os.path.isfile(path) else []
    beside: list[str] = []
    if os.path.isdir(path):
        below = look_below(path)
        tables = below.of([".parquet"])  # which `recognise` prefers too
        used = tables or below.of([".tar"])
        files, beside = [os.path.join(path, file) for file in used], below.beside(used)
        if tables:
            return parquet_stream(where, source, cache, request, files, beside)
    elif not files and "://" not in source:
        files = shards.tar_files(where, path)
    if files:
        files, unused = files_of_split(where, files, request.split)
        return _tar_stream(where, files, cache, request, [*unused, *beside])
    return parquet_stream(where, source, cache, request)


class Summary(NamedTuple):
    """A shard's number of pictures, its distinct labels, the endings of its other files, and whether it is cut off."""

    pictures: int
    labels: set[Label]
    others: tuple[str, ...]
    cut_off: bool


def _tar_stream(where: str, files: list[str], cache: Path, request: Request, unused: list[str]) -> Stream:
    label = (request.label_column or shards.LABEL) if request.reads_labels else None
    read = partial(shards.kept_or_read, cache=cache, image=request.image_column, label=label)
    found = shards.look_up(where, partial(_summary, read), files)
    counts = np.array([part.pictures for part in found], np.int64)
    if not counts.sum():
        raise shards.no_pictures(where, request)
    known: set[Label] = set().union(*(part.labels for part in found))
    kinds: set[str] = set().union(*(part.others for part in found))
    numbers, classes, remarks = shards.shard_classes(where, request, known, kinds)
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
    return Stream(where, story, counts[full], classes, open_one, fingerprint, unused=(*remarks, *unused))


def _summary(read: Callable[[str], shards.Shard | str], file: str) -> Summary | str:
    shard = read(file)
    if isinstance(shard, str):
        return shard
    count = len(shard.starts) - shard.cut_off  # the last picture of a shard that is broken off may be incomplete
    return Summary(count, set((shard.labels or [])[:count]), shard.others, shard.cut_off)
