"""Which source a string means: a set by name, a file, tar shards, a folder, or a dataset of the hub, in this order."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowimg.data.cache import name_of
from flowimg.data.listing import DataError, Listing, Source
from flowimg.data.sources.folders import picture_folder, signature, walk
from flowimg.data.sources.known import NAMED, TORCHVISION, torchvision_set
from flowimg.data.sources.shards import shards, tar_files

TABLES = (".parquet", ".arrow")


def recognise(
    source: str,
    *,
    subset: str | None,
    root: str,
    split: str,
    image_column: str | None,
    label_column: str | None,
    labels: bool,
    classes: Sequence[str],
    cache: Path,
) -> Source:
    """Find out what a string means, without reading a picture.

    Raises:
        DataError: If it means nothing; the message lists what was tried.
    """
    where = f"data.source {source}"
    asked: dict[str, Any] = {"split": split, "image_column": image_column, "label_column": label_column}
    asked |= {"labels": labels, "classes": classes}
    if source in NAMED:
        _only_train(where, split)
        return Source(f"the set {source}", where, None, NAMED[source])
    if source in TORCHVISION:
        return torchvision_set(where, source, root, split)
    path = Path(source).expanduser()
    if not path.is_dir() and (tars := tar_files(path)):
        return shards(where, tars, cache, **asked)
    if path.is_file():
        if path.suffix not in TABLES:
            raise DataError(f"{where} is neither parquet, arrow nor tar: name such a file, or a folder")
        return _table(where, source, subset, _stamp(path), f"a {path.suffix[1:]} file", asked)
    if path.is_dir():
        entries = list(walk(path))
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _table(where, source, subset, signature(entries), "a folder saved by datasets", asked)
        endings = {os.path.splitext(entry.parts[-1])[1] for entry in entries if entry.wrong is None}
        if endings & set(TABLES) or any((path / name).exists() for name in ("metadata.csv", "metadata.jsonl")):
            kind = "a folder of tables" if endings & set(TABLES) else "a folder of pictures with metadata"
            return _table(where, source, subset, signature(entries), kind, asked)
        if ".tar" in endings:
            tars = [str(path.joinpath(*e.parts)) for e in entries if e.wrong is None and e.parts[-1].endswith(".tar")]
            return shards(where, tars, cache, **asked)
        # not datasets' own "imagefolder": it copies, takes minutes, and reads "test" in a name as a split
        return picture_folder(where, path, entries, split)
    if path.exists():
        raise DataError(f"{where} is no regular file and no folder: name one of these")
    if "://" in source:
        raise DataError(f"{where} is an address: parquet there can be streamed, give data.stream true")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or (os.sep != "/" and os.sep in source):
        raise DataError(f"{where} does not exist: there is no such file or folder")
    return _table(where, source, subset, None, "a dataset of the Hugging Face hub", asked)


def _table(where: str, source: str, subset: str | None, found: str | None, kind: str, asked: dict[str, Any]) -> Source:
    def open_it() -> Listing:
        from flowimg.data.sources.tables import table_listing  # datasets takes a second to import

        return table_listing(where, source, subset, **asked)

    return Source(kind, where, found, open_it)


def _only_train(where: str, split: str) -> None:
    if split != "train":
        raise DataError(f"{where} has no split {split!r}: data.split may be train")


def _stamp(path: Path) -> str:
    found = path.stat()
    assert stat.S_ISREG(found.st_mode)
    return name_of(np.array([found.st_size, found.st_mtime_ns, found.st_ctime_ns]))
