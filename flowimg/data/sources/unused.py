"""What lies in a folder, is not used by the kind of source that the folder is, and looks as if it were meant to be."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from flowimg.data.listing import several
from flowimg.data.sources.folders import ENDINGS, Entry, walk

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of tables that describe the pictures of their folder and of those below it."""
HINTS: dict[tuple[str, ...], str] = {
    METADATA: "metadata are read beside pictures only, not beside tables or tar shards",
    (".parquet", ".arrow", ".tar"): "tables and tar shards beside other data are read if data.source names them, or a "
    "folder of their own",
    tuple(ENDINGS): "pictures beside tables or tar shards are read if they have a folder of their own",
    (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".txt", ".xml", ".yaml", ".yml"): "a table of labels is read if it is "
    "called metadata.csv, metadata.jsonl or metadata.parquet, beside the pictures that its column file_name names",
    (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z"): "unpack it",
    (".npz",): "arrays are read if data.source names their file",
    (".mat", ".h5", ".hdf5", ".dcm", ".nii", ".exr", ".hdr"): "arrays and scans are not read: save them as PNG",
    (".tfrecord", ".tfrecords", ".mdb", ".lmdb", ".pkl", ".pickle", ".pt", ".pth", ".rec", ".bin"): "sets of this form "
    "are not read: save them as parquet or tar shards",
    (".jpe", ".jif", ".jxl", ".jxr", ".j2k", ".qoi", ".dds", ".svg", ".psd", ".pdf", ".eps"): "pictures of this form "
    "are not read: save them as PNG",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf"): "raw photos are not read: save them as JPEG or PNG",
    (".mp4", ".mov", ".avi", ".mkv", ".webm"): "videos are not read: save their frames as pictures",
}
"""Names or endings of files, and what would use them."""
HARMLESS = {
    *("readme", "license", "licence", "copying", "notice", "citation", "thumbs", "desktop", "dataset_info"),
    *("dataset_infos", "checksums", "md5sums", "sha1sums", "sha256sums"),
}
"""Names, up to the first dot, of files that nobody means to be read; hidden ones are not even found."""
HARMLESS_ENDINGS = (".md", ".rst", ".html", ".log", ".py", ".sh", ".bib", ".cff", ".md5", ".sha1", ".sha256", ".sha512")


class Below(NamedTuple):
    """What lies below a folder: its entries, and remarks on folders that hold nothing or were visited before."""

    entries: list[Entry]
    odd: list[str]

    def of(self, endings: Iterable[str]) -> list[str]:
        """The files whose names end so, in capitals or not."""
        endings = tuple(endings)
        return [one.path for one in self.entries if one.wrong is None and one.path.lower().endswith(endings)]

    def metadata(self) -> list[str]:
        """The tables that describe pictures."""
        return [one.path for one in self.entries if one.wrong is None and is_metadata(one.path)]

    def beside(self, used: Collection[str]) -> list[str]:
        """Remarks on all but these files, one a kind of file, with what would use it."""
        used = set(used)
        found: dict[str, list[str]] = {hint: [] for hint in HINTS.values()}
        for path in (one.path for one in self.entries if one.wrong is None and one.path not in used):
            if (hint := _hint(path)) is not None:
                found.setdefault(hint, []).append(path)
        return [*self.odd, *(f"{several(files)}: {hint}" for hint, files in found.items() if files)]


def look_below(path: Path) -> Below:
    """Walk through a folder.

    Raises:
        DataError: If it cannot be read.
    """
    return Below(*walk(path))


def is_metadata(path: str) -> bool:
    """Whether a file is a table that describes the pictures beside it."""
    return os.path.basename(path) in METADATA


def _hint(path: str) -> str | None:
    """What would use a file; None if nobody means it to be read."""
    name = os.path.basename(path).lower()
    ending = os.path.splitext(name)[1]
    if name.split(".")[0] in HARMLESS or ending in HARMLESS_ENDINGS:
        return None
    known = (hint for endings, hint in HINTS.items() if ending in endings or os.path.basename(path) in endings)
    return next(known, f"files {f'called {ending}' if ending else 'without an ending'} are not read")
