"""Pages about runs: HTML files that contain their pictures, load nothing from the network and run no script."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

STILL_BYTES, STILL_SIDE = 400_000, 1600
"""A still picture with more bytes is packed as WebP, with at most this width and height."""
WIDE = 700
"""Pictures wider than this, in a browser's pixels, are not shrunk to the screen of a phone."""
INCH = 96
"""A browser's pixels per inch."""


class Shot(NamedTuple):
    """A picture on a page: data, size, title and caption; `kind` is "drawing" (dark on white) or "pictures"."""

    src: str
    width: int
    height: int
    title: str
    caption: str
    kind: str

    @property
    def wide(self) -> bool:
        """Whether the picture scrolls in its own frame on a small screen."""
        return self.width >= WIDE


class Scores(NamedTuple):
    """An evaluation: how it was made, and its named values."""

    how: str
    scores: Sequence[tuple[str, str]]


class RunSummary(NamedTuple):
    """The contents of a page about a run."""

    name: str
    evaluate: str
    story: str
    state: str
    running: bool
    written: str
    pictures: Sequence[Shot]
    curves: Sequence[Shot]
    evaluations: Sequence[Scores]
    commands: Sequence[tuple[str, str]]
    changed: Sequence[tuple[str, str, str]]
    settings: str
    environment: Sequence[tuple[str, str]]


def shot(path: Path, title: str, caption: str, kind: str) -> Shot:
    """A picture or animation for a page."""
    data, form = path.read_bytes(), path.suffix[1:]
    with Image.open(path) as picture:
        scale = INCH / picture.info.get("dpi", (INCH, INCH))[0]
        width, height = (round(side * scale) for side in picture.size)
        if getattr(picture, "n_frames", 1) == 1 and len(data) > STILL_BYTES:
            small, packed = picture.convert("RGB"), io.BytesIO()
            small.thumbnail((STILL_SIDE, STILL_SIDE))
            small.save(packed, format="WEBP", quality=85)
            data, form = packed.getvalue(), "webp"
    src = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    return Shot(src, width, height, title, caption, kind)


def report_page(run: RunSummary, refresh: int | None) -> str:
    """The page about a run; it reloads itself every `refresh` seconds unless that is None."""
    return _page("report.html", title=run.name, run=run, refresh=refresh)


def compare_page(
    runs: Sequence[RunSummary], curves: Shot, differ: Sequence[tuple[str, Sequence[str]]], written: str
) -> str:
    """The page about several runs side by side."""
    title = " and ".join(run.name for run in runs)
    return _page("compare.html", title=title, runs=runs, curves=curves, differ=differ, written=written, refresh=None)


def _page(name: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # not needed for the first step of a run

    pages = Environment(
        loader=PackageLoader("flowimg.figures", "pages"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=True,  # names come from the user: a class may be called <script>
    )  # fmt: skip
    return pages.get_template(name).render(**values)


def plane_script() -> str:
    """The browser script of `flowimg play` for points: a plane on which particles are placed."""
    return (Path(__file__).parent / "pages" / "plane.js").read_text(encoding="utf-8")
