"""Tables that Hugging Face `datasets` reads: from the hub, from parquet or arrow files, or saved by it.

Columns of pictures and labels are found by their types, or requested by name.
"""

import sys
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flowimg.data.cache import NO_STAMP, name_of, stamp_of
from flowimg.data.listing import Ints, Listing, Request, check_split, listed, number_classes
from flowimg.data.pictures import Encoded, first_line
from flowimg.errors import CacheError, DataError
from flowimg.names import on_disk, one_line

LABELS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string", "large_string", "bool"}
"""Column types that labels can have."""


def open_table(source: str, subset: str | None) -> dict[str, datasets.Dataset]:
    """Every split of a table, by name.

    Raises:
        DataError: If it cannot be read.
    """
    path, where = on_disk(source), f"data.source {one_line(source)}"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if path.is_file():
            return datasets.load_dataset(path.suffix[1:], data_files=str(path))
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


def table_listing(where: str, source: str, request: Request) -> Listing:
    """The pictures of a table's split, which are read from wherever `datasets` stores them.

    Args:
        where: Names the source in errors.
        source: A file or folder, or the id of a dataset on the hub.
        request: The subset, the split, the columns, and whether labels are needed.

    Raises:
        DataError: If it cannot be read, or the split, a column or labels are missing.
    """
    splits = open_table(source, request.subset)
    check_split(where, request.split, splits)
    rows = splits[request.split].with_format(None)
    image = find_image_column(where, rows.features, request.image_column)
    label = find_label_column(where, rows.features, request)
    labels: Ints | None = None
    classes: tuple[str, ...] = ()
    if label:
        values = rows.with_format("arrow")[:][label].to_pylist()
        labels, classes = read_labels(where, values, rows.features[label], label)
    pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(some: Ints) -> list[Encoded]:
        adjacent = len(some) > 0 and some[-1] - some[0] + 1 == len(some)
        return [stored(cell) for cell in pictures[slice(some[0], some[-1] + 1) if adjacent else some.tolist()][image]]

    def name(row: int) -> str:
        return name_stored(stored(pictures[row][image]), row)

    stamps = _stamps(pictures, image)
    signature = str(rows._fingerprint) if stamps is None else name_of(str(rows._fingerprint), stamps)
    origin = (f"column {image}", f"column {label}" if label else "")
    return Listing(len(rows), read, name, labels, classes, stamps=stamps, origin=origin, signature=signature)


def _stamps(pictures: datasets.Dataset, image: str) -> Ints | None:
    """Stamps of the files that rows point to, (N, 3), zeros for other rows; None if no row points to a file."""
    column = pictures.with_format("arrow")[:][image]
    if not pa.types.is_struct(column.type) or not (content := pc.struct_field(column, "bytes")).null_count:
        return None
    paths = pc.struct_field(column, "path").to_pylist()
    outside = pc.is_null(content).to_pylist()
    found = [stamp_of(path) if points else NO_STAMP for path, points in zip(paths, outside, strict=True)]
    return np.array(found, np.int64).reshape(-1, 3)


def stored(cell: Any) -> Encoded:
    """A cell of a column of pictures: bytes, or a dictionary of `datasets`."""
    if isinstance(cell, bytes):
        return Encoded(cell)
    return Encoded((cell or {}).get("bytes"), (cell or {}).get("path"))


def name_stored(encoded: Encoded, row: int) -> str:
    """The name by which the user can identify a picture of a table."""
    if encoded.content is None and encoded.path:
        return encoded.path
    return f"picture {row} ({encoded.path})" if encoded.path else f"picture {row}"


def find_image_column(where: str, features: datasets.Features, name: str | None) -> str:
    """The column of pictures: the one requested, or the only one."""
    found = [column for column, feature in features.items() if _holds_pictures(feature)]
    if name is not None:
        feature = _requested(where, features, name, "data.image_column")
        raw = getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")
        if name not in found and not raw:
            raise DataError(f"{where}: column {name!r} (data.image_column) holds no pictures; {listed(found)} would")
        return name
    if not found:
        raise DataError(f"{where} has no column of pictures: its columns are {listed(features)}")
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of pictures, {listed(found)}: name one by data.image_column")
    return found[0]


def _requested(where: str, features: datasets.Features, name: str, setting: str) -> Any:
    if name not in features:
        raise DataError(f"{where} has no column {name!r} ({setting}): its columns are {listed(features)}")
    return features[name]


def _holds_pictures(feature: Any) -> bool:
    """Whether a column has the type of `datasets` for pictures, or its form in files that others wrote."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def find_label_column(where: str, features: datasets.Features, request: Request) -> str | None:
    """The column of labels: the one requested, the only one of classes, or one called label; None if there is none."""
    name = request.label_column
    if name is not None:
        feature = _requested(where, features, name, "data.label_column")
        if not _holds_labels(feature):
            raise DataError(f"{where}: column {name!r} (data.label_column) holds no labels, but {feature}")
    if not request.reads_labels:
        return None
    if name is not None:
        return name
    found = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [column for column in ("label", "labels", "class") if column in features]
    found = found or [column for column in usual if _holds_labels(features[column])]
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of labels, {listed(found)}: name one by data.label_column")
    if not found and request.classes:
        raise DataError(f"{where} has no labels to choose data.classes by: its columns are {listed(features)}")
    return found[0] if found else None


def _holds_labels(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in LABELS


def read_labels(where: str, values: list[Any], feature: Any, column: str) -> tuple[Ints, tuple[str, ...]]:
    """The label of every row as a number, and the class names."""
    missing = next((row for row, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise DataError(
            f"{where}: row {missing} has no label in column {column!r}: use another split or data.labels false"
        )
    if not isinstance(feature, datasets.ClassLabel):
        numbers, classes = number_classes(values)
        return np.array([numbers[value] for value in values], np.int64), classes
    if values and not 0 <= min(values) <= max(values) < len(feature.names):
        raise DataError(
            f"{where}: column {column!r} has the label {max(values)}, but names for only {len(feature.names)} classes: "
            "use another column by data.label_column, or data.labels false"
        )
    return np.array(values, dtype=np.int64), tuple(feature.names)
