"""Which column of a table holds the pictures and which the labels, and what its labels mean."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np

from flowimg.data.listing import Ints, Request, label_of, listed, number_classes, several
from flowimg.data.pictures import Encoded
from flowimg.errors import DataError

TEXTS = {"string", "large_string", "string_view"}
BYTES = {"binary", "large_binary", "binary_view"}
FLOATS = {"float16", "float32", "float64"}
LABELS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", *TEXTS, *FLOATS}
"""Column types that labels can have; of floats only whole ones, which integers become where one is missing."""
USUAL = ("label", "labels", "class")
"""Names of columns that are taken for labels."""


class Labels(NamedTuple):
    """The labels of a table: numbers (N,) or None, class names, the column that they are from, and remarks."""

    numbers: Ints | None = None
    classes: tuple[str, ...] = ()
    column: str | None = None
    unused: tuple[str, ...] = ()


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
    """The column of pictures: the one requested, the only one of the type for pictures, or the only one of bytes."""
    found = [column for column, feature in features.items() if holds_pictures(feature)]
    if name is not None:
        raw = getattr(_requested(where, features, name, "data.image_column"), "dtype", None) in BYTES | TEXTS
        if name not in found and not raw:
            raise DataError(f"{where}: column {name!r} (data.image_column) holds no pictures; {listed(found)} would")
        return name
    found = found or [column for column, feature in features.items() if getattr(feature, "dtype", None) in BYTES]
    if not found:
        raise DataError(f"{where} has no column of pictures: its columns are {listed(features)}")
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of pictures, {listed(found)}: name one by data.image_column")
    return found[0]


def _requested(where: str, features: datasets.Features, name: str, setting: str) -> Any:
    if name not in features:
        raise DataError(f"{where} has no column {name!r} ({setting}): its columns are {listed(features)}")
    return features[name]


def holds_pictures(feature: Any) -> bool:
    """Whether a column has the type of `datasets` for pictures, or its form in files that others wrote."""
    form = set(feature) if isinstance(feature, dict) else set()
    return isinstance(feature, datasets.Image) or form in ({"bytes", "path"}, {"bytes"})


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
    found = found or [column for column in USUAL if column in features and _holds_labels(features[column])]
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of labels, {listed(found)}: name one by data.label_column")
    return found[0] if found else None


def _holds_labels(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in LABELS


def table_labels(
    where: str,
    features: datasets.Features,
    request: Request,
    cells: Callable[[str], Sequence[Any]],
    name: Callable[[int], str] = "row {}".format,
) -> Labels:
    """The labels of a table's rows, or remarks on columns that look like labels and are not used.

    Args:
        where: Names the table in errors.
        features: The types of its columns.
        request: Whether labels are read, and from which column.
        cells: The values of a column.
        name: Names a row in errors.

    Raises:
        DataError: If a row has no label, or its label is of no class.
    """
    column = find_label_column(where, features, request)
    values = [] if column is None else list(map(label_of, cells(column)))
    broken = next((value for value in values if isinstance(value, float)), None)
    if column is not None and (broken is None or column == request.label_column):
        numbers, classes = read_labels(where, values, features[column], column, name)
        return Labels(numbers, classes, column)
    if request.classes:
        raise DataError(f"{where} has no labels to choose data.classes by: its columns are {listed(features)}")
    return Labels(unused=tuple(_no_labels(features, broken)) if request.reads_labels else ())


def _no_labels(features: datasets.Features, broken: float | None) -> list[str]:
    """Remarks on the columns of a table that no labels are read from."""
    unused = []
    for column, feature in features.items():
        if column.lower() in USUAL and (broken is not None or not _holds_labels(feature)):
            what = f"{broken} is no class" if _holds_labels(feature) else f"{feature} is no type of labels"
            unused.append(f"the column {column}: {what}")
    others = [name for name, feature in features.items() if name.lower() not in USUAL and _holds_labels(feature)]
    others += [
        name for name in features if name.lower() in USUAL and name not in USUAL and _holds_labels(features[name])
    ]
    if others:
        unused.append(f"the column {several(others)}: --data.label-column {others[0]} would make it the classes")
    return unused


def read_labels(
    where: str, values: Sequence[Any], feature: Any, column: str, name: Callable[[int], str] = "row {}".format
) -> tuple[Ints, tuple[str, ...]]:
    """The label of every row as a number, and the class names; the values are as `label_of` reads them.

    Raises:
        DataError: If a row has no label, or its label is of no class.
    """
    if None in values:
        raise DataError(
            f"{where}: {name(values.index(None))} has no label in column {column!r}: use another split or "
            "data.labels false"
        )
    if not isinstance(feature, datasets.ClassLabel):
        numbers, classes = number_classes(whole(where, values, column))
        return np.array([numbers[value] for value in values], np.int64), classes
    if values and not 0 <= min(values) <= max(values) < len(feature.names):
        raise DataError(
            f"{where}: column {column!r} has the label {max(values)}, but names for only {len(feature.names)} classes: "
            "use another column by data.label_column, or data.labels false"
        )
    return np.array(values, dtype=np.int64), tuple(feature.names)


def whole(where: str, values: Sequence[Any], column: str) -> Sequence[Any]:
    """The same labels, none of which is a number with a fraction.

    Raises:
        DataError: If one is.
    """
    if fraction := next((value for value in values if isinstance(value, float)), None):
        raise DataError(
            f"{where}: column {column!r} holds {fraction}, which is no class: use another column by "
            "data.label_column, or data.labels false"
        )
    return values
