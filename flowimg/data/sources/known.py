"""Sets known by name: one that comes with scikit-learn, and those that torchvision left in a local folder.

torchvision's files are read here and not by its classes: those import for seconds, and unpickle.
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

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import Listing, Source, listed
from flowimg.data.pictures import Encoded
from flowimg.errors import DataError


def of_arrays(
    pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], labels: Sequence[int], classes: Sequence[str]
) -> Listing:
    """A listing of pictures that are decoded already.

    Args:
        pictures: Each (H, W) or (H, W, 3), uint8.
        labels: Numbers into `classes`, one a picture.
        classes: Names.
    Raises:
        ValueError: If there are not as many labels as pictures, or some are of no class.
    """
    numbers = np.asarray(labels, np.int64)
    if len(numbers) != len(pictures) or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(classes)):
        raise ValueError(f"{len(pictures)} pictures need as many labels below {len(classes)}, not {len(numbers)}")

    def read(rows: NDArray[np.int64]) -> list[Encoded]:
        return [Encoded(_portable(pictures[row])) for row in rows]

    return Listing(len(pictures), read, "picture {}".format, numbers, tuple(classes))


def _portable(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels under the header of a portable anymap, which is all that it takes to make a file of them."""
    height, width = pixels.shape[:2]
    return f"P{5 if pixels.ndim == 2 else 6} {width} {height} 255\n".encode() + pixels.tobytes()


def digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, ten classes; comes with the package, no download.

    Their 17 grey levels 0 .. 16 are spread over 0 .. 255.
    Source: E. Alpaydin, C. Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI repository, CC BY 4.0.
    """
    # the package's own file: it brings pandas and scipy along when it is imported
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    pixels = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return of_arrays(pixels, rows[:, -1].astype(int).tolist(), [str(digit) for digit in range(10)])


NAMED: dict[str, Callable[[], Listing]] = {"digits": digits}
"""Collections that are made here."""


# --- what torchvision left -------------------------------------------------------------------------------------------

GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def _cifar(folder: Path, split: str) -> tuple[list[Path], Callable[[], Listing]]:
    numbers = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}[split]
    files = [folder / name for name in (*numbers, "batches.meta")]

    def make() -> Listing:
        *batches, meta = (_plain(file) for file in files)
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = [label for batch in batches for label in batch["labels"]]
        return of_arrays(pixels, labels, [_text(name) for name in meta["label_names"]])

    return files, make


class _Plain(pickle.Unpickler):
    """Reads arrays, numbers and texts; names of anything else, which could be code, are refused."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no data")
        return super().find_class(module, name)


def _plain(file: Path) -> dict[str, Any]:
    """The arrays and texts of a batch of CIFAR-10, which its authors pickled."""
    found = _Plain(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    return {_text(name): value for name, value in found.items()}


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _fashion(folder: Path, split: str) -> tuple[list[Path], Callable[[], Listing]]:
    opening = {"train": "train", "test": "t10k"}[split]
    names = [f"{opening}-images-idx3-ubyte", f"{opening}-labels-idx1-ubyte"]
    files = [next((folder / f"raw/{name}{end}" for end in ("", ".gz") if (folder / f"raw/{name}{end}").exists()),
                  folder / "raw" / name) for name in names]  # fmt: skip
    return files, lambda: of_arrays(_idx(files[0]), _idx(files[1]).tolist(), GARMENTS)


def _idx(file: Path) -> NDArray[np.uint8]:
    """An array of bytes under a header: two zeros, 8 for bytes, the number of sides, and each side."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    sides = content[3]
    shape = np.frombuffer(content, ">i4", sides, 4)
    if content[:3] != b"\0\0\x08":
        raise ValueError("it is no array of bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * sides).reshape(shape)


def _pets(folder: Path, split: str) -> tuple[list[Path], Callable[[], Listing]]:
    told = folder / "annotations" / {"train": "trainval.txt", "test": "test.txt"}[split]

    def make() -> Listing:
        rows = [line.split() for line in told.read_text().splitlines() if line.strip() and not line.startswith("#")]
        files = [str(folder / "images" / f"{Path(name).name}.jpg") for name, *_ in rows]
        numbers = np.array([int(number) - 1 for _, number, *_ in rows], np.int64)
        kinds = {int(number) - 1: name.rpartition("_")[0].replace("_", " ") for name, number, *_ in rows}
        classes = tuple(kinds.get(number, str(number)) for number in range(max(kinds, default=-1) + 1))
        stamps = np.array([_stamps(Path(file)) for file in files], np.int64).reshape(-1, 3)
        wrong = {row: "the file is not there" for row, stamp in enumerate(stamps.tolist()) if stamp == [0, 0, 0]}
        return Listing(
            count=len(files),
            read=lambda some: [Encoded(path=files[row]) for row in some],
            name=files.__getitem__,
            labels=numbers,
            classes=classes,
            bytes=stamps[:, 0],
            stamps=stamps,
            wrong=wrong,
            signature=name_of(numbers, classes, files, stamps),
        )

    return [told, folder / "images"], make


def _stamps(file: Path) -> tuple[int, int, int]:
    try:
        return stamp_of(file.stat())
    except OSError:
        return (0, 0, 0)


TORCHVISION: dict[str, tuple[str, Callable[[Path, str], tuple[list[Path], Callable[[], Listing]]]]] = {
    "CIFAR10": ("cifar-10-batches-py", _cifar),
    "FashionMNIST": ("FashionMNIST", _fashion),
    "OxfordIIITPet": ("oxford-iiit-pet", _pets),
}
"""Sets as torchvision downloads them: their folder below data.root, and how they are read."""


def torchvision_set(where: str, name: str, root: str, split: str) -> Source:
    """A set that torchvision downloaded.

    Raises:
        DataError: If it is not in its folder, or has no such split.
    """
    below, opener = TORCHVISION[name]
    folder = Path(root).expanduser() / below
    if split not in ("train", "test"):
        raise DataError(f"{where} has no split {split!r}: data.split may be train, test")
    files, make = opener(folder, split)
    if gone := [file for file in files if not file.exists()]:
        raise DataError(
            f"{where} is a set of torchvision, and there is no {gone[0]}: name the folder it lies in by data.root, or "
            f"fetch it with torchvision.datasets.{name}({root!r}, download=True)"
        )
    # of pets the pictures are files of their own, and their listing knows how they are
    signature = None if opener is _pets else name_of(np.array([_stamps(file) for file in files], np.int64))
    return Source(f"torchvision's {name} in {folder}", where, signature, partial(_made, where, make))


def _made(where: str, make: Callable[[], Listing]) -> Listing:
    try:
        return make()
    except Exception as error:  # files of strangers: any of a dozen errors
        raise DataError(f"{where} cannot be read: {error}; fetch it again") from None


# --- what means nothing ----------------------------------------------------------------------------------------------


NOT_ON_HUB = "no such dataset on the hub (or you must log in: `hf auth login`)"
NO_HUB = "the hub, which cannot be reached: check the network, or name a local copy"


def missing(source: str, last: str) -> DataError:
    """That a name means nothing, and everything that it was tried as."""
    names = [*NAMED, *TORCHVISION]
    near = get_close_matches(source.lower(), [name.lower() for name in names], n=1)
    hint = f"did you mean {next(name for name in names if name.lower() == near[0])!r}? " if near else ""
    return DataError(
        f"data.source {source} means nothing here: {hint}tried were a set known by name ({listed(names)}), a file or "
        f"folder of this name in {os.getcwd()}, tar shards, and {last}"
    )
