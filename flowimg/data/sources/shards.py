"""Tar shards in the form of WebDataset: files with the same name up to the first dot are one sample, and are adjacent.

    000017.jpg  000017.cls      a picture, and its class as a number or a name
    000018.jpg  000018.json     or in JSON: data.label_column json.KEY

The headers of each shard are read once, for the positions of its pictures, which are stored in the cache. Pictures are
then read straight from their position. Nothing is unpacked, so names in a shard are never paths.
"""

import glob
import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowimg.data.cache import keep_arrays, name_of, pack, read_arrays, stamp_of, unpack
from flowimg.data.listing import (
    Ints,
    Label,
    Listing,
    Request,
    Source,
    classes_of,
    fraction_in,
    label_of,
    several,
)
from flowimg.data.pictures import Encoded, first_line
from flowimg.data.sources.folders import ARRAY, ENDINGS
from flowimg.data.sources.splits import files_of_split
from flowimg.data.workers import Result, spread
from flowimg.errors import DataError
from flowimg.machine.cores import cores
from flowimg.names import one_line, word

PICTURES = ENDINGS - {ARRAY}
"""Endings of pictures, unless data.image_column names one; an array beside a picture may be anything."""
LABEL = "cls"
"""Ending of a file that is the label of its sample, unless data.label_column names another."""
MOST_SHARDS = 10**6
"""Most shards in a range."""
MOST_OTHERS = 100
"""Most endings of other files that are remembered of a shard."""
MOST_LABEL = 2**20
"""Most bytes that are read of a label's file."""


class Shard(NamedTuple):
    """The pictures of a tar file: their positions and sizes in bytes, (N,), their names and their labels.

    `others` are the endings of the other files of its samples, that of labels too.
    """

    starts: Ints
    sizes: Ints
    names: list[str]
    labels: list[Label] | None
    cut_off: bool
    others: tuple[str, ...] = ()

    def picture(self, file: str, row: int) -> Encoded:
        """Where a picture of this shard is stored."""
        return Encoded(None, file, int(self.starts[row]), int(self.sizes[row]))


def tar_files(where: str, path: Path) -> list[str]:
    """The tar files that a path with `*` or `{0000..0099}` means; empty if the path contains no such pattern.

    Raises:
        DataError: If one of them does not exist, or none match.
    """
    text = str(path)
    if numbered := re.fullmatch(r"(.*)\{(\d{1,18})\.\.(\d{1,18})\}(.*\.tar)", text):
        before, first, last, after = numbered.groups()
        if not 0 < int(last) - int(first) + 1 <= MOST_SHARDS:
            raise DataError(f"{where}: {first}..{last} is not a valid range of shards; put the lower number first")
        names = [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]
    elif glob.has_magic(text):
        names = sorted(glob.glob(text))
        if not names or not all(name.endswith(".tar") for name in names):
            raise DataError(f"{where} matches no tar files: name a folder of pictures as a folder")
    else:
        return []
    if missing := next((name for name in names if not os.path.isfile(name)), None):
        raise DataError(f"{where}: there is no {one_line(missing)}, which is in the range")
    return names


def shards(where: str, files: list[str], cache: Path, request: Request, beside: Sequence[str] = ()) -> Source:
    """The pictures of tar shards; `beside` are remarks on what else lies there.

    Raises:
        DataError: If there is no such split.
    """
    files, remarks = files_of_split(where, files, request.split)
    unused = (*remarks, *beside)
    signature = name_of(files, [stamp_of(file) for file in files], *unused)
    kind = f"{len(files):,} tar shard{'s' if len(files) > 1 else ''}"
    return Source(kind, where, signature, partial(_listing, where, files, cache, request, unused))


def _listing(where: str, files: list[str], cache: Path, request: Request, unused: tuple[str, ...]) -> Listing:
    label = (request.label_column or LABEL) if request.reads_labels else None
    found = look_up(where, partial(kept_or_read, cache=cache, image=request.image_column, label=label), files)
    shard = np.repeat(np.arange(len(files)), [len(part.starts) for part in found])
    first = np.cumsum([0, *(len(part.starts) for part in found)])
    if not len(shard):
        raise no_pictures(where, request)
    # what comes after the place where a shard is broken off is lost; the picture before it may be incomplete
    lasts = [last for last, part in zip(first[1:] - 1, found, strict=True) if part.cut_off and len(part.starts)]
    cut = dict.fromkeys(map(int, lasts), "the shard is broken off here")

    def read(rows: Ints) -> list[Encoded]:
        places = zip(rows, shard[rows], strict=True)
        return [found[part].picture(files[part], row - first[part]) for row, part in places]

    def name(row: int) -> str:
        part = int(shard[row])
        return f"{files[part]}:{found[part].names[row - first[part]]}"

    labels = [one for part in found for one in part.labels or ()]
    kinds = {kind for part in found for kind in part.others}
    known = {one for row, one in enumerate(labels) if row not in cut}
    numbers, classes, remarks = shard_classes(where, request, known, kinds)
    more: dict[str, Any] = {"bytes": np.concatenate([part.sizes for part in found]), "unused": (*remarks, *unused)}
    if classes:
        rows = np.array([numbers.get(one, 0) for one in labels], np.int64)
        more |= {"labels": rows, "classes": classes, "origin": ("", f"of {label}")}
    return Listing(len(shard), read, name, wrong=cut, **more)


def shard_classes(
    where: str, request: Request, labels: Collection[Label], kinds: Collection[str]
) -> tuple[dict[Label, int], tuple[str, ...], tuple[str, ...]]:
    """The number of each label, the class names, and remarks on files that could be labels and are not.

    Args:
        where: Names the shards in errors.
        request: Whether labels are read, and from which files.
        labels: The labels of all pictures, each at least once.
        kinds: The endings of all files of samples that are no pictures.

    Raises:
        DataError: If some pictures have no label, or that is a fraction.
    """
    label = request.label_column or LABEL
    if not request.reads_labels or not (request.label_column or kinds):
        return {}, (), ()
    if not request.label_column and LABEL not in kinds:
        column = "json.KEY" if "json" in kinds else min(kinds)
        would = f"data.label_column {word(column)} would make them the classes"
        return {}, (), (f"the .{several(sorted(kinds))} files of samples: {would}",)
    if not request.label_column and (broken := fraction_in(labels)) is not None:
        return {}, (), (f"the .{LABEL} files of samples: {broken} is no class",)
    return *classes_of(where, labels, label, f"not every picture has a label {one_line(label)}"), ()


def no_pictures(where: str, request: Request) -> DataError:
    """The error for shards without pictures."""
    ending = one_line(request.image_column or "jpg, png, ...")
    hint = "" if request.image_column else "; arrays are read if data.image_column is npy"
    return DataError(f"{where} holds no pictures: its shards have no files that end in {ending}{hint}")


def look_up(where: str, do: Callable[[str], Result | str], files: list[str]) -> list[Result]:
    """What is found in each shard; several are read at once.

    Raises:
        DataError: If `do` returns a text, which is the reason: not a tar file, or two pictures in a sample.
    """
    found = []
    for result in spread(do, files, cores()):
        if isinstance(result, str):
            raise DataError(f"{where}: {result}")
        found.append(result)
    return found


def kept_or_read(file: str, cache: Path, image: str | None, label: str | None) -> Shard | str:
    """A shard from the cache, or read now and stored there; or the reason why it cannot be used, as text."""
    name = name_of("shard 4", os.path.realpath(file), stamp_of(file), image, label)
    path = cache / "shards" / f"{name}.npz"
    kept = read_arrays(path)
    if kept is not None:
        labels = unpack(kept["labels"]) if "labels" in kept else None
        others = tuple(unpack(kept["others"]))
        return Shard(kept["starts"], kept["sizes"], unpack(kept["names"]), labels, bool(kept["cut_off"]), others)
    shard = read_shard(file, image, label)
    if isinstance(shard, Shard):
        texts: dict[str, Sequence[Any]] = {"names": shard.names, "others": shard.others}
        texts |= {} if shard.labels is None else {"labels": shard.labels}
        packed = {name: pack(some) for name, some in texts.items()}
        keep_arrays(path, starts=shard.starts, sizes=shard.sizes, cut_off=np.array(shard.cut_off), **packed)
    return shard


def read_shard(file: str, image: str | None, label: str | None) -> Shard | str:
    """Read a tar file's headers; the reason why it cannot be used, as text, if so.

    Args:
        file: The tar file.
        image: The ending of pictures; None for the only one that a sample has.
        label: The ending of labels, or json.KEY; None for no labels.
    """
    ending, _, field = (label or "").partition(".")
    image = image.lower() if image else None
    starts, sizes, names = [], [], []
    samples: list[int] = []  # the number of each picture's sample
    labels: dict[int, Label] = {}  # by the number of their sample
    others: set[str] = set()
    where = one_line(file)
    sample, number, cut_off = None, 0, False
    try:
        with tarfile.open(file, "r:", encoding="utf-8") as tar, open(file, "rb") as raw:
            try:
                for member in iter(tar.next, None):
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    folder, _, base = member.name.rpartition("/")
                    stem, _, kind = base.partition(".")
                    if not member.isreg() or member.sparse or member.size < 0 or base.startswith("."):
                        continue
                    if (folder, stem) != sample:
                        sample, number = (folder, stem), number + 1
                    kind = kind.lower()
                    if kind == image or (image is None and f".{kind.rpartition('.')[2]}" in PICTURES):
                        if samples[-1:] == [number]:
                            name = one_line(member.name)
                            return f"{name} in {where} is a second picture of its sample: name one by data.image_column"
                        samples.append(number)
                        starts.append(member.offset_data)
                        sizes.append(member.size)
                        names.append(member.name)
                    elif label is not None and kind == ending:
                        raw.seek(member.offset_data)
                        labels[number] = _label(raw.read(min(member.size, MOST_LABEL)), field)
                        others.add(kind)
                    elif kind and len(others) < MOST_OTHERS:
                        others.add(kind)
            except tarfile.TarError:
                cut_off = True
            # tarfile takes a damaged header for the end; after the real end there is nothing, or zeros
            end = os.fstat(raw.fileno()).st_size
            raw.seek(min(tar.offset, end))
            cut_off |= bool(raw.read(2 * tarfile.BLOCKSIZE).strip(b"\0")) or 0 < (end - tar.offset) < tarfile.BLOCKSIZE
            cut_off |= bool(starts) and starts[-1] + sizes[-1] > end
    except Exception as error:  # damaged headers raise almost anything
        return f"{where} is no tar file that can be read ({first_line(error)})"
    own = None if label is None else [labels.get(number) for number in samples]
    return Shard(np.array(starts, np.int64), np.array(sizes, np.int64), names, own, cut_off, tuple(sorted(others)))


def _label(content: bytes, field: str) -> Label:
    text = content.decode(errors="backslashreplace").strip()  # as the name of a folder is read
    try:
        return label_of(json.loads(text).get(field) if field else text)
    except (ValueError, AttributeError, RecursionError):
        return None
