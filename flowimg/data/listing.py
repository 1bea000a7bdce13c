"""What every kind of source is turned into: the encoded pictures of one split, in a fixed order, with their labels."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.arrays import READING, Reading
from flowimg.data.cache import Stamp
from flowimg.data.pictures import Encoded
from flowimg.errors import DataError
from flowimg.names import one_line
from flowimg.spaces.depth import BYTES, Depth

Ints = NDArray[np.int64]
Shape = tuple[int, int, int]
"""Channels, height and width."""

CHUNK = 64
"""Most pictures in a chunk, which is read and processed at once."""
CHUNK_BYTES = 2**20
"""About the most bytes in a chunk."""
USUAL = ("label", "labels", "class")
"""Names of columns and arrays that are taken for labels."""


@dataclass(frozen=True)
class Request:
    """Which pictures of a source a run wants, and what they should become.

    Args:
        subset: The configuration of a hub dataset that has several.
        root: The folder that contains torchvision's sets.
        split: Which split.
        image_column: The column (in tar shards, the file ending) of pictures; None for the only one.
        label_column: The column (in tar shards, the file ending) of labels; None for the usual one, if any.
        labels: Use the labels, if there are any.
        classes: Use only pictures of these classes; empty means all.
        first: Use only the first N good pictures of these.
        shape: Height and width after resizing; None requires all pictures to have the same size.
        shapes: Heights and widths of several shapes, each for the pictures that are nearest to it; empty for one.
        channels: "grey", "rgb", "rgba", "auto" (grey if no picture has colour; arrays as they are), or "all": every
            channel, and every page of a TIFF, as they are.
        depth: How their numbers are stored.
        background: The colour under transparent pixels; a colour turns transparent grey pictures into colour ones.
        max_bad: Largest share of broken pictures.
    """

    subset: str | None = None
    root: str = "data"
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    labels: bool = True
    classes: Sequence[str] = ()
    first: int | None = None
    shape: tuple[int, int] | None = None
    shapes: Sequence[tuple[int, int]] = ()
    channels: str = "auto"
    depth: Depth = BYTES
    background: Sequence[int] = (255, 255, 255)
    max_bad: float = 0.01

    @property
    def reads_labels(self) -> bool:
        """Whether labels are read: to train on them, or to choose pictures by class."""
        return self.labels or bool(self.classes)

    @property
    def key(self) -> str:
        """Everything here that changes a scan of the source."""
        columns = {"split": self.split, "image_column": self.image_column, "label_column": self.label_column}
        # what reads more than 8 bits, or more channels than Pillow, finds other modes
        read = {} if self.reading == READING else {"reading": self.reading}
        named = {"labels": self.reads_labels, "named": bool(self.classes)}
        return repr((self.subset, self.root, columns | named | read))

    @property
    def reading(self) -> Reading:
        """How files are read."""
        return Reading(self.depth, self.channels == "all")


@dataclass(frozen=True)
class Listing:
    """The pictures of a split.

    `read(rows)` returns them encoded; `name(row)` identifies one for the user; `labels` (N,), int64, index `classes`,
    or are None; `bytes` (N,) are sizes, if known without reading. `stamps` (N, 3) identify the contents of files (see
    `cache.stamp_of`). `wrong` maps rows that cannot be pictures (a pipe, a dangling link) to the reason; `origin` says
    where pictures and labels come from; `signature` is one that was unknown before listing; `unused` names what is not
    used although it looks meant, with what would use it.
    """

    count: int
    read: Callable[[Ints], list[Encoded]]
    name: Callable[[int], str]
    labels: Ints | None = None
    classes: tuple[str, ...] = ()
    bytes: Ints | None = None
    stamps: Ints | None = None
    wrong: Mapping[int, str] = field(default_factory=dict)
    origin: tuple[str, str] = ("", "")
    signature: str | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A recognised source: its kind in words, its name in errors, its signature, and how to list it (may be slow).

    `signature` changes whenever a file of the source does; None if only the pictures themselves can tell.
    """

    kind: str
    where: str
    signature: str | None
    list: Callable[[], Listing]


def of_files(name: Callable[[int], str], stamps: Sequence[Stamp], **more: Any) -> Listing:
    """A listing of files: the path of a row, the stamps of all, and further fields of `Listing`."""
    array = np.array(stamps, np.int64).reshape(-1, 3)

    def read(rows: Ints) -> list[Encoded]:
        return [Encoded(path=name(row)) for row in rows]

    return Listing(len(stamps), read, name, bytes=array[:, 0], stamps=array, **more)


class Opened(NamedTuple):
    """An open shard: the encoded picture of a row, its name, and the labels of all rows."""

    picture: Callable[[int], Encoded]
    name: Callable[[int], str]
    labels: Ints | None


@dataclass(frozen=True)
class Stream:
    """Shards: a description, their sample counts (S,), the class names, how to open one, and a fingerprint of all.

    `absent` are the classes, by number, that no sample has; `unused` is as in `Listing`.
    """

    where: str
    story: str
    counts: Ints
    classes: tuple[str, ...]
    open: Callable[[int], Opened]
    fingerprint: str
    absent: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()


def chunks(rows: Ints, sizes: Ints | None) -> list[Ints]:
    """Rows cut into chunks of at most `CHUNK` pictures and about `CHUNK_BYTES`, in order."""
    if not len(rows):
        return []
    cuts = np.arange(len(rows)) // CHUNK
    if sizes is not None:
        # a photo of ten megabytes is a chunk of its own; thousands of small files are 64 a chunk
        cuts = cuts + np.cumsum(sizes[rows]) // CHUNK_BYTES
    return np.split(rows, np.flatnonzero(np.diff(cuts)) + 1)


def listed(names: Any) -> str:
    """Names joined for a sentence: the first twenty, and the number of the others."""
    names = [one_line(str(name)) for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"


def several(names: Sequence[str]) -> str:
    """The first of some names, and the number of the others."""
    return one_line(names[0]) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def check_split(where: str, split: str, splits: Collection[str] = ("train",)) -> None:
    """Refuse a split that the source does not have.

    Raises:
        DataError: With the splits that it has.
    """
    if split not in splits:
        raise DataError(f"{where} has no split {split!r}: data.split may be {listed(splits)}")


Label = str | float | None
"""A label as it is read: its text; None for no label; a number with a fraction, which is no class."""


def label_of(value: Any) -> Label:
    """A label as it is meant, in every kind of source.

    2, 2.0 and "2.0" are "2"; -1, NaN, an empty text and whatever is neither text nor number mean None; 0.5 and "0.5"
    are 0.5.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if not isinstance(value, int | str):
        return None
    text = str(value).encode("utf-8", "backslashreplace").decode()  # JSON may hold half a letter
    bare = text.strip()
    if number := re.fullmatch(r"(-?[0-9]+)(?:\.([0-9]+))?", bare):
        if (number[2] or "").strip("0"):
            return float(bare)
        text = bare = number[1]
    return None if bare.lower() in ("", "-1", "nan") else text


def fraction_in(labels: Iterable[Label]) -> float | None:
    """The first of some labels that is a number with a fraction."""
    return next((label for label in labels if isinstance(label, float)), None)


def classes_of(where: str, labels: Collection[Label], what: str, lack: str) -> tuple[dict[Label, int], tuple[str, ...]]:
    """The number of each label, and the class names: in order of value if all are whole numbers, else of the text.

    Args:
        where: Names the source in errors.
        labels: As `label_of` reads them.
        what: Where they are from.
        lack: What is said if one of them is None.

    Raises:
        DataError: If a label is none, or a fraction.
    """
    mend = "use another split, another data.label_column, or data.labels false"
    if None in labels:
        raise DataError(f"{where}: {lack}: {mend}")
    if (fraction := fraction_in(labels)) is not None:
        raise DataError(f"{where}: {what} holds {fraction}, which is no class: {mend}")
    known = set(map(str, labels))
    whole = all(re.fullmatch("0|-?[1-9][0-9]{0,17}", text) for text in known)
    classes = tuple(sorted(known, key=int if whole else str))
    return {label: number for number, label in enumerate(classes)}, classes


def absent(labels: Ints | None, classes: Sequence[str]) -> tuple[int, ...]:
    """The classes, by number, that none of these labels is of."""
    return () if labels is None else tuple(np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist())
