"""Which figures a run has: a note beside them, for the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flowimg.files import write_text


class Figure(NamedTuple):
    """A figure of a run: its file in RUN/figures, what is seen, a caption, how it was made; curves need no field."""

    file: str
    title: str
    caption: str
    how: str = ""
    curve: bool = False


def add_figures(folder: Path, drawn: Sequence[Figure]) -> None:
    """Note figures beside those that are there, in place of older ones of the same file."""
    there = {figure.file for figure in drawn}
    all_of_them = [*(figure for figure in kept_figures(folder) if figure.file not in there), *drawn]
    write_text(folder / "figures.json", json.dumps([figure._asdict() for figure in all_of_them], indent=1) + "\n")


def kept_figures(folder: Path) -> list[Figure]:
    """The figures that were noted; a folder may come from a stranger, so files are looked for only there."""
    try:
        told = json.loads((folder / "figures.json").read_text())
        return [Figure(**{**figure, "file": Path(figure["file"]).name}) for figure in told]
    except (OSError, ValueError, TypeError, KeyError):
        return []
