"""Parquet that is streamed, each row group as a shard: from disk, the hub, or any address that fsspec supports.

Footers and labels are read once, several files at a time, and stored in the cache.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, unpack
from flowimg.data.listing import Opened, Request, Stream, check_split, number_classes
from flowimg.data.pictures import first_line
from flowimg.data.sources.shards import lacks_label, of_split
from flowimg.data.workers import Result
from flowimg.errors import DataError
from flowimg.names import on_disk

OPENED = 16
"""Files that are read at a time."""


def parquet_stream(where: str, source: str, cache: Path, request: Request) -> Stream:
    """The row groups of parquet files.

    Raises:
        DataError: If there are none, or the split, a column or labels are missing.
    """
    import datasets

    from flowimg.data.sources.tables import find_image_column, find_label_column, name_stored, read_labels, stored

    files = _parquet_files(where, source, request)
    try:
        signature = _signature(files)
        groups, schema = _row_groups(files, cache, signature)
        features = datasets.Features.from_arrow_schema(schema)
        image = find_image_column(where, features, request.image_column)
        label = find_label_column(where, features, request) if request.labels else None
        numbers: dict[Any, int] | None = None
        classes: tuple[str, ...] = ()
        if label and isinstance(features[label], datasets.ClassLabel):
            classes = tuple(features[label].names)
        elif label:
            known = _known_labels(files, label, cache, signature)
            if None in known or -1 in known:
                raise lacks_label(where, label)
            numbers, classes = number_classes(known)
    except DataError:
        raise
    except Exception as error:  # the readers below raise almost anything
        raise DataError(f"{where} cannot be streamed: {first_line(error)}") from None
    if not groups:
        raise DataError(f"{where}: split {request.split!r} holds no rows")

    def open_one(shard: int) -> Opened:
        file, group, _ = groups[shard]
        with _reader(file) as opened:
            table = opened.read_row_group(group, columns=[image, label] if label else [image])
        column = table[image]
        labels = None
        if label:
            cells = table[label].to_pylist()
            if numbers is None:
                labels, _ = read_labels(f"{where}: {file}, row group {group}", cells, features[label], label)
            else:
                labels = np.array([numbers[cell] for cell in cells], np.int64)
        return Opened(
            lambda row: stored(column[row].as_py()),
            lambda row: f"{name_stored(stored(column[row].as_py()), row)} of row group {group} of {file}",
            labels,
        )

    counts = np.array([rows for _, _, rows in groups], np.int64)
    story = f"{len(groups):,} row groups of {len(files):,} parquet files (column {image})"
    story += f", {counts.sum():,} pictures, streamed"
    names = [(Path(file).name, group) for file, group, _ in groups]
    return Stream(where, story, counts, classes, open_one, name_of(names, counts, classes))


def _reader(file: str) -> Any:
    import fsspec
    import pyarrow.parquet as pq

    return pq.ParquetFile(fsspec.open(file, "rb").open())


def _of_each(do: Callable[[str], Result], files: Sequence[str]) -> list[Result]:
    """A result for each file; several are read at once, because reading from far away is waiting and not work."""
    with ThreadPoolExecutor(OPENED) as threads:
        return list(threads.map(do, files))


def _signature(files: Sequence[str]) -> str:
    """A hash of files at any address, which changes when one of them does, as far as their host reports it."""
    import fsspec

    def stamps(file: str) -> tuple[str, list[str]]:
        system, path = fsspec.core.url_to_fs(file)
        found = system.info(path)
        keys = ("size", "mtime", "ino", "created", "modified", "LastModified", "ETag", "etag", "blob_id")
        return file, [str(found.get(key)) for key in keys]

    return name_of(_of_each(stamps, files))


def _row_groups(files: Sequence[str], cache: Path, signature: str) -> tuple[list[tuple[str, int, int]], Any]:
    """(file, row group, rows) of all files, without empty ones, and the schema: from the cache or the footers."""
    import pyarrow as pa

    path = cache / "shards" / f"{name_of('row groups 1', signature)}.npz"
    kept = read_arrays(path)
    if kept is None:
        found = _of_each(_footer, files)
        parts = [(number, group, rows) for number, (_, sizes) in enumerate(found) for group, rows in enumerate(sizes)]
        schema = np.frombuffer(found[0][0].serialize().to_pybytes(), np.uint8)
        kept = {"parts": np.array(parts, np.int64).reshape(-1, 3), "schema": schema}
        keep_arrays(path, **kept)
    groups = [(files[number], group, rows) for number, group, rows in kept["parts"].tolist() if rows]
    return groups, pa.ipc.read_schema(pa.py_buffer(kept["schema"].tobytes()))


def _footer(file: str) -> tuple[Any, list[int]]:
    with _reader(file) as opened:
        groups = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
        return opened.schema_arrow, groups


def _known_labels(files: Sequence[str], label: str, cache: Path, signature: str) -> list[Any]:
    """All distinct values of a column of labels, in order; None comes last, if some rows have none."""
    path = cache / "shards" / f"{name_of('labels 1', label, signature)}.npz"
    kept = read_arrays(path)
    if kept is not None:
        return unpack(kept["labels"])
    found = set().union(*_of_each(partial(_labels, label), files))
    known = sorted(found, key=lambda value: (value is None, value if value is not None else 0))
    keep_arrays(path, labels=pack(known))
    return known


def _labels(label: str, file: str) -> set[Any]:
    with _reader(file) as opened:
        return set(opened.read(columns=[label])[label].to_pylist())


def _parquet_files(where: str, source: str, request: Request) -> Sequence[str]:
    """The parquet files of a split: of a file or folder, of the hub, or at any address that fsspec supports."""
    import datasets
    import fsspec

    from flowimg.data.sources.known import NO_HUB, NOT_ON_HUB, missing
    from flowimg.data.sources.tables import unwritten

    path = on_disk(source)
    if path.suffix == ".parquet" and os.path.isfile(path):
        return of_split(where, [str(path)], request.split)
    try:
        if "://" in source:
            system, pattern = fsspec.core.url_to_fs(source)
            found = sorted(
                system.glob(pattern if pattern.endswith(".parquet") else f"{pattern.rstrip('/')}/**/*.parquet")
            )
            if not found:
                raise DataError(f"{where} holds no parquet files, and nothing else is streamed from an address")
            return of_split(where, [system.unstrip_protocol(file) for file in found], request.split)
        builder = datasets.load_dataset_builder(str(path) if path.is_dir() else source, request.subset)
    except DataError:
        raise
    except ConnectionError:
        raise missing(source, NO_HUB) from None
    except Exception as error:  # the readers below `datasets` raise almost anything
        if type(error).__name__ in ("DatasetNotFoundError", "FileNotFoundError"):
            raise missing(source, NOT_ON_HUB) from None
        raise unwritten(where, error) or DataError(f"{where} cannot be read: {first_line(error)}") from None
    files = {name: list(some) for name, some in (builder.config.data_files or {}).items()}
    check_split(where, request.split, files)
    chosen = files[request.split]
    if not chosen or any(not file.split("?")[0].endswith(".parquet") for file in chosen):
        raise DataError(
            f"{where} holds neither tar shards nor parquet, which is what data.stream reads: leave data.stream out, "
            "and it is decoded once to the cache"
        )
    return chosen
