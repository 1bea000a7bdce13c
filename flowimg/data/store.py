"""Images decoded once: one array in a file of the cache, mapped into memory, and the labels that go with it.

    CACHE/stores/NAME/pixels      N x C x H x W numbers of the depth of the pictures
    CACHE/stores/NAME/labels.npy  N numbers, where there are classes
    CACHE/stores/NAME/store.json  shape, type, classes, fingerprint, what was left out, version

NAME is made of the hashes of all files, the labels, and how pictures are brought to their shape: the same pictures are
found again wherever they lie, and other ones never are. The file is mapped copy-on-write: no change of the array
reaches it.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.data.arrays import READING, Reading
from flowimg.data.cache import discard, make_folder, name_of
from flowimg.data.decode import Decoding, decode_into
from flowimg.data.find import Bad, Found, refuse_many
from flowimg.data.listing import Shape, chunks
from flowimg.data.order import permute
from flowimg.data.readers import versions
from flowimg.data.workers import spread
from flowimg.errors import CacheError, DataError
from flowimg.flow.randomness import key
from flowimg.machine.cores import cores
from flowimg.names import one_line

VERSION = 2
"""Rises when the same settings give other pixels."""
BLOCK = 2**24
"""Bytes moved at a time."""
AT_ONCE = 0.5
"""Share of the free memory up to which a store is read ahead as soon as it is opened."""


class Images(NamedTuple):
    """A data set: pixels (N, C, H, W), as they are stored; labels (N,), int64, or None; the names of the classes."""

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]

    def take(self, index: Tensor) -> "Images":
        """The pictures at these indices, in this order."""
        labels = None if self.labels is None else self.labels[index]
        # plain indexing is twenty times slower on bytes
        return Images(self.pixels.index_select(0, index), labels, self.classes)

    def to(self, device: torch.device) -> "Images":
        """The same on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels, self.classes)


class Stored(NamedTuple):
    """Decoded pictures, the folder they lie in, their fingerprint, and those that turned out bad."""

    images: Images
    folder: Path
    fingerprint: str
    bad: tuple[Bad, ...]


def fingerprint(images: Images) -> str:
    """A name of these very pixels and labels: the first 16 digits of a SHA-256."""
    found = hashlib.sha256(repr((tuple(images.pixels.shape), images.classes)).encode())
    for tensor in (images.pixels, images.labels):
        if tensor is not None:
            found.update(tensor.cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


def hold_out(n: int, count: int) -> Tensor:
    """The rows of `count` of n pictures to hold out, in order; the same whatever the seed of the run."""
    order = permute(np.arange(count, dtype=np.uint64), n, key("held out"))
    return torch.from_numpy(np.sort(order.astype(np.int64)))


def store(
    found: Found,
    cache: Path,
    resize: str = "crop",
    background: Sequence[int] = (255, 255, 255),
    cut_from: tuple[int, int] | None = None,
    reading: Reading = READING,
    max_bad: float = 0.01,
    workers: int | None = None,
    bar: bool = False,
) -> Stored:
    """Decode what was found, or find that it was decoded before.

    Args:
        found: What `find` found.
        cache: The cache folder.
        resize: How a picture comes to its shape; see `pictures.to_shape`.
        background: The colour under transparent pixels and around padded pictures.
        cut_from: Height and width to keep, where more are wanted than `found.shape` has, to cut windows from.
        reading: The depth of the pictures, and whether every channel and page of a file is wanted.
        max_bad: The share of pictures that may be bad, those that `find` left out among them.
        workers: Processes to decode in; None takes all cores.
        bar: Show progress on a terminal.
    Raises:
        DataError: If too many pictures are broken, or they change while they are read.
        CacheError: If the cache cannot be written.
        WorkerError: If a process that decodes died.
    """
    channels, *sides = found.shape
    height, width = cut_from or sides
    shape = (channels, height, width)
    name = name_of(VERSION, PIL.__version__, versions(), shape, resize, tuple(background), found.hashes,
                   "none" if found.labels is None else found.labels, found.classes,
                   *(() if reading == READING else (reading,)))  # fmt: skip
    folder = cache / "stores" / name
    kept = _read(folder)
    if kept is None:
        how = Decoding(channels, (height, width), resize, tuple(background), reading)
        need = len(found.rows) * how.bytes
        make_folder(folder, need, partial(_fill, found, shape, how, max_bad, workers or cores(), bar))
        kept = _read(folder)
        if kept is None:
            raise DataError(
                f"the decoded pictures in {folder} vanished right after they were written: is something clearing it?"
            )
    refuse_many(found.where, (*found.bad, *kept.bad), len(found.rows) + len(found.bad), max_bad)
    return kept


def _read(folder: Path) -> Stored | None:
    """The store in a folder, if it is there and whole; one that is not is removed, to be made again."""
    told = None
    try:
        told = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        shape, kind = tuple(told["shape"]), np.dtype(told.get("type", "uint8"))
        if os.path.getsize(folder / "pixels") != int(np.prod(shape)) * kind.itemsize:
            raise ValueError("cut off")
        mapped = np.memmap(folder / "pixels", kind, "c", shape=shape)
        if hasattr(mmap, "MADV_WILLNEED") and mapped.nbytes < psutil.virtual_memory().available * AT_ONCE:
            mapped._mmap.madvise(mmap.MADV_WILLNEED)  # type: ignore[attr-defined]  # in one go, not a page at a time
        labels = torch.from_numpy(np.load(folder / "labels.npy", allow_pickle=False)) if told["labels"] else None
        images = Images(torch.from_numpy(mapped), labels, tuple(told["classes"]))
        return Stored(images, folder, told["fingerprint"], tuple(Bad(*bad) for bad in told["bad"]))
    except (FileNotFoundError, NotADirectoryError):
        # one that was renamed into place a moment ago is whole
        if told is not None or (folder.exists() and not (folder / "store.json").exists()):
            discard(folder)
        return None
    except (ValueError, KeyError, TypeError, EOFError):
        discard(folder)
        return None
    except OSError as error:
        raise CacheError(f"the decoded pictures in {folder} cannot be read: {error.strerror or error}") from None


def _fill(found: Found, shape: Shape, how: Decoding, max_bad: float, workers: int, bar: bool, folder: Path) -> None:
    """Decode everything into the files of a store."""
    listing = found.open()
    rows, total = found.rows, len(found.rows) + len(found.bad)
    story = f"retry once nothing writes to {found.where.removeprefix('data.source ')}"
    file = folder / "pixels"
    file.touch()
    places = np.arange(len(rows))
    parts = chunks(places, None if listing.bytes is None else listing.bytes[rows])
    bad: dict[int, Bad] = {}
    with tqdm(total=len(rows), unit="picture", desc="decoding", leave=False, disable=None if bar else True) as progress:
        tasks = ((int(part[0]), listing.read(rows[part])) for part in parts)
        for part, told in zip(parts, spread(partial(decode_into, str(file), how), tasks, workers), strict=True):
            for place, (hashed, wrong, fleeting) in zip(part.tolist(), told, strict=True):
                told_of = wrong or hashed != found.hashes[place].tobytes()
                name = one_line(listing.name(int(rows[place]))) if told_of else ""
                if fleeting:  # a store of this name would lack it for ever
                    raise DataError(f"{name} could not be read now ({wrong}): {story}")
                if wrong is not None:
                    bad[place] = Bad(name, wrong)
                    if len(found.bad) + len(bad) > max_bad * total:
                        refuse_many(found.where, [*found.bad, *bad.values()], total, max_bad)
                elif name:
                    found.scan.unlink(missing_ok=True)  # it is of another file
                    raise DataError(f"{name} changed since it was scanned: {story}")
            progress.update(len(part))
    good = np.setdiff1d(places, list(bad))
    if len(rows) and not len(good):  # of a small bucket
        name, reason = next(iter(bad.values()))
        raise DataError(
            f"{found.where}: no picture for the shape {shape[1]} x {shape[2]} can be decoded, such as {name} "
            f"({reason}): mend them, or leave out the ratio of this bucket"
        )
    _close_ranks(file, good, how.bytes)
    labels = None if found.labels is None else found.labels[good]
    if labels is not None:
        np.save(folder / "labels.npy", labels, allow_pickle=False)
    whole = (len(good), *shape)
    kind = how.reading.depth.type
    pixels = torch.from_numpy(np.memmap(file, kind, "c", shape=whole)) if len(good) else torch.empty(whole)
    images = Images(pixels, None if labels is None else torch.from_numpy(labels), found.classes)
    facts = {
        "version": VERSION, "shape": whole, "type": kind, "labels": labels is not None, "classes": found.classes,
        "fingerprint": fingerprint(images), "bad": list(bad.values()), "source": found.story, "resize": how._asdict(),
    }  # fmt: skip
    (folder / "store.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _close_ranks(file: Path, good: np.ndarray, size: int) -> None:  # type: ignore[type-arg]
    """Move the good pictures together, over the bad ones."""
    with file.open("r+b") as opened:
        first = int(np.argmax(good != np.arange(len(good)))) if (good != np.arange(len(good))).any() else len(good)
        many = max(1, BLOCK // size)
        for start in range(first, len(good), many):
            some = good[start : start + many]
            opened.seek(int(some[0]) * size)
            run = np.frombuffer(opened.read(int(some[-1] - some[0] + 1) * size), np.uint8).reshape(-1, size)
            opened.seek(start * size)
            opened.write(run[some - some[0]].tobytes())
        opened.truncate(len(good) * size)
