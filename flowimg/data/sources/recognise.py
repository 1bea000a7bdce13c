"""Which source a string means: a set by name, a file, a folder, tar shards, or a dataset of the hub, in this order."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flowimg.data.cache import name_of, stamp_of
from flowimg.data.listing import Listing, Request, Source, check_split
from flowimg.data.sources.arrays import ARRAY_FILES, array_file
from flowimg.data.sources.folders import ENDINGS, picture_folder, signature_of
from flowimg.data.sources.known import NAMED, TORCHVISION, torchvision_set
from flowimg.data.sources.metadata import metadata_folder
from flowimg.data.sources.shards import shards, tar_files
from flowimg.data.sources.splits import files_of_split
from flowimg.data.sources.unused import look_below
from flowimg.errors import DataError
from flowimg.names import on_disk, one_line

TABLES = (".parquet", ".arrow")
SAVED = ("dataset_dict.json", "state.json", "dataset_info.json")
"""Files that tell a folder saved by `datasets`: either of the first two."""


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
        ending = path.suffix.lower()
        if ending == ".tar":
            return shards(where, [str(path)], cache, request)
        if ending in ARRAY_FILES:
            return array_file(where, path, request)
        if ending not in TABLES:
            packed = ", unpacked," if source.lower().endswith((".tar.gz", ".tgz", ".zip")) else ""
            kinds = "parquet, arrow, npy, npz nor tar"
            raise DataError(f"{where} is neither {kinds}: name such a file{packed} or a folder")
        kind = {".arrow": "an arrow file", ".parquet": "a parquet file"}[ending]
        return _table(where, source, request, name_of(stamp_of(path)), kind, [str(path)])
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
    """What a folder is: saved by `datasets`, or of pictures with metadata, tables, tar shards or pictures."""
    below = look_below(path)
    signature, pictures, metadata = signature_of(below.entries), below.of(ENDINGS), below.metadata()
    if any((path / name).exists() for name in SAVED[:2]):
        unused = below.beside(below.of((".arrow", *SAVED)))
        return _table(where, source, request, signature, "a folder saved by datasets", unused=unused)
    # not datasets' own "imagefolder": it copies, takes minutes, and reads "test" in a name as a split
    if pictures and metadata:
        return metadata_folder(where, path, below.entries, below.beside([*pictures, *metadata]), request)
    for ending in TABLES:
        if tables := below.of([ending]):
            unused, kind = below.beside(tables), "a folder of tables"
            if has_card(path):  # it says what the splits and subsets are
                return _table(where, source, request, signature, kind, unused=unused)
            if request.subset:
                raise DataError(f"{where} has no subset {request.subset!r}: its README.md names none by configs")
            return _table(where, source, request, signature, kind, [str(path / file) for file in tables], unused)
    if tars := below.of([".tar"]):
        return shards(where, [str(path / file) for file in tars], cache, request, below.beside(tars))
    return picture_folder(where, path, below.entries, below.beside(pictures), request)


def has_card(path: Path) -> bool:
    """Whether a folder has the card of a dataset that names the files of its splits or subsets, as on the hub."""
    with suppress(OSError):
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
        card = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
        return bool(re.search(r"^configs:", card, re.M) and re.search(r"^[ -]+data_(files|dir):", card, re.M))
    return False


def _table(
    where: str,
    source: str,
    request: Request,
    signature: str | None,
    kind: str,
    files: Sequence[str] = (),
    unused: Sequence[str] = (),
) -> Source:
    """A table; the split of its files is decided here, and by `datasets` if there are none on this disk."""
    chosen, remarks = files_of_split(where, files, request.split) if files else ([], [])
    splits = {request.split: chosen} if chosen else {}

    def listing() -> Listing:
        from flowimg.data.sources.tables import table_listing  # datasets takes a second to import

        return table_listing(where, source, request, splits, (*remarks, *unused))

    return Source(kind, where, signature, listing)
