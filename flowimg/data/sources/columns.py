"""Which column of a table holds the pictures and which the labels, and what its labels mean."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from flowimg.data.listing import USUAL, Ints, Label, Request, classes_of, fraction_in, label_of, listed, several
from flowimg.data.pictures import Encoded
from flowimg.data.sources.arrays import as_npy
from flowimg.errors import DataError
from flowimg.names import one_line, word

Features = Mapping[str, Any]
"""The type of each column of a table, as `datasets` has it."""
TEXTS = {"string", "large_string", "string_view"}
BYTES = {"binary", "large_binary", "binary_view"}
FLOATS = {"float16", "float32", "float64"}
LABELS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", *TEXTS, *FLOATS}
"""Column types that labels can have; of floats only whole ones, which integers become where one is missing."""


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


def reader_of(feature: Any) -> Callable[[pa.Scalar], Encoded]:
    """What reads a cell of a column of pictures, as Arrow holds it."""
    return partial(_array, feature.shape) if holds_arrays(feature) else lambda cell: stored(cell.as_py())


def _array(shape: Sequence[int | None], cell: pa.Scalar) -> Encoded:
    """A cell of a column of arrays, without a Python number for each of its numbers."""
    lists = cell.value if isinstance(cell, pa.ExtensionScalar) else cell
    if lists is None or not lists.is_valid:
        return Encoded()
    values = lists.values
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values = values.flatten()
    array = values.to_numpy(zero_copy_only=False)
    with suppress(ValueError):  # `datasets` does not check shapes; the decoder gives the reason why such a row is bad
        array = array.reshape([-1 if size is None else size for size in shape])
    return Encoded(as_npy(array))


def name_stored(encoded: Encoded, row: int) -> str:
    """The name by which the user can identify a picture of a table."""
    if encoded.content is None and encoded.path:
        return encoded.path
    return f"picture {row} ({encoded.path})" if encoded.path else f"picture {row}"


def find_image_column(where: str, features: Features, name: str | None) -> str:
    """The column of pictures: the one requested, or the only one of the type for pictures, else of arrays or bytes."""
    found = [column for column, feature in features.items() if holds_pictures(feature)]
    if name is not None:
        raw = getattr(_requested(where, features, name, "data.image_column"), "dtype", None) in BYTES | TEXTS
        if name not in found and not raw:
            raise DataError(f"{where}: column {name!r} (data.image_column) holds no pictures; {listed(found)} would")
        return name
    found = [column for column in found if not holds_arrays(features[column])] or found
    found = found or [column for column, feature in features.items() if getattr(feature, "dtype", None) in BYTES]
    if not found:
        raise DataError(f"{where} has no column of pictures: its columns are {listed(features)}")
    if len(found) > 1:
        raise DataError(f"{where} has {len(found)} columns of pictures, {listed(found)}: name one by data.image_column")
    return found[0]


def _requested(where: str, features: Features, name: str, setting: str) -> Any:
    if name not in features:
        raise DataError(f"{where} has no column {name!r} ({setting}): its columns are {listed(features)}")
    return features[name]


def holds_pictures(feature: Any) -> bool:
    """Whether a column has a type of `datasets` for pictures or arrays, or its form in files that others wrote."""
    form = set(feature) if isinstance(feature, dict) else set()
    return isinstance(feature, datasets.Image) or holds_arrays(feature) or form in ({"bytes", "path"}, {"bytes"})


def holds_arrays(feature: Any) -> bool:
    """Whether a column has a type of `datasets` for arrays of numbers that can be pictures."""
    return isinstance(feature, datasets.Array2D | datasets.Array3D) and feature.dtype in LABELS - TEXTS


def find_label_column(where: str, features: Features, request: Request) -> str | None:
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
    return getattr(feature, "dtype", None) in LABELS and not hasattr(feature, "shape")  # that of arrays is of numbers


def table_labels(
    where: str,
    features: Features,
    request: Request,
    cells: Callable[[str], Sequence[Any]],
    unlike: Callable[[], Collection[str]],
    name: Callable[[int], str] = "row {}".format,
) -> Labels:
    """The labels of a table's rows, or remarks on columns that look like labels and are not used.

    Args:
        where: Names the table in errors.
        features: The types of its columns.
        request: Whether labels are read, and from which column.
        cells: The values of a column.
        unlike: `unlike_classes` of its files.
        name: Names a row in errors.

    Raises:
        DataError: If a row has no label, or its label is of no class.
    """
    column = find_label_column(where, features, request)
    found = [] if column is None else cells(column)
    meant = {cell: label_of(cell) for cell in set(found)}
    broken = fraction_in(meant.values())
    if column is not None and (broken is None or column == request.label_column):
        if column in unlike():
            raise DataError(
                f"{where}: its files do not have the same class names, in the same order, in column {column!r}: write "
                "them with the same, or give data.labels false"
            )
        numbers, classes = _numbered(where, [meant[cell] for cell in found], features[column], column, name)
        return Labels(numbers, classes, column)
    if request.classes:
        raise DataError(f"{where} has no labels to choose data.classes by: its columns are {listed(features)}")
    return Labels(unused=tuple(_no_labels(features, column, broken)) if request.reads_labels else ())


def _no_labels(features: Features, column: str | None, broken: float | None) -> list[str]:
    """Remarks on the columns of a table that no labels are read from; `column` would be one, and has `broken` in it."""
    unused = [] if column is None else [f"the column {one_line(column)}: {broken} is no class"]
    for name, feature in features.items():
        if name.lower() in USUAL and not _holds_labels(feature):
            unused.append(f"the column {one_line(name)}: {feature} is no type of labels")
    others = [name for name, feature in features.items() if name != column and _holds_labels(feature)]
    others.sort(key=lambda name: name.lower() not in USUAL)
    if others:
        unused.append(f"the column {several(others)}: data.label_column {word(others[0])} would make it the classes")
    return unused


def _numbered(
    where: str, labels: Sequence[Label], feature: Any, column: str, name: Callable[[int], str]
) -> tuple[Ints, tuple[str, ...]]:
    """The label of every row as a number, and the class names."""
    missing = one_line(name(labels.index(None))) if None in labels else ""
    lack = f"{missing} has no label in column {column!r}"
    numbers, classes = classes_of(where, labels, f"column {column!r}", lack)
    if isinstance(feature, datasets.ClassLabel):
        numbers = {label: int(str(label)) for label in numbers}
        classes = tuple(feature.names)
        if not all(0 <= number < len(classes) for number in numbers.values()):
            raise DataError(
                f"{where}: column {column!r} has the label {max(numbers.values())}, but names for only {len(classes)} "
                "classes: use another column by data.label_column, or data.labels false"
            )
    return np.array([numbers[label] for label in labels], np.int64), classes


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """The types of a table's columns; of those that `datasets` does not know, such as maps, what Arrow calls them."""
    found: dict[str, Any] = {}
    for field in schema:
        try:
            found |= datasets.Features.from_arrow_schema(pa.schema([field], schema.metadata))
        except Exception:  # of columns of other types, which hold neither pictures nor labels
            found[field.name] = field.type
    return found


def unlike_classes(schemas: Iterable[pa.Schema]) -> list[str]:
    """The columns whose classes one file calls or orders otherwise than another does."""
    names: dict[str, set[tuple[str, ...]]] = {}
    for schema in schemas:
        for column, feature in features_of(schema).items():
            own = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
            names.setdefault(column, set()).add(own)
    return [column for column, found in names.items() if len(found) > 1]
