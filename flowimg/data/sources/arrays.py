"""Files of NumPy: x.npy is one array of pictures; x.npz holds several arrays, of which one is the pictures, one labels.

    x.npy                 (N, H, W), (N, H, W, C) or (N, C, H, W); mapped into memory, so that only used rows are read
    x.npz                 an array of that form, and `labels`, one for each picture
    x.npz of splits       train_images, train_labels, val_images, ...: the word of a split before or after the name

Each picture is handed on as the bytes of a .npy file of its own. Nothing is unpickled.
"""

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import (
    USUAL,
    Ints,
    Listing,
    Request,
    Source,
    classes_of,
    fraction_in,
    label_of,
    listed,
    several,
)
from flowimg.data.pictures import Encoded, first_line
from flowimg.data.sources.splits import SPLITS, is_split, named
from flowimg.errors import DataError
from flowimg.names import one_line, word

ARRAY_FILES = {".npy": "an npy file", ".npz": "an npz file"}
"""Endings of files that are read here, and what they are called."""
FORMS = "(N, H, W), (N, H, W, C) or (N, C, H, W)"
NUMBERS = (np.bool_, np.integer, np.floating)
SEEDS = "seeds"
"""An array of samples that we wrote; its numbers are no classes."""

Result = TypeVar("Result")


class Array(NamedTuple):
    """An array of a file: its name, the split that this names ("" if none), the rest of it, its shape and type."""

    name: str
    split: str
    rest: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype}"

    def is_called(self, name: str | None) -> bool:
        """Whether a setting that is this name means the array; the word of a split may be left out. None means any."""
        return name in (None, self.name, self.rest)

    @property
    def lack(self) -> str | None:
        """Why it does not hold pictures."""
        if self.dtype.hasobject:
            return "holds Python objects, which are not read: save it as an array of numbers"
        if not issubclass(self.dtype.type, NUMBERS):
            return f"holds {self.dtype}, and pictures are numbers"
        if len(self.shape) not in (3, 4):
            return f"has the shape {self.shape}, and pictures are of shape {FORMS}: reshape it"
        return None

    def fits(self, count: int) -> bool:
        """Whether it holds a number or a text for each of N pictures."""
        return issubclass(self.dtype.type, (*NUMBERS, np.str_, np.bytes_)) and self.shape in ((count,), (count, 1))


def as_npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()


def array_file(where: str, path: Path, request: Request) -> Source:
    """The pictures of a .npy or .npz file."""
    ending = path.suffix.lower()
    listing = partial(_npy if ending == ".npy" else _npz, where, path, request)
    return Source(ARRAY_FILES[ending], where, name_of(stamp_of(path)), listing)


def _npy(where: str, path: Path, request: Request) -> Listing:
    named(where, request.split, ["train"])
    if request.label_column is not None and request.reads_labels:
        raise DataError(
            f"{where} is one array, without {request.label_column!r} (data.label_column): save pictures and labels "
            "together by numpy.savez"
        )

    def opened() -> tuple[Array, NDArray[Any] | None]:
        with path.open("rb") as file:
            array = _header("", file)
        return array, None if array.lack else np.load(path, mmap_mode="r", allow_pickle=False)

    array, pixels = _tried(where, opened)
    if array.lack or pixels is None:
        raise DataError(f"{where} {array.lack}")
    return _rows(array, lambda: pixels, lambda row: f"{path}[{row}]")


def _npz(where: str, path: Path, request: Request) -> Listing:
    arrays = _tried(where, partial(_headers, path))
    image, pool = _pictures(where, arrays, request)
    label, unused = _label_array(where, pool, image.shape[0], request)
    more: dict[str, Any] = {"origin": (f"array {one_line(image.name)}", "")}
    if label is not None:
        cells = _tried(where, partial(_member, path, label.name))
        numbers, classes, broken = _numbered(where, label.name, cells.reshape(-1), request.label_column is not None)
        if broken is None:
            more |= {"labels": numbers, "classes": classes}
            more["origin"] = (more["origin"][0], f"array {one_line(label.name)}")
        else:
            unused = [f"the array {one_line(label.name)}: {broken} is no class"]
    # most members are compressed, so that none of its rows is read without those before it
    pixels = cache(partial(_tried, where, partial(_member, path, image.name)))
    return _rows(image, pixels, lambda row: f"{path}:{image.name}[{row}]", unused=tuple(unused), **more)


def _rows(array: Array, pixels: Callable[[], NDArray[Any]], name: Callable[[int], str], **more: Any) -> Listing:
    """A listing of the rows of an array, which is read when the first of them is."""

    def read(rows: Ints) -> list[Encoded]:
        return [Encoded(as_npy(pixels()[row])) for row in rows]

    count, *shape = array.shape
    sizes = np.full(count, int(np.prod(shape)) * array.dtype.itemsize, np.int64)
    return Listing(count, read, name, bytes=sizes, **more)


def _tried(where: str, do: Callable[[], Result]) -> Result:
    """What reading a file returns, or the error that it cannot be read."""
    try:
        return do()
    except Exception as error:  # damaged files raise almost anything
        raise DataError(f"{where} cannot be read as arrays of NumPy ({first_line(error)}): save it again") from None


def _headers(path: Path) -> list[Array]:
    """The arrays of a .npz file, of which only the headers are read."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    found.append(_header(name.removesuffix(".npy"), file))  # type: ignore[arg-type]
    return found


def _header(name: str, file: BinaryIO) -> Array:
    """An array by its opening."""
    version = np.lib.format.read_magic(file)
    # 3.0 is 2.0 with names of fields in UTF-8, and arrays of fields are no pictures
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return Array(name, *split_in(name), shape, dtype)


def _member(path: Path, name: str) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as stored:
        return stored[name]


def split_in(name: str) -> tuple[str, str]:
    """The word that names a split at the start or the end of a name, in lower case, and the rest; "" if there is none.

    train_images is ("train", "images"), x_test ("test", "x"), images ("", "images").
    """
    if is_split(name):
        return name.lower(), ""
    before = re.fullmatch(r"([a-zA-Z]+)[^a-zA-Z0-9]+(.+)", name)
    after = re.fullmatch(r"(.+?)[^a-zA-Z0-9]+([a-zA-Z]+)", name)
    if before and is_split(before[1]):
        return before[1].lower(), before[2]
    if after and is_split(after[2]):
        return after[2].lower(), after[1]
    return "", name


def _pictures(where: str, arrays: list[Array], request: Request) -> tuple[Array, list[Array]]:
    """The array of pictures of a split, and all arrays that may belong to that split."""
    column, split = request.image_column, request.split
    called = _called(where, arrays, column, "data.image_column")
    found = [array for array in called if array.lack is None]
    if not found:
        if column is not None:
            raise DataError(f"{where}: array {column!r} (data.image_column) {called[0].lack}")
        raise DataError(f"{where} has no array of pictures, of shape {FORMS}: its arrays are {listed(arrays)}")
    if all(array.split for array in found):
        chosen = named(where, split, [array.split for array in found])
        found = [array for array in found if array.split in chosen]
        pool = [array for array in arrays if array.split in chosen]
    else:
        named(where, split, ["train"])
        pool = [array for array in arrays if SPLITS.get(array.split, "train") == "train"]
    return _only(where, found, "pictures", "data.image_column"), pool


def _label_array(where: str, pool: list[Array], count: int, request: Request) -> tuple[Array | None, list[str]]:
    """The array of labels of N pictures: the one requested, or the only one of a usual name; or remarks on others."""
    column = request.label_column
    if column is not None:
        found = _called(where, pool, column, "data.label_column")
        if request.reads_labels and not any(array.fits(count) for array in found):
            raise DataError(
                f"{where}: array {column!r} (data.label_column) holds no labels: {count:,} pictures need a number or a "
                f"text each, and it has the shape {found[0].shape} and the type {found[0].dtype}"
            )
    if not request.reads_labels:
        return None, []
    usual = [array for array in pool if array.is_called(column) and (column or array.rest.lower() in USUAL)]
    if found := [array for array in usual if array.fits(count)]:
        return _only(where, found, "labels", "data.label_column"), []
    unused = [f"the array {one_line(str(array))}: not one label for each of {count:,} pictures" for array in usual]
    if others := [array.name for array in pool if array.fits(count) and array.name != SEEDS]:
        unused.append(f"the array {several(others)}: data.label_column {word(others[0])} would make it the classes")
    return None, unused


def _called(where: str, arrays: Sequence[Array], name: str | None, setting: str) -> list[Array]:
    """The arrays of a name: the very one, or those of several splits; all if the name is None."""
    called = [array for array in arrays if array.is_called(name)]
    if name is not None and not called:
        raise DataError(f"{where} has no array {name!r} ({setting}): its arrays are {listed(arrays)}")
    return [array for array in called if array.name == name] or called


def _only(where: str, found: Sequence[Array], what: str, setting: str) -> Array:
    if len(found) > 1:
        names = listed(array.name for array in found)
        raise DataError(f"{where} has {len(found)} arrays of {what}, {names}: name one by {setting}")
    return found[0]


def _numbered(
    where: str, name: str, cells: NDArray[Any], requested: bool
) -> tuple[Ints | None, tuple[str, ...], float | None]:
    """The number of each label, the class names, and the fraction because of which unrequested labels are not read."""
    values, places = np.unique(cells, return_inverse=True)
    if issubclass(values.dtype.type, np.bytes_):
        values = np.char.decode(values, "utf-8", "backslashreplace")
    labels = [label_of(value) for value in values.tolist()]
    if (broken := fraction_in(labels)) is not None and not requested:
        return None, (), broken
    without = [place for place, label in enumerate(labels) if label is None]
    first = int(np.flatnonzero(np.isin(places, without))[0]) if without else 0
    lack = f"picture {first} has no label in array {name!r}"
    numbers, classes = classes_of(where, set(labels), f"array {name!r}", lack)
    return np.array([numbers[label] for label in labels], np.int64)[places], classes, None
