"""Which source a string means: a set by name, a file, a folder, tar shards, or a dataset of the hub, in this order."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import Listing, Request, Source, check_split
from flowimg.data.sources.folders import ENDINGS, picture_folder, signature_of, walk
from flowimg.data.sources.known import NAMED, TORCHVISION, torchvision_set
from flowimg.data.sources.shards import shards, shards_below, tar_files
from flowimg.errors import DataError
from flowimg.names import on_disk, one_line

TABLES = (".parquet", ".arrow")


def recognise(source: str, cache: Path, request: Request) -> Source:
    """Find out what a string means, without reading a picture.

    Raises:
        DataError: If it means nothing; the message lists everything that was tried.
    """
    where = f"data.source {one_line(source)}"
    if source in NAMED:
        check_split(where, request.split)
        return Source(f"the set {source}", where, None, NAMED[source])
    if source in TORCHVISION:
        return torchvision_set(where, source, request)
    path = on_disk(source)
    if os.path.isfile(path):
        if path.suffix == ".tar":
            return shards(where, [str(path)], cache, request)
        if path.suffix not in TABLES:
            packed = ", unpacked," if source.endswith((".tar.gz", ".tgz", ".zip")) else ""
            raise DataError(f"{where} is neither parquet, arrow nor tar: name such a file{packed} or a folder")
        return _table(where, source, request, name_of(stamp_of(path)), f"a {path.suffix[1:]} file")
    if os.path.isdir(path):
        return _folder(where, source, path, cache, request)
    if os.path.lexists(path):
        raise DataError(f"{where} is neither a regular file nor a folder")
    if "://" in source:
        raise DataError(f"{where} is an address: a run can stream parquet from there, with data.stream true")
    if files := tar_files(where, path):
        return shards(where, files, cache, request)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or (os.sep != "/" and os.sep in source):
        raise DataError(f"{where} does not exist: there is no such file or folder")
    return _table(where, source, request, None, "a dataset of the Hugging Face hub")


def _folder(where: str, source: str, path: Path, cache: Path, request: Request) -> Source:
    """What a folder is: saved by `datasets`, or of tables, tar shards or pictures."""
    entries, again = walk(path)
    endings = Counter(os.path.splitext(entry.path)[1].lower() for entry in entries if entry.wrong is None)
    beside = sum(endings[ending] for ending in ENDINGS)
    more = f" ({beside:,} pictures next to them are not used)" if beside else ""
    kinds = [
        ("a folder saved by datasets", any((path / name).exists() for name in ("dataset_dict.json", "state.json"))),
        ("a folder of pictures with metadata", any((path / f"metadata.{end}").exists() for end in ("csv", "jsonl"))),
        (f"a folder of tables{more}", any(endings[ending] for ending in TABLES)),
    ]
    if kind := next((kind for kind, matches in kinds if matches), None):
        return _table(where, source, request, signature_of(entries), kind)
    if endings[".tar"]:
        found = shards(where, shards_below(path, entries), cache, request)
        return replace(found, kind=found.kind + more)
    # not datasets' own "imagefolder": it copies, takes minutes, and reads "test" in a name as a split
    return picture_folder(where, path, entries, again, request.split)


def _table(where: str, source: str, request: Request, signature: str | None, kind: str) -> Source:
    def listing() -> Listing:
        from flowimg.data.sources.tables import table_listing  # datasets takes a second to import

        return table_listing(where, source, request)

    return Source(kind, where, signature, listing)
