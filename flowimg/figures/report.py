"""Pages about runs: one HTML file each that holds all its pictures, asks nothing of the network and runs no script."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

STILL_BYTES, STILL_SIDE = 400_000, 1600
"""A still picture above this is packed as WebP, no wider or higher than this."""
WIDE = 700
"""A picture shown wider than this, in a browser's pixels, is not shrunk to a phone's screen."""
INCH = 96
"""A browser's pixels an inch."""


class Shot(NamedTuple):
    """A picture on the page: its data, its size, its words; `kind` is "drawing" (dark on white) or "pictures"."""

    src: str
    width: int
    height: int
    title: str
    caption: str
    kind: str

    @property
    def wide(self) -> bool:
        """Whether it scrolls in its own frame on a small screen."""
        return self.width >= WIDE


class Scores(NamedTuple):
    """An evaluation: how it was made, and its named values."""

    how: str
    scores: Sequence[tuple[str, str]]


class Told(NamedTuple):
    """What a page tells of a run."""

    name: str
    path: str
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
    """A picture or animation as part of a page."""
    data, form = path.read_bytes(), path.suffix[1:]
    with Image.open(path) as picture:
        width, height = picture.size
        scale = INCH / picture.info.get("dpi", (INCH, INCH))[0]
        shown = round(width * scale), round(height * scale)
        still = getattr(picture, "n_frames", 1) == 1
        if still and len(data) > STILL_BYTES:
            small = picture.convert("RGB")
            small.thumbnail((STILL_SIDE, STILL_SIDE))
            packed = io.BytesIO()
            small.save(packed, format="WEBP", quality=85)
            data, form = packed.getvalue(), "webp"
    return Shot(f"data:image/{form};base64,{base64.b64encode(data).decode()}", *shown, title, caption, kind)


def report_page(run: Told, refresh: int | None) -> str:
    """The page about a run; it loads itself again after `refresh` seconds, if any."""
    return _page("report.html", title=run.name, run=run, refresh=refresh)


def compare_page(runs: Sequence[Told], curves: Shot, differ: Sequence[tuple[str, Sequence[str]]], written: str) -> str:
    """The page about several runs side by side."""
    title = " and ".join(run.name for run in runs)
    return _page("compare.html", title=title, runs=runs, curves=curves, differ=differ, written=written, refresh=None)


def _page(name: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # the first step of a run need not wait for it

    pages = Environment(
        loader=PackageLoader("flowimg.figures", "pages"),
        autoescape=True,  # a class may be called <script>
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(name).render(**values)


def plane_script() -> str:
    """The script of the plane on which particles are dropped; `flowimg play` sends it to the browser."""
    return (Path(__file__).parent / "pages" / "plane.js").read_text()
