"""Where pictures come from: a name, a Hugging Face dataset on the hub or on disk, or a folder of pictures.

Whatever the source, it is opened as a `datasets.Dataset` whose pictures are still files, described (`find`: columns,
classes, sizes; nothing is decoded yet), and then decoded once to one uint8 tensor (`decode`).
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.data.pictures import GREY_MODES, Row, open_picture, see_through, to_pixels, upright_size
from flowimg.data.store import Images

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
"""File names that are pictures in a folder."""
SPLITS = {"train", "test", "val", "valid", "validation"}
"""Names of folders that are splits and not classes, where all of a folder's folders have such names."""
LABELS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string", "large_string", "bool"}
"""Types of a column that can be labels."""
CHUNK = 256
"""Pictures read at a time."""


class DataError(Exception):
    """The data cannot be used; the message says what, where, and how to mend it."""

    exit_status = 3


class Found(NamedTuple):
    """Pictures that were found and not decoded yet.

    `rows` holds the files in its column `image`; `labels` (N,) are None without classes; `shape` (C, H, W) is what
    decoding will give; `story` says in words what was found.
    """

    rows: datasets.Dataset
    labels: Tensor | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    story: str


def digits() -> datasets.Dataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, ten classes; comes with the package, no download.

    Their 17 grey levels 0 .. 16 are spread over 0 .. 255.
    Source: E. Alpaydin, C. Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI repository, CC BY 4.0.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    columns = {"image": [Image.fromarray(picture) for picture in pixels], "label": bunch.target}
    names = [str(name) for name in bunch.target_names]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict(columns, features)


NAMED: dict[str, Callable[[], datasets.Dataset]] = {"digits": digits}
"""Collections known by name."""


def find(
    source: str,
    *,
    subset: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    labels: bool = True,
    classes: Sequence[str] = (),
    first: int | None = None,
    size: int | None = None,
    channels: str = "auto",
    background: Sequence[int] = (255, 255, 255),
) -> Found:
    """Look a source through: which columns, classes, sizes and counts it has.

    Args:
        source: A name in `NAMED`; a folder or file on disk (parquet, arrow, pictures with a folder a class); or the
            id of a dataset on the hub.
        subset: The configuration of a hub dataset that has several.
        split: Which split.
        image_column: The column of pictures; None for the only one there is.
        label_column: The column of labels; None for the only one there is, if any.
        labels: Keep the labels, where there are any.
        classes: Keep pictures of these classes alone; empty keeps all.
        first: Keep this many, from the start, of those.
        size: Pixels a side that pictures will be brought to; None asks for pictures that are all of one size.
        channels: "grey", "rgb", or "auto": grey if no picture has colour.
        background: The colour under transparent pixels; a colour makes grey transparent pictures colour ones.
    Raises:
        DataError: If the source cannot be had, or does not hold what is asked for.
    """
    where = f"data.source {source}"
    splits = _open(source, subset)
    if split not in splits:
        raise DataError(f"{where} has no split {split!r}: data.split may be {_listed(splits)}")
    rows = splits[split]
    whole = len(rows)
    image_column = _image_column(where, rows.features, image_column)
    label_column = _label_column(
        where, rows.features, label_column, needed=labels or bool(classes), named=bool(classes)
    )
    numbers, names = _labels(where, rows, label_column) if label_column else (None, ())
    rows = rows.with_format(None).select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    if image_column != "image":
        rows = rows.rename_column(image_column, "image")

    kept = np.arange(whole)
    if classes:
        if unknown := [name for name in classes if name not in names]:
            near = get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {_listed(names)}"
            raise DataError(f"{where} has no class {unknown[0]!r} (data.classes): {hint}")
        assert numbers is not None
        old = [names.index(name) for name in names if name in classes]
        kept = np.flatnonzero(np.isin(numbers, old))
        names = tuple(names[number] for number in old)
        numbers = np.searchsorted(old, numbers)
    kept = kept[:first]
    if len(kept) == 0:
        raise DataError(f"{where}: split {split!r} holds no picture that is asked for")
    if len(kept) < whole:
        rows = rows.select(kept)
        numbers = None if numbers is None else numbers[kept]
    kinds = f"{len(names)} classes (column {label_column}): {_listed(names)}" if names else "no classes"
    if not labels:
        kinds = f"of {_listed(names)}, labels not used" if classes else "labels not used"
        numbers, names = None, ()

    shape, seen = _look(where, rows, size, channels, background)
    story = f"{len(rows):,} of {whole:,} pictures of {split}" if len(rows) < whole else f"{whole:,} pictures of {split}"
    story += f" (column {image_column}), {seen}"
    story += f"; {kinds}"
    return Found(rows, None if numbers is None else torch.from_numpy(numbers).long(), tuple(names), shape, story)


def decode(
    found: Found, resize: str = "crop", background: Sequence[int] = (255, 255, 255), bar: bool = False
) -> Images:
    """Decode all pictures.

    Args:
        found: What `find` found.
        resize: How a picture becomes a square of the shape found; see `pictures.to_square`.
        background: The colour under transparent pixels and around padded pictures.
        bar: Show progress on a terminal.
    Raises:
        DataError: If a picture is broken; the message says which.
    """
    channels, height, width = found.shape
    size = height if height == width else None
    pixels = torch.empty((len(found.rows), *found.shape), dtype=torch.uint8)
    with tqdm(
        total=len(pixels), unit="picture", desc="decoding", leave=False, disable=None if bar else True
    ) as progress:
        # one thread: on small pictures several hold each other up (a third of the speed was measured on two cores)
        for number, row in _files(found.rows):
            try:
                with open_picture(row) as picture:
                    pixels[number] = to_pixels(picture, channels, size, resize, background)
            except Exception as error:  # Pillow's readers raise almost anything on a broken file
                raise DataError(f"{_name(row, number)} cannot be decoded: {_first_line(error)}") from None
            progress.update()
    return Images(pixels, found.labels, found.classes)


def _files(rows: datasets.Dataset) -> Iterator[tuple[int, Row]]:
    """The pictures as they are stored, numbered."""
    for start in range(0, len(rows), CHUNK):
        for number, row in enumerate(rows[start : start + CHUNK]["image"], start):
            yield number, row or {"bytes": None, "path": None}


# --- opening ---------------------------------------------------------------------------------------------------------


def _open(source: str, subset: str | None) -> dict[str, datasets.Dataset]:
    """Every split of a source, by name."""
    if source in NAMED:
        return {"train": NAMED[source]()}
    path = Path(source).expanduser()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if path.is_file():
            if path.suffix not in (".parquet", ".arrow"):
                raise DataError(f"data.source {source} is neither parquet nor arrow: name such a file, or a folder")
            return datasets.load_dataset(path.suffix[1:], data_files=str(path))
        if path.is_dir():
            return _open_folder(path, subset)
        if source.startswith(("/", ".", "~")) or source.count("/") > 1 or (os.sep != "/" and os.sep in source):
            raise DataError(f"data.source {source} does not exist: there is no such file or folder")
        return _open_hub(source, subset)
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as error:  # the readers below `datasets` raise almost anything
        said = _first_line(error)
        if said.startswith("Config name is missing"):
            there = str(error).splitlines()[1].partition(": ")[2]
            raise DataError(f"data.source {source} has several subsets: name one by data.subset, of {there}") from None
        raise DataError(f"data.source {source} cannot be read: {said}") from None


def _open_folder(path: Path, subset: str | None) -> dict[str, datasets.Dataset]:
    """A folder on disk: saved by `datasets`, of parquet or arrow files, or of pictures."""
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        kept = datasets.load_from_disk(str(path))
        return kept if isinstance(kept, datasets.DatasetDict) else {"train": kept}
    tables = any(file.suffix in (".parquet", ".arrow") and not _hidden(file, path) for file in path.rglob("*"))
    if tables or any((path / name).exists() for name in ("metadata.csv", "metadata.jsonl")):
        return datasets.load_dataset(str(path), subset)
    # not datasets' own "imagefolder": it copies to its cache, and takes every file with "test" in its name for a split
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and not _hidden(file, path))
    if not files:
        raise DataError(f"data.source {path} holds no pictures and no parquet or arrow files")
    tops = {file.relative_to(path).parts[0] for file in files}
    if not tops <= SPLITS:
        return {"train": _picture_folder(path, files)}
    return {top: _picture_folder(path / top, [f for f in files if path / top in f.parents]) for top in sorted(tops)}


def _picture_folder(path: Path, files: list[Path]) -> datasets.Dataset:
    """The pictures below a folder; its folders, where all pictures lie in some, are their classes."""
    columns: dict[str, list[Any]] = {"image": [str(file) for file in files]}
    features = {"image": datasets.Image()}
    tops = [file.relative_to(path).parts[0] for file in files]
    if len(set(tops)) > 1 and all(file.parent != path for file in files):
        columns["label"] = tops
        features["label"] = datasets.ClassLabel(names=sorted(set(tops)))
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _open_hub(source: str, subset: str | None) -> dict[str, datasets.Dataset]:
    """A dataset of the Hugging Face hub, from its cache if it was fetched before."""
    from huggingface_hub.utils import logging

    print(f"looking for {source} on the Hugging Face hub ...", file=sys.stderr, flush=True)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of every try to connect; we say once that none did
    try:
        return datasets.load_dataset(source, subset)
    except datasets.exceptions.DatasetNotFoundError:
        hint = get_close_matches(source, NAMED, n=1)
        near = f"did you mean {hint[0]!r}?" if hint else "check its name, or whether you must log in (`hf auth login`)"
        raise DataError(f"data.source {source}: no such folder here and no such dataset on the hub: {near}") from None
    except ConnectionError:
        near_names = get_close_matches(source, NAMED, n=1)
        hint_name = f"did you mean {near_names[0]!r}? " if near_names else ""
        raise DataError(
            f"data.source {source} is no folder here, and the hub cannot be reached to look for it there: {hint_name}"
            "check the network, or name a local copy (a folder of parquet files or pictures)"
        ) from None
    finally:
        logging.set_verbosity(before)


# --- columns and labels ----------------------------------------------------------------------------------------------


def _image_column(where: str, features: datasets.Features, name: str | None) -> str:
    """The column of pictures: the one named, or the only one there is."""
    found = [column for column, feature in features.items() if _holds_pictures(feature)]
    if name is not None:
        if name not in features:
            raise DataError(f"{where} has no column {name!r} (data.image_column): its columns are {_listed(features)}")
        plain = getattr(features[name], "dtype", None)
        if name not in found and plain not in ("binary", "large_binary", "string", "large_string"):
            raise DataError(f"{where}: column {name!r} (data.image_column) holds no pictures; {_listed(found)} would")
        return name
    if not found:
        raise DataError(f"{where} has no column of pictures: its columns are {_listed(features)}")
    if len(found) > 1:
        raise DataError(
            f"{where} has {len(found)} columns of pictures, {_listed(found)}: name one by data.image_column"
        )
    return found[0]


def _holds_pictures(feature: Any) -> bool:
    """Pictures, or what parquet files make of them that were not written by `datasets`."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _label_column(where: str, features: datasets.Features, name: str | None, needed: bool, named: bool) -> str | None:
    """The column of labels: the one named, the only one of classes, or one called label; None without."""
    if name is not None:
        if name not in features:
            raise DataError(f"{where} has no column {name!r} (data.label_column): its columns are {_listed(features)}")
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
        raise DataError(f"{where} has {len(found)} columns of labels, {_listed(found)}: name one by data.label_column")
    if not found and named:
        raise DataError(f"{where} has no labels to keep data.classes by: its columns are {_listed(features)}")
    return found[0] if found else None


def _holds_labels(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in LABELS


def _labels(where: str, rows: datasets.Dataset, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The label of every row as a number, and the names of the classes."""
    values = rows.with_format("arrow")[:][column].to_pylist()
    feature = rows.features[column]
    missing = next((row for row, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise DataError(
            f"{where}: row {missing} has no label in column {column!r}: use another split or data.labels false"
        )
    if isinstance(feature, datasets.ClassLabel):
        return np.array(values, dtype=np.int64), tuple(feature.names)
    known = sorted(set(values))
    numbers = {value: number for number, value in enumerate(known)}
    return np.array([numbers[value] for value in values], dtype=np.int64), tuple(str(value) for value in known)


# --- sizes -----------------------------------------------------------------------------------------------------------


def _look(
    where: str, rows: datasets.Dataset, size: int | None, channels: str, background: Sequence[int]
) -> tuple[tuple[int, int, int], str]:
    """The shape that decoding will give, and what the files are, from their headers."""
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    coloured = False
    tinted = len(set(background)) > 1
    width = height = 0
    for number, row in _files(rows):
        try:
            with open_picture(row) as picture:
                width, height = upright_size(picture)
                sizes[height, width] += 1
                modes[picture.mode] += 1
                coloured |= picture.mode not in GREY_MODES or (tinted and see_through(picture))
        except Exception as error:  # Pillow's readers raise almost anything on a broken file
            raise DataError(f"{where}: {_name(row, number)} is no picture: {_first_line(error)}") from None
    if size is None and len(sizes) > 1:
        common = ", ".join(f"{w} x {h} ({count:,})" for (h, w), count in sizes.most_common(3))
        raise DataError(f"{where} has pictures of {len(sizes)} sizes, {common}: give the one to use by data.size")
    ends = [f"{w} x {h}" for h, w in (min(sizes, key=math.prod), max(sizes, key=math.prod))]
    said = ends[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {ends[0]} to {ends[1]}"
    depth = {"grey": 1, "rgb": 3}.get(channels, 3 if coloured else 1)
    if size is not None:
        width = height = size
    return (depth, height, width), f"{said}, {'/'.join(sorted(modes))}"


def _name(row: Row, number: int) -> str:
    """A picture as a person finds it again."""
    if row["bytes"] is None and row["path"]:
        return str(row["path"])
    return f"picture {number} ({row['path']})" if row["path"] else f"picture {number}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "none"
