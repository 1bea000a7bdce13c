"""What every kind of source comes to: encoded pictures of one split in a fixed order, with labels, not yet decoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.pictures import Encoded
from flowimg.errors import DataError

CHUNK = 64
"""Pictures read at a time at most,"""
CHUNK_BYTES = 2**20
"""or so many bytes of them, where that is less."""


@dataclass(frozen=True)
class Listing:
    """The pictures of a split.

    `read(rows)` gives them as they are stored; `name(row)` as a person finds one again; `labels` (N,) are int64 or
    None, numbers into `classes`; `bytes` (N,) are sizes where they are known without reading. `stamps` (N, 3) say
    that a file is the one that it was: size, time of its content, time of its entry. `wrong` are rows that are no
    pictures for sure (a pipe, a link to nothing), with the reason; `told` is what there is to say of where pictures and
    labels were found; `signature` is one that could be known only now; `left_alone` lies there and is not read.
    """

    count: int
    read: Callable[[NDArray[np.int64]], list[Encoded]]
    name: Callable[[int], str]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    bytes: NDArray[np.int64] | None = None
    stamps: NDArray[np.int64] | None = None
    wrong: Mapping[int, str] = field(default_factory=dict)
    told: tuple[str, str] = ("", "")
    signature: str | None = None
    left_alone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A source that was recognised: what it is in words, its signature, and its listing, which may take a while.

    `signature` changes whenever a file of the source does; None where only the pictures themselves can tell.
    """

    kind: str
    where: str
    signature: str | None
    list: Callable[[], Listing]


class Opened(NamedTuple):
    """A shard that is open: the picture of a row as it is stored, its name, and the labels of all rows."""

    picture: Callable[[int], Encoded]
    name: Callable[[int], str]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Stream:
    """Shards: their samples (S,), the names of the classes, how to open one, what they are, and their fingerprint."""

    where: str
    story: str
    counts: NDArray[np.int64]
    classes: tuple[str, ...]
    open: Callable[[int], Opened]
    fingerprint: str


def chunks(rows: NDArray[np.int64], sizes: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    """Rows cut into runs of at most `CHUNK` pictures and about `CHUNK_BYTES`, in order."""
    if not len(rows):
        return []
    cuts = np.arange(len(rows)) // CHUNK
    if sizes is not None:
        # a photo of ten megabytes is a run of its own; thousands of small files are 64 a run
        cuts = cuts + np.cumsum(sizes[rows]) // CHUNK_BYTES
    return np.split(rows, np.flatnonzero(np.diff(cuts)) + 1)


def listed(names: Any) -> str:
    """Names for a sentence: the first twenty, and how many more."""
    names = [plain(str(name)) for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"


def only_train(where: str, split: str) -> None:
    """Refuse another split than "train" of what has no splits.

    Raises:
        DataError: If another is asked for.
    """
    if split != "train":
        raise DataError(f"{where} has no split {split!r}: data.split may be train")


def plain(name: str) -> str:
    """A name as it may stand in a line: what cannot be printed, a line break or half a letter, is escaped."""
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def first_line(error: Exception) -> str:
    """An error in a line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def number_labels(values: Sequence[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels of any kind as numbers into their names, which are in order of value."""
    known = sorted(set(values))
    numbers = {value: number for number, value in enumerate(known)}
    return np.array([numbers[value] for value in values], dtype=np.int64), tuple(str(value) for value in known)
