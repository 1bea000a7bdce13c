"""Parquet that is streamed, a row group a shard: from disk, from the hub, or from any address that fsspec knows.

Footers and labels are read once, several files at a time, and kept in the cache.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowimg.data.cache import keep_arrays, name_of, read_arrays
from flowimg.data.listing import Opened, Stream, first_line, listed, number_labels
from flowimg.data.sources.shards import lacks_label, of_split
from flowimg.errors import DataError

OPENED = 16
"""Files whose footers are read at a time."""


def parquet_stream(
    where: str,
    source: str,
    cache: Path,
    subset: str | None,
    split: str,
    image: str | None,
    label: str | None,
    labels: bool,
) -> Stream:
    """The row groups of parquet files, as they come.

    Raises:
        DataError: If there are none, or they do not hold what is asked for.
    """
    import datasets

    from flowimg.data.sources.tables import find_image_column, find_label_column, read_labels

    files = _parquet_files(where, source, subset, split)
    try:
        signature = _signature(files)
        parts, schema = _row_groups(files, cache, signature)
        features = datasets.Features.from_arrow_schema(schema)
        image = find_image_column(where, features, image)
        label = find_label_column(where, features, label, needed=labels, named=False) if labels else None
        classes: tuple[str, ...] = ()
        numbers: dict[Any, int] | None = None
        if label and isinstance(features[label], datasets.ClassLabel):
            classes = tuple(features[label].names)
        elif label:
            known = _known_labels(files, label, cache, signature)
            if None in known or -1 in known:
                raise lacks_label(where, label)
            values, classes = number_labels(known)
            numbers = dict(zip(known, values.tolist(), strict=True))
    except DataError:
        raise
    except Exception as error:  # the readers below raise almost anything
        raise DataError(f"{where} cannot be streamed: {first_line(error)}") from None
    parts = [part for part in parts if part[2]]
    counts = np.array([count for _, _, count in parts], np.int64)
    if not len(counts):
        raise DataError(f"{where}: split {split!r} holds no rows")

    def open_one(shard: int) -> Opened:
        from flowimg.data.sources.tables import name_stored, stored

        file, group, _ = parts[shard]
        with _reader(file) as opened:
            table = opened.read_row_group(group, columns=[image, label] if label else [image])
        column = table[image]
        values = None
        if label:
            cells = table[label].to_pylist()
            if numbers is None:
                values, _ = read_labels(f"{where}: {file}, row group {group}", cells, features[label], label)
            else:
                values = np.array([numbers[cell] for cell in cells], np.int64)
        return Opened(
            lambda row: stored(column[row].as_py()),
            lambda row: f"{name_stored(stored(column[row].as_py()), row)} of row group {group} of {file}",
            values,
        )

    story = f"{len(parts):,} row groups of {len(files):,} parquet files (column {image})"
    story += f", {counts.sum():,} pictures, streamed"
    names = [(Path(file).name, group) for file, group, _ in parts]
    return Stream(where, story, counts, classes, open_one, name_of(names, counts, classes))


def _reader(file: str) -> Any:
    import fsspec
    import pyarrow.parquet as pq

    return pq.ParquetFile(fsspec.open(file, "rb").open())


def _signature(files: Sequence[str]) -> str:
    """A name of files at any address, another one when one of them changes, as far as their host tells."""
    import fsspec

    def told(file: str) -> tuple[str, list[str]]:
        system, path = fsspec.core.url_to_fs(file)
        found = system.info(path)
        stamps = ("size", "mtime", "ino", "created", "modified", "LastModified", "ETag", "etag", "blob_id")
        return file, [str(found.get(name)) for name in stamps]

    with ThreadPoolExecutor(OPENED) as threads:
        return name_of(list(threads.map(told, files)))


def _row_groups(files: Sequence[str], cache: Path, signature: str) -> tuple[list[tuple[str, int, int]], Any]:
    """(file, row group, rows) of all files, and their schema: as the cache has them, or from their footers."""
    import pyarrow as pa

    path = cache / "shards" / f"{name_of('row groups 1', signature)}.npz"
    kept = read_arrays(path)
    if kept is None:
        with ThreadPoolExecutor(OPENED) as threads:  # far away, a footer is a wait and no work
            found = list(threads.map(_footer, files))
        told = [(number, group, rows) for number, (_, many) in enumerate(found) for group, rows in enumerate(many)]
        schema = np.frombuffer(found[0][0].serialize().to_pybytes(), np.uint8)
        kept = {"parts": np.array(told, np.int64).reshape(-1, 3), "schema": schema}
        keep_arrays(path, **kept)
    parts = [(files[number], group, rows) for number, group, rows in kept["parts"].tolist()]
    return parts, pa.ipc.read_schema(pa.py_buffer(kept["schema"].tobytes()))


def _footer(file: str) -> tuple[Any, list[int]]:
    with _reader(file) as opened:
        groups = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
        return opened.schema_arrow, groups


def _known_labels(files: Sequence[str], label: str, cache: Path, signature: str) -> list[Any]:
    """All values of a column of labels, in order; None last, where some have none."""
    path = cache / "shards" / f"{name_of('labels 1', label, signature)}.npz"
    kept = read_arrays(path)
    if kept is not None:
        return json.loads(kept["labels"].tobytes())
    with ThreadPoolExecutor(OPENED) as threads:
        found = set().union(*threads.map(partial(_values, label), files))
    known = sorted(found, key=lambda value: (value is None, value if value is not None else 0))
    keep_arrays(path, labels=np.frombuffer(json.dumps(known).encode(), np.uint8))
    return known


def _values(label: str, file: str) -> set[Any]:
    with _reader(file) as opened:
        return set(opened.read(columns=[label])[label].to_pylist())


def _parquet_files(where: str, source: str, subset: str | None, split: str) -> Sequence[str]:
    """The parquet files of a split: of a file or folder, of the hub, or at any address that fsspec knows."""
    import datasets

    from flowimg.data.sources.known import NO_HUB, NOT_ON_HUB, missing

    path = Path(source).expanduser()
    if path.suffix == ".parquet" and os.path.isfile(path):
        return of_split(where, [str(path)], split)
    try:
        if "://" in source:
            import fsspec

            system, pattern = fsspec.core.url_to_fs(source)
            found = sorted(
                system.glob(pattern if pattern.endswith(".parquet") else f"{pattern.rstrip('/')}/**/*.parquet")
            )
            if not found:
                raise DataError(f"{where} holds no parquet files: nothing else is streamed from an address")
            return of_split(where, [system.unstrip_protocol(file) for file in found], split)
        else:
            builder = datasets.load_dataset_builder(str(path) if path.is_dir() else source, subset)
            files = {name: list(some) for name, some in (builder.config.data_files or {}).items()}
    except DataError:
        raise
    except ConnectionError:
        raise missing(source, NO_HUB) from None
    except Exception as error:  # the readers below `datasets` raise almost anything
        if type(error).__name__ in ("DatasetNotFoundError", "FileNotFoundError"):
            raise missing(source, NOT_ON_HUB) from None
        raise DataError(f"{where} cannot be read: {first_line(error)}") from None
    if split not in files:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(files)}")
    chosen = files[split]
    if not chosen or any(not file.split("?")[0].endswith(".parquet") for file in chosen):
        raise DataError(
            f"{where} holds neither tar shards nor parquet, which is what data.stream reads: leave data.stream out, "
            "and it is decoded once to the cache"
        )
    return chosen
