"""Splits by the names of folders and files: one rule for every source on disk."""

import os
import re
from collections.abc import Sequence

from flowimg.data.listing import check_split, several

SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
"""The words that name a split, in lower case, and the split that each names."""


def is_split(name: str) -> bool:
    """Whether a name is that of a split, in capitals or not."""
    return name.lower() in SPLITS


def named(where: str, split: str, names: Sequence[str]) -> list[str]:
    """Those of these names that mean the requested split: the very name, and any word for it.

    Raises:
        DataError: If none does.
    """
    meant = SPLITS.get(split.lower())
    found = [name for name in names if name == split or (meant and SPLITS.get(name.lower()) == meant)]
    if not found:
        check_split(where, split, sorted(set(names)))
    return found


def files_of_split(where: str, files: Sequence[str], split: str) -> tuple[list[str], list[str]]:
    """The files of a split, and a remark on files that name a split in vain.

    If there are several files, words in all their names, or in the folders that differ, name it; else all are train.

    Raises:
        DataError: If there are none of this split.
    """
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    below = [os.path.relpath(file, root or ".") for file in files]
    words = [next(filter(is_split, re.split(r"[^a-zA-Z]+", name)), "").lower() for name in below]
    if len(files) > 1 and all(words):
        chosen = named(where, split, words)
        return [file for file, word in zip(files, words, strict=True) if word in chosen], []
    named(where, split, ["train"])
    others = [name for name, word in zip(below, words, strict=True) if SPLITS.get(word, "train") != "train"]
    without = [name for name, word in zip(below, words, strict=True) if not word]
    if len(files) == 1 or not others:
        return list(files), []
    return list(files), [
        f"the splits that file names give: {several(others)} counts as train like all files, because "
        f"{several(without)} names no split"
    ]
