"""One visual language for all figures: the colours of noise, data and flow, and a plain frame for each.

The colours are Okabe and Ito's (jfly.uni-koeln.de/color), told apart by the colour-blind, and differ in lightness, so
that they stay apart in a grey print. Every drawing is dark on white; a page in dark mode inverts lightness and keeps
the hue.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

NOISE, DATA, FLOW, OTHER = "#8a8a8a", "#0072b2", "#d55e00", "#009e73"
"""Colours of noise, of data, of what the field makes of noise, and of a second thing beside it."""
INK, FAINT = "#222222", "#d9d9d9"
"""Text and axes; grids and what stands behind."""
SERIES = (FLOW, DATA, OTHER, "#cc79a7", "#e69f00", "#56b4e9")
"""Lines of several runs side by side."""
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#fbc9a0", FLOW, "#5a2400"])
"""From nothing to dense, in the flow's hue, its lightness falling all the way."""
OF_TIME = LinearSegmentedColormap.from_list("time", [NOISE, "#56b4e9", DATA, "#00304d"])
"""From noise (t = 0) to data (t = 1)."""
DPI = 150

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.titlesize": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.axisbelow": True,
}


def common_style() -> AbstractContextManager[None]:
    """Everything drawn inside is drawn in the common style."""
    return matplotlib.rc_context(STYLE)


@contextmanager
def drawing(
    path: Path,
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    layout: str | None = "constrained",
    **options: Any,
) -> Iterator[tuple[Figure, Any]]:
    """A figure of so many inches and panels in the common style, written as `path` at the end."""
    with common_style():
        figure, panels = blank(width, height, rows, columns, layout, **options)
        yield figure, panels
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, layout: str | None = "constrained", **options: Any
) -> tuple[Figure, Any]:
    """A figure of so many inches and its panels, not written anywhere."""
    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def plane(axes: Axes, extent: float, title: str = "", labels: bool = True) -> None:
    """A panel that shows the plane of points, equal in both directions."""
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", title=title)
    axes.spines[["top", "right"]].set_visible(True)
    if labels:
        axes.set(xlabel="$x$", ylabel="$y$")
    else:
        axes.set(xticks=[], yticks=[])
