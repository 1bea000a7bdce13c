"""Sets known by name: one that comes with scikit-learn, and those that torchvision downloaded to a local folder.

torchvision's files are read here and not by its classes, which take seconds to import, and unpickle.
"""

import gzip
import io
import os
import pickle
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowimg.data.cache import NO_STAMP, name_of, stamp_of
from flowimg.data.listing import Ints, Listing, Request, Source, check_split, listed, of_files
from flowimg.data.pictures import Encoded
from flowimg.data.sources.letters import LETTERS, letter_pictures
from flowimg.errors import DataError
from flowimg.names import on_disk, one_line


def of_arrays(
    pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], labels: Sequence[int], classes: Sequence[str]
) -> Listing:
    """A listing of pictures that are already decoded.

    Args:
        pictures: Each (H, W) or (H, W, 3), uint8.
        labels: One for each picture, an index of `classes`.
        classes: Names.

    Raises:
        ValueError: If the numbers of labels and pictures differ, or a label is not an index of `classes`.
    """
    numbers, count = np.asarray(labels, np.int64), len(pictures)
    if len(numbers) != count or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(classes)):
        raise ValueError(f"{count} pictures need as many labels from 0 to {len(classes) - 1}, not {len(numbers)}")

    def read(rows: Ints) -> list[Encoded]:
        return [Encoded(_portable(pictures[row])) for row in rows]

    signature = name_of(numbers, tuple(classes), [picture.shape for picture in pictures], *pictures)
    return Listing(count, read, "picture {}".format, numbers, tuple(classes), signature=signature)


def _portable(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels as a file in PGM or PPM format, which is a header and the bytes."""
    height, width = pixels.shape[:2]
    return f"P{5 if pixels.ndim == 2 else 6} {width} {height} 255\n".encode() + pixels.tobytes()


def digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, ten classes; part of the package, so nothing is downloaded.

    Their 17 grey levels 0 .. 16 are scaled to 0 .. 255.
    Source: E. Alpaydin, C. Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI repository, CC BY 4.0.
    """
    # read from the package's own file, because importing the package imports pandas and scipy
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    pixels = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return of_arrays(pixels, rows[:, -1].astype(int).tolist(), [str(digit) for digit in range(10)])


def letters() -> Listing:
    """The capital letters in thirty typefaces that come with matplotlib, 16 x 16 grey, 26 classes: see `letters`."""
    pictures, numbers = letter_pictures()
    return of_arrays(pictures, numbers, LETTERS)


NAMED: dict[str, Callable[[], Listing]] = {"digits": digits, "letters": letters}
"""Sets that need no file of the user."""


# --- sets that torchvision downloaded --------------------------------------------------------------------------------

GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def _cifar(folder: Path, split: str) -> tuple[list[Path], Callable[[], Listing]]:
    numbers = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}[split]
    files = [folder / name for name in (*numbers, "batches.meta")]

    def listing() -> Listing:
        *batches, meta = (_unpickle(file) for file in files)
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = [label for batch in batches for label in batch["labels"]]
        return of_arrays(pixels, labels, [_text(name) for name in meta["label_names"]])

    return files, listing


class _SafeUnpickler(pickle.Unpickler):
    """Reads arrays, numbers and texts, and refuses the names of anything else, which could be code."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not data")
        return super().find_class(module, name)


def _unpickle(file: Path) -> dict[str, Any]:
    """The arrays and texts of a batch of CIFAR-10, which its authors pickled."""
    found = _SafeUnpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    return {_text(name): value for name, value in found.items()}


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _fashion(folder: Path, split: str) -> tuple[list[Path], Callable[[], Listing]]:
    opening = {"train": "train", "test": "t10k"}[split]
    files = []
    for name in (f"{opening}-images-idx3-ubyte", f"{opening}-labels-idx1-ubyte"):
        packed = folder / f"raw/{name}.gz"
        files.append(packed if packed.exists() and not packed.with_suffix("").exists() else packed.with_suffix(""))
    return files, lambda: of_arrays(_idx(files[0]), _idx(files[1]).tolist(), GARMENTS)


def _idx(file: Path) -> NDArray[np.uint8]:
    """An array of bytes after a header: two zeros, 8 for bytes, the number of dimensions, and the size of each."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    if content[:3] != b"\0\0\x08":
        raise ValueError("it is not an array of bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _pets(folder: Path, split: str) -> tuple[list[Path], Callable[[], Listing]]:
    annotations = folder / "annotations" / {"train": "trainval.txt", "test": "test.txt"}[split]

    def listing() -> Listing:
        lines = annotations.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        files = [str(folder / "images" / f"{Path(name).name}.jpg") for name, *_ in rows]
        numbers = np.array([int(number) - 1 for _, number, *_ in rows], np.int64)
        breeds = {int(number) - 1: name.rpartition("_")[0].replace("_", " ") for name, number, *_ in rows}
        classes = tuple(breeds.get(number, str(number)) for number in range(max(breeds, default=-1) + 1))
        stamps = [stamp_of(file) for file in files]
        wrong = {row: "the file does not exist" for row, stamp in enumerate(stamps) if stamp == NO_STAMP}
        signature = name_of(numbers, classes, files, np.array(stamps, np.int64))
        more = {"labels": numbers, "classes": classes, "wrong": wrong, "signature": signature}
        return of_files(files.__getitem__, stamps, **more)

    return [annotations, folder / "images"], listing


TORCHVISION: dict[str, tuple[str, Callable[[Path, str], tuple[list[Path], Callable[[], Listing]]]]] = {
    "CIFAR10": ("cifar-10-batches-py", _cifar),
    "FashionMNIST": ("FashionMNIST", _fashion),
    "OxfordIIITPet": ("oxford-iiit-pet", _pets),
}
"""Sets as torchvision downloads them: their folder below data.root, and how they are read."""


def torchvision_set(where: str, name: str, request: Request) -> Source:
    """A set that torchvision downloaded.

    Raises:
        DataError: If it is not in its folder, or has no such split.
    """
    below, opener = TORCHVISION[name]
    folder = on_disk(request.root) / below
    check_split(where, request.split, ("train", "test"))
    files, listing = opener(folder, request.split)
    if missing_file := next((file for file in files if not file.exists()), None):
        raise DataError(
            f"{where} is a set of torchvision, and there is no {one_line(str(missing_file))}: name the "
            f"folder that contains it by data.root, or download it with "
            f"torchvision.datasets.{name}({request.root!r}, download=True)"
        )
    # pictures of pets are files of their own, whose stamps are in the signature of the listing
    signature = None if opener is _pets else name_of(np.array([stamp_of(file) for file in files], np.int64))
    kind = f"torchvision's {name} in {one_line(str(folder))}"
    return Source(kind, where, signature, partial(_listing, where, listing))


def _listing(where: str, listing: Callable[[], Listing]) -> Listing:
    try:
        return listing()
    except Exception as error:  # a damaged file raises almost anything
        raise DataError(f"{where} cannot be read: {error}; download it again") from None


# --- unknown names ---------------------------------------------------------------------------------------------------


NOT_ON_HUB = "no such dataset on the hub (or you must log in: `hf auth login`)"
NO_HUB = "the hub, which cannot be reached: check the network, or name a local copy"


def missing(source: str, hub: str) -> DataError:
    """The error for an unknown name, with everything that was tried; `hub` says why it is not a dataset of the hub."""
    names = {name.lower(): name for name in (*NAMED, *TORCHVISION)}
    near = get_close_matches(source.lower(), names, n=1)
    hint = f"did you mean {names[near[0]]!r}? " if near else ""
    return DataError(
        f"data.source {one_line(source)} is unknown: {hint}tried were a set known by name ({listed(names.values())}), "
        f"a file or folder of this name in {one_line(os.getcwd())}, tar shards, and {hub}"
    )
