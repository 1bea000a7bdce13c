"""Parquet that is streamed, each row group as a shard: from disk, the hub, or any address that fsspec supports.

Footers and labels are read once, several files at a time, and stored in the cache.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, unpack
from flowimg.data.listing import Label, Opened, Request, Stream, absent, check_split, label_of
from flowimg.data.pictures import first_line
from flowimg.data.sources.splits import files_of_split
from flowimg.data.workers import Result
from flowimg.errors import DataError
from flowimg.names import on_disk

OPENED = 16
"""Files that are read at a time."""


def parquet_stream(
    where: str, source: str, cache: Path, request: Request, below: Sequence[str] = (), beside: Sequence[str] = ()
) -> Stream:
    """The row groups of parquet files; `below` are those of a folder, `beside` remarks on what else lies there.

    Raises:
        DataError: If there are none, or the split, a column or labels are missing.
    """
    from flowimg.data.sources.columns import features_of, find_image_column, name_stored, reader_of, table_labels

    files, unused = _parquet_files(where, source, request, below)
    try:
        signature = _signature(files)
        groups, schema, unlike = _row_groups(files, cache, signature)
        features = features_of(schema)
        image = find_image_column(where, features, request.image_column)
        # the distinct labels, in place of all
        known = lru_cache(partial(_known_labels, files, cache=cache, signature=signature))
        labels = table_labels(where, features, request, known, lambda: unlike, lambda _: "a row")
        numbers: dict[Label, int] = {}
        if labels.column and labels.numbers is not None:
            numbers = dict(zip(map(label_of, known(labels.column)), labels.numbers.tolist(), strict=True))
    except DataError:
        raise
    except Exception as error:  # the readers below raise almost anything
        raise DataError(f"{where} cannot be streamed: {first_line(error)}") from None
    if not groups:
        raise DataError(f"{where}: split {request.split!r} holds no rows")

    def open_one(shard: int) -> Opened:
        file, group, _ = groups[shard]
        with _reader(file) as opened:
            table = opened.read_row_group(group, columns=[image, labels.column] if labels.column else [image])
        column, read = table[image], reader_of(features[image])
        own = table[labels.column].to_pylist() if labels.column else None
        return Opened(
            lambda row: read(column[row]),
            lambda row: f"{name_stored(read(column[row]), row)} of row group {group} of {file}",
            None if own is None else np.array([numbers[label_of(cell)] for cell in own], np.int64),
        )

    counts = np.array([rows for _, _, rows in groups], np.int64)
    story = f"{len(groups):,} row groups of {len(files):,} parquet files (column {image})"
    story += f", {counts.sum():,} pictures, streamed"
    names = [(Path(file).name, group) for file, group, _ in groups]
    fingerprint, remarks = name_of(names, counts, labels.classes), (*labels.unused, *unused, *beside)
    without = absent(labels.numbers, labels.classes)
    return Stream(where, story, counts, labels.classes, open_one, fingerprint, without, remarks)


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


def _row_groups(
    files: Sequence[str], cache: Path, signature: str
) -> tuple[list[tuple[str, int, int]], pa.Schema, list[str]]:
    """(file, row group, rows) of all files, without empty ones, the first schema, and `unlike_classes` of all."""
    from flowimg.data.sources.columns import unlike_classes

    path = cache / "shards" / f"{name_of('row groups 2', signature)}.npz"
    kept = read_arrays(path)
    if kept is None:
        found = _of_each(_footer, files)
        parts = [(number, group, rows) for number, (_, sizes) in enumerate(found) for group, rows in enumerate(sizes)]
        schema = np.frombuffer(found[0][0].serialize().to_pybytes(), np.uint8)
        unlike = pack(unlike_classes(schema for schema, _ in found))
        kept = {"parts": np.array(parts, np.int64).reshape(-1, 3), "schema": schema, "unlike": unlike}
        keep_arrays(path, **kept)
    groups = [(files[number], group, rows) for number, group, rows in kept["parts"].tolist() if rows]
    return groups, pa.ipc.read_schema(pa.py_buffer(kept["schema"].tobytes())), unpack(kept["unlike"])


def _footer(file: str) -> tuple[Any, list[int]]:
    with _reader(file) as opened:
        groups = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
        return opened.schema_arrow, groups


def _known_labels(files: Sequence[str], label: str, *, cache: Path, signature: str) -> list[Any]:
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


def _parquet_files(where: str, source: str, request: Request, below: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """The parquet files of a split, and remarks on others: of a file or folder, of the hub, or at any address."""
    import datasets
    import fsspec

    from flowimg.data.sources.known import NO_HUB, NOT_ON_HUB, missing
    from flowimg.data.sources.recognise import has_card
    from flowimg.data.sources.tables import unwritten

    path = on_disk(source)
    try:
        if path.suffix.lower() == ".parquet" and os.path.isfile(path):
            return files_of_split(where, [str(path)], request.split)
        if os.path.isfile(path):
            raise neither(where)
        if path.is_dir() and not has_card(path):
            if not below:
                raise neither(where)
            return files_of_split(where, below, request.split)
        if "://" in source:
            system, pattern = fsspec.core.url_to_fs(source)
            found = sorted(
                system.glob(pattern if pattern.endswith(".parquet") else f"{pattern.rstrip('/')}/**/*.parquet")
            )
            if not found:
                raise DataError(f"{where} holds no parquet files, and nothing else is streamed from an address")
            return files_of_split(where, [system.unstrip_protocol(file) for file in found], request.split)
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
        raise neither(where)
    return chosen, []


def neither(where: str) -> DataError:
    """The error for a source that cannot be streamed."""
    return DataError(
        f"{where} holds neither tar shards nor parquet, which is what data.stream reads: leave data.stream out, "
        "and it is decoded once to the cache"
    )
