"""What lies beside the pictures of a folder, is not used, and looks as if it were meant to be."""

import os
from collections.abc import Iterable

from flowimg.data.listing import several

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of tables that describe the pictures of their folder and of those below it."""
PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z")
UNREAD = {
    (".csv", ".tsv", ".jsonl", ".json", ".xlsx"): "a table of labels is read if it is called metadata.csv, "
    "metadata.jsonl or metadata.parquet and names the pictures in a column file_name",
    PACKED: "unpack it",
    (".npy", ".npz", ".mat", ".h5", ".hdf5", ".dcm", ".nii", ".exr", ".hdr"): "arrays and scans are not read: save "
    "them as PNG",
    (".svg", ".psd", ".pdf", ".eps"): "drawings are not read: save them as PNG",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf"): "raw photos are not read: save them as JPEG or PNG",
    (".mp4", ".mov", ".avi", ".mkv", ".webm"): "videos are not read: save their frames as pictures",
}
"""Endings of files that people mean to be read, and what would use them."""


def is_metadata(path: str) -> bool:
    """Whether a file is a table that describes the pictures beside it."""
    return os.path.basename(path) in METADATA


def unread(paths: Iterable[str]) -> list[str]:
    """A remark on each kind of file that is not used, with what would use it."""
    paths = [path for path in paths if not is_metadata(path)]
    found = {hint: [path for path in paths if path.lower().endswith(endings)] for endings, hint in UNREAD.items()}
    return [f"{several(files)}: {hint}" for hint, files in found.items() if files]
