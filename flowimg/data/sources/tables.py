"""Tables: what Hugging Face `datasets` reads, from the hub, from parquet or arrow files, or saved by it.

Columns of pictures and labels are found by their types, or taken by name.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import Listing, first_line, listed, number_labels
from flowimg.data.pictures import Encoded
from flowimg.errors import DataError

LABELS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string", "large_string", "bool"}
"""Types of a column that can be labels."""


def open_table(source: str, subset: str | None) -> dict[str, datasets.Dataset]:
    """Every split of a table, by name.

    Raises:
        DataError: If it cannot be had.
    """
    path = Path(source).expanduser()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if path.is_file():
            return datasets.load_dataset(path.suffix[1:], data_files=str(path))
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            kept = datasets.load_from_disk(str(path))
            return kept if isinstance(kept, datasets.DatasetDict) else {"train": kept}
        if path.is_dir():
            return datasets.load_dataset(str(path), subset)
        return _open_hub(source, subset)
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:  # the readers below `datasets` raise almost anything
        said = first_line(error)
        if said.startswith("Config name is missing"):
            there = str(error).splitlines()[1].partition(": ")[2]
            raise DataError(f"data.source {source} has several subsets: name one by data.subset, of {there}") from None
        raise DataError(f"data.source {source} cannot be read: {said}") from None


def _open_hub(source: str, subset: str | None) -> dict[str, datasets.Dataset]:
    """A dataset of the Hugging Face hub, from its cache if it was fetched before."""
    from huggingface_hub.utils import logging

    from flowimg.data.sources.known import NO_HUB, NOT_ON_HUB, missing

    print(f"looking for {source} on the Hugging Face hub ...", file=sys.stderr, flush=True)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of every try to connect; we say once that none did
    try:
        return datasets.load_dataset(source, subset)
    except datasets.exceptions.DatasetNotFoundError:
        raise missing(source, NOT_ON_HUB) from None
    except ConnectionError:
        raise missing(source, NO_HUB) from None
    finally:
        logging.set_verbosity(before)


def table_listing(
    where: str,
    source: str,
    subset: str | None,
    *,
    split: str,
    image_column: str | None,
    label_column: str | None,
    labels: bool,
    named: bool,
) -> Listing:
    """The pictures of a table's split, which stay where `datasets` keeps them.

    Args:
        where: Names the source in errors.
        source: A file or folder, or the id of a dataset on the hub.
        subset: The configuration, where there are several.
        split: Which split.
        image_column: The column of pictures; None for the only one there is.
        label_column: The column of labels; None for the only one there is, if any.
        labels: Whether labels are wanted.
        named: Whether classes are asked for by name, so that there must be some.
    Raises:
        DataError: If it cannot be had, or does not hold what is asked for.
    """
    splits = open_table(source, subset)
    if split not in splits:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(splits)}")
    rows = splits[split].with_format(None)
    image = find_image_column(where, rows.features, image_column)
    label = find_label_column(where, rows.features, label_column, labels, named)
    numbers: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if label:
        values = rows.with_format("arrow")[:][label].to_pylist()
        numbers, names = read_labels(where, values, rows.features[label], label)
    pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(some: NDArray[np.int64]) -> list[Encoded]:
        run = len(some) > 0 and some[-1] - some[0] + 1 == len(some)
        return [stored(cell) for cell in pictures[slice(some[0], some[-1] + 1) if run else some.tolist()][image]]

    def name(row: int) -> str:
        return name_stored(stored(pictures[row][image]), row)

    told = f"column {image}", f"column {label}" if label else ""
    signature = str(rows._fingerprint)
    stamps = _stamps(pictures, image)
    if stamps is not None:
        signature = name_of(signature, stamps)
    return Listing(len(rows), read, name, numbers, names, None, stamps, told=told, signature=signature)


def _stamps(pictures: datasets.Dataset, image: str) -> NDArray[np.int64] | None:
    """Size and times of the files that rows point to, (N, 3), zeros where there is none; None if no row does."""
    column = pictures.with_format("arrow")[:][image]
    if not pa.types.is_struct(column.type) or not (content := pc.struct_field(column, "bytes")).null_count:
        return None
    stamps = np.zeros((len(column), 3), np.int64)
    paths = pc.struct_field(column, "path").to_pylist()
    for row in np.flatnonzero(np.array(pc.is_null(content).to_pylist())).tolist():
        with suppress(OSError, TypeError, ValueError):
            stamps[row] = stamp_of(os.stat(paths[row]))
    return stamps


def stored(cell: Any) -> Encoded:
    """A cell of a column of pictures: bytes, or what `datasets` makes of them."""
    if isinstance(cell, bytes):
        return Encoded(cell)
    return Encoded((cell or {}).get("bytes"), (cell or {}).get("path"))


def name_stored(encoded: Encoded, row: int) -> str:
    """A picture of a table as a person finds it again."""
    if encoded.content is None and encoded.path:
        return encoded.path
    return f"picture {row} ({encoded.path})" if encoded.path else f"picture {row}"


def find_image_column(where: str, features: datasets.Features, name: str | None) -> str:
    """The column of pictures: the one named, or the only one there is."""
    found = [column for column, feature in features.items() if _holds_pictures(feature)]
    if name is not None:
        if name not in features:
            raise DataError(f"{where} has no column {name!r} (data.image_column): its columns are {listed(features)}")
        plain = getattr(features[name], "dtype", None)
        if name not in found and plain not in ("binary", "large_binary", "string", "large_string"):
            raise DataError(f"{where}: column {name!r} (data.image_column) holds no pictures; {listed(found)} would")
        return name
    if not found:
        raise DataError(f"{where} has no column of pictures: its columns are {listed(features)}")
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of pictures, {listed(found)}: name one by data.image_column")
    return found[0]


def _holds_pictures(feature: Any) -> bool:
    """Pictures, or what parquet files make of them that were not written by `datasets`."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def find_label_column(
    where: str, features: datasets.Features, name: str | None, needed: bool, named: bool
) -> str | None:
    """The column of labels: the one named, the only one of classes, or one called label; None without."""
    if name is not None:
        if name not in features:
            raise DataError(f"{where} has no column {name!r} (data.label_column): its columns are {listed(features)}")
        if not _holds_labels(features[name]):
            raise DataError(f"{where}: column {name!r} (data.label_column) holds no labels, but {features[name]}")
    if not needed:
        return None
    if name is not None:
        return name
    found = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [column for column in ("label", "labels", "class") if column in features]
    found = found or [column for column in usual if _holds_labels(features[column])]
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of labels, {listed(found)}: name one by data.label_column")
    if not found and named:
        raise DataError(f"{where} has no labels to keep data.classes by: its columns are {listed(features)}")
    return found[0] if found else None


def _holds_labels(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in LABELS


def read_labels(where: str, values: list[Any], feature: Any, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The label of every row as a number, and the names of the classes."""
    missing = next((row for row, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise DataError(
            f"{where}: row {missing} has no label in column {column!r}: use another split or data.labels false"
        )
    if isinstance(feature, datasets.ClassLabel):
        if values and not 0 <= min(values) <= max(values) < len(feature.names):
            raise DataError(
                f"{where}: column {column!r} has a label {max(values)}, and names for {len(feature.names)} classes: "
                "use another by data.label_column, or data.labels false"
            )
        return np.array(values, dtype=np.int64), tuple(feature.names)
    return number_labels(values)
