"""Tables that Hugging Face `datasets` reads: from the hub, from parquet or arrow files, or saved by it."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flowimg.data.cache import NO_STAMP, name_of, stamp_of
from flowimg.data.listing import Ints, Listing, Request, check_split
from flowimg.data.pictures import Encoded, first_line
from flowimg.data.sources.columns import (
    find_image_column,
    holds_arrays,
    name_stored,
    reader_of,
    stored,
    table_labels,
    unlike_classes,
)
from flowimg.errors import CacheError, DataError
from flowimg.names import on_disk, one_line


def open_table(source: str, subset: str | None, files: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    """Every split of a table, by name; if `files` are given, those of each split.

    Raises:
        DataError: If it cannot be read.
    """
    path, where = on_disk(source), f"data.source {one_line(source)}"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if files:
            return datasets.load_dataset(Path(next(iter(files.values()))[0]).suffix[1:].lower(), data_files=files)
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved = datasets.load_from_disk(str(path))
            return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if path.is_dir():
            return datasets.load_dataset(str(path), subset)
        return _open_hub(source, subset)
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:  # the readers below `datasets` raise almost anything
        reason = first_line(error)
        if reason.startswith("Config name is missing"):
            subsets = str(error).splitlines()[1].partition(": ")[2]
            raise DataError(f"{where} has several subsets: name one of {subsets} by data.subset") from None
        raise unwritten(where, error) or DataError(f"{where} cannot be read: {reason}") from None


def unwritten(where: str, error: Exception) -> CacheError | None:
    """The error to report if `datasets` could not write its own cache, through which it reads every table."""
    cache, path = str(datasets.config.HF_DATASETS_CACHE), str(getattr(error, "filename", None) or "")
    if not isinstance(error, OSError) or not (path.startswith(cache) or (path and cache.startswith(path))):
        return None
    return CacheError(
        f"{where} is read by way of a cache in {one_line(cache)}, which cannot be written "
        f"({error.strerror or error}): name another folder by HF_HOME, $FLOWIMG_CACHE or data.cache"
    )


def _open_hub(source: str, subset: str | None) -> dict[str, datasets.Dataset]:
    """A dataset of the Hugging Face hub, from its cache if it was downloaded before."""
    from huggingface_hub.utils import logging

    from flowimg.data.sources.known import NO_HUB, NOT_ON_HUB, missing

    print(f"looking for {one_line(source)} on the Hugging Face hub ...", file=sys.stderr, flush=True)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # silence its report of every attempt; one error is raised instead
    try:
        return datasets.load_dataset(source, subset)
    except datasets.exceptions.DatasetNotFoundError:
        raise missing(source, NOT_ON_HUB) from None
    except ConnectionError:
        raise missing(source, NO_HUB) from None
    finally:
        logging.set_verbosity(before)


def table_listing(
    where: str, source: str, request: Request, files: dict[str, list[str]], unused: tuple[str, ...] = ()
) -> Listing:
    """The pictures of a table's split, which are read from wherever `datasets` stores them.

    Args:
        where: Names the source in errors.
        source: A file or folder, or the id of a dataset on the hub.
        request: The subset, the split, the columns, and whether labels are needed.
        files: The files of the split, by its name, if we decide them and not `datasets`.
        unused: Remarks on what else lies there.

    Raises:
        DataError: If it cannot be read, or the split, a column or labels are missing.
    """
    splits = open_table(source, request.subset, files)
    split = next(iter(files), request.split)
    check_split(where, split, splits)
    rows = splits[split].with_format(None)
    image = find_image_column(where, rows.features, request.image_column)
    schemas = (_schema(file) for file in files.get(split, ()))
    cells = partial(_cells, rows)
    labels = table_labels(where, rows.features, request, cells, lambda: unlike_classes(schemas))
    feature, pictures = rows.features[image], rows.select_columns([image])
    encoded: Callable[[Any], Encoded] = stored
    more: dict[str, Any] = {}
    if holds_arrays(feature):
        pictures, encoded = pictures.with_format("arrow"), reader_of(feature)
        if None not in feature.shape:
            size = int(np.prod(feature.shape)) * np.dtype(feature.dtype).itemsize
            more["bytes"] = np.full(len(rows), size, np.int64)
    elif not isinstance(feature, dict) or "path" in feature:  # plain bytes are read as they are
        pictures = pictures.cast_column(image, datasets.Image(decode=False))

    def read(some: Ints) -> list[Encoded]:
        adjacent = len(some) > 0 and some[-1] - some[0] + 1 == len(some)
        return [encoded(cell) for cell in pictures[slice(some[0], some[-1] + 1) if adjacent else some.tolist()][image]]

    def name(row: int) -> str:
        return name_stored(encoded(pictures[[row]][image][0]), row)

    stamps = _stamps(pictures, image)
    signature = str(rows._fingerprint) if stamps is None else name_of(str(rows._fingerprint), stamps)
    origin = (f"column {image}", f"column {labels.column}" if labels.column else "")
    more |= {"stamps": stamps, "origin": origin, "signature": signature, "unused": (*labels.unused, *unused)}
    return Listing(len(rows), read, name, labels.numbers, labels.classes, **more)


def _cells(rows: datasets.Dataset, column: str) -> list[Any]:
    return rows.with_format("arrow")[:][column].to_pylist()


def _schema(file: str) -> pa.Schema:
    """The columns of a parquet or arrow file."""
    if file.lower().endswith(".parquet"):
        return pq.read_schema(file)
    with pa.memory_map(file) as opened:
        try:
            return pa.ipc.open_stream(opened).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(opened).schema


def _stamps(pictures: datasets.Dataset, image: str) -> Ints | None:
    """Stamps of the files that rows point to, (N, 3), zeros for other rows; None if no row points to a file."""
    column = pictures.with_format("arrow")[:][image]
    if not pa.types.is_struct(column.type) or not (content := pc.struct_field(column, "bytes")).null_count:
        return None
    paths = pc.struct_field(column, "path").to_pylist()
    outside = pc.is_null(content).to_pylist()
    found = [stamp_of(path) if points else NO_STAMP for path, points in zip(paths, outside, strict=True)]
    return np.array(found, np.int64).reshape(-1, 3)
