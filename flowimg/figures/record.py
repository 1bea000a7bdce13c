"""The list of a run's figures, kept beside them for the report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from flowimg.files import write_json


class Figure(NamedTuple):
    """A figure of a run: its file in RUN/figures, title, caption and how it was made; `curve`: drawn from metrics."""

    file: str
    title: str
    caption: str
    how: str = ""
    curve: bool = False


Drawable = tuple[Figure, Callable[[Path], object]]
"""A figure, and the function that draws it into a file."""


def add_figures(folder: Path, drawn: Sequence[Figure]) -> None:
    """Add figures to the list; a figure replaces the older one in the same file."""
    replaced = {figure.file for figure in drawn}
    listed = [*(figure for figure in kept_figures(folder) if figure.file not in replaced), *drawn]
    write_json(folder / "figures.json", [figure._asdict() for figure in listed])


def kept_figures(folder: Path) -> list[Figure]:
    """The figures on the list. A folder may come from a stranger, so paths are reduced to a name in this folder."""
    try:
        listed = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
        return [Figure(**{**figure, "file": Path(figure["file"]).name}) for figure in listed]
    except (OSError, ValueError, TypeError, KeyError):
        return []
