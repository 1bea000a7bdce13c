"""Plots of points: samples beside data, on one scale."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

FLOW, DATA = "#d55e00", "#0072b2"
"""Colours of samples and of data (Okabe and Ito's palette, distinct to the colour-blind)."""


def points_figure(samples: Tensor, data: Tensor, extent: float, path: Path, title: str) -> None:
    """Write a scatter of samples beside one of data, as a PNG.

    Args:
        samples: Shape (N, 2).
        data: As many exact samples, shape (N, 2).
        extent: Half the side of the square that holds the data.
        path: The PNG's file.
        title: Names the samples.
    """
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    size = max(0.3, min(8.0, 20_000 / len(samples)))
    for axes, points, colour, name in ((left, samples, FLOW, title), (right, data, DATA, "data")):
        axes.scatter(*points.numpy().T, s=size, c=colour, linewidths=0, alpha=0.6, rasterized=True)
        axes.set(xlim=(-1.15 * extent, 1.15 * extent), ylim=(-1.15 * extent, 1.15 * extent), aspect="equal")
        axes.set(xlabel="$x$", ylabel="$y$", title=f"{name}, {len(points):,} points")
    figure.savefig(path, dpi=110)
