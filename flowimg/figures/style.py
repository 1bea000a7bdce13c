"""The style that all figures share: the colours of noise, data and flow, and plain axes.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color): colour-blind readers can tell them apart, and they
differ in lightness, so a grey print keeps the difference. Every drawing is dark on white; a page in dark mode inverts
the lightness and keeps the hue.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

NOISE, DATA, FLOW, OTHER = "#8a8a8a", "#0072b2", "#d55e00", "#009e73"
"""Colours of noise, of data, of samples and their flow, and of one more quantity."""
INK, FAINT = "#222222", "#d9d9d9"
"""Text and axes; grids and background."""
SERIES = (FLOW, DATA, OTHER, "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":", "-.")
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#fbc9a0", FLOW, "#5a2400"])
"""From empty to dense, in the hue of the flow, with steadily falling lightness."""
OF_TIME = LinearSegmentedColormap.from_list("time", [NOISE, "#56b4e9", DATA, "#00304d"])
"""From noise (t = 0) to data (t = 1)."""
DPI = 150

STYLE: Any = {
    "font.size": 10, "axes.titlesize": 11, "figure.titlesize": 12, "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "grid.color": FAINT, "grid.linewidth": 0.6, "lines.linewidth": 1.6, "axes.axisbelow": True,
    "figure.facecolor": "white",
}  # fmt: skip


@contextmanager
def drawing(
    path: Path, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """As `blank`, in the common style; the figure is written to `path` at the end."""
    with matplotlib.rc_context(STYLE):
        figure, panels = blank(width, height, rows, columns, **options)
        yield figure, panels
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, layout: str | None = "constrained", **options: Any
) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its panels; `options` are those of `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def plane(axes: Axes, extent: float, title: str = "", labels: bool = True) -> None:
    """Make a panel the plane of points, with equal axes from -extent to extent."""
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", title=title)
    axes.spines[["top", "right"]].set_visible(True)
    if labels:
        axes.set(xlabel="$x$", ylabel="$y$")
    else:
        axes.set(xticks=[], yticks=[])


def line_style(number: int) -> dict[str, Any]:
    """Colour and dash of a line by its number: lines differ in both."""
    return {"color": SERIES[number % len(SERIES)], "ls": DASHES[number % len(DASHES)]}
