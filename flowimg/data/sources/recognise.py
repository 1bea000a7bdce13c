"""Which source a string means: a set by name, a file, tar shards, a folder, or a dataset of the hub, in this order."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import Listing, Source, only_train
from flowimg.data.sources.folders import ENDINGS, picture_folder, walk
from flowimg.data.sources.known import NAMED, TORCHVISION, torchvision_set
from flowimg.data.sources.shards import shards, shards_below, tar_files
from flowimg.errors import DataError

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
    named: bool,
    cache: Path,
) -> Source:
    """Find out what a string means, without reading a picture.

    Raises:
        DataError: If it means nothing; the message lists what was tried.
    """
    where = f"data.source {source}"
    asked: dict[str, Any] = {"split": split, "image_column": image_column, "label_column": label_column}
    asked |= {"labels": labels, "named": named}
    if source in NAMED:
        only_train(where, split)
        return Source(f"the set {source}", where, None, NAMED[source])
    if source in TORCHVISION:
        return torchvision_set(where, source, root, split)
    path = Path(source).expanduser()
    if os.path.isfile(path):
        if path.suffix == ".tar":
            return shards(where, [str(path)], cache, **asked)
        if path.suffix not in TABLES:
            packed = ", unpacked," if source.endswith((".tar.gz", ".tgz", ".zip")) else ""
            raise DataError(f"{where} is neither parquet, arrow nor tar: name such a file{packed} or a folder")
        return _table(where, source, subset, _stamp(path), f"a {path.suffix[1:]} file", asked)
    if os.path.isdir(path):
        return _folder(where, source, path, subset, cache, asked)
    if os.path.lexists(path):
        raise DataError(f"{where} is no regular file and no folder: name one of these")
    if "://" in source:
        raise DataError(f"{where} is an address: a run can stream parquet from there, with data.stream true")
    if files := tar_files(where, path):
        return shards(where, files, cache, **asked)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or (os.sep != "/" and os.sep in source):
        raise DataError(f"{where} does not exist: there is no such file or folder")
    return _table(where, source, subset, None, "a dataset of the Hugging Face hub", asked)


def _folder(where: str, source: str, path: Path, subset: str | None, cache: Path, asked: dict[str, Any]) -> Source:
    """What a folder is: saved by `datasets`, of tables, of tar shards, or of pictures."""
    entries = walk(path)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _table(where, source, subset, entries.signature, "a folder saved by datasets", asked)
    endings = Counter(os.path.splitext(name)[1].lower() for name in entries.paths if name not in entries.wrong)
    beside = sum(endings[ending] for ending in ENDINGS)
    more = f" ({beside:,} pictures beside them are left alone)" if beside else ""
    if any((path / name).exists() for name in ("metadata.csv", "metadata.jsonl")):
        return _table(where, source, subset, entries.signature, "a folder of pictures with metadata", asked)
    if any(endings[ending] for ending in TABLES):
        return _table(where, source, subset, entries.signature, f"a folder of tables{more}", asked)
    if endings[".tar"]:
        found = shards(where, shards_below(path, entries), cache, **asked)
        return replace(found, kind=found.kind + more)
    # not datasets' own "imagefolder": it copies, takes minutes, and reads "test" in a name as a split
    return picture_folder(where, path, entries, asked["split"])


def _table(where: str, source: str, subset: str | None, found: str | None, kind: str, asked: dict[str, Any]) -> Source:
    def open_it() -> Listing:
        from flowimg.data.sources.tables import table_listing  # datasets takes a second to import

        return table_listing(where, source, subset, **asked)

    return Source(kind, where, found, open_it)


def _stamp(path: Path) -> str:
    return name_of(stamp_of(path.stat()))
