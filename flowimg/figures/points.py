"""Plots of points: samples beside data, on one scale."""

from pathlib import Path

from torch import Tensor

from flowimg.figures.style import DATA, FLOW, blank


def points_figure(samples: Tensor, data: Tensor, extent: float, path: Path, title: str) -> None:
    """Write a scatter of samples beside one of data, as a PNG.

    Args:
        samples: Shape (N, 2).
        data: The same number of exact samples, shape (N, 2).
        extent: Half the side of the square that contains the data.
        path: The file of the PNG.
        title: The title of the samples.
    """
    figure, (left, right) = blank(9, 4.8, 1, 2)
    size = max(0.3, min(8.0, 20_000 / len(samples)))
    bounds = (-1.15 * extent, 1.15 * extent)
    for axes, points, colour, name in ((left, samples, FLOW, title), (right, data, DATA, "data")):
        axes.scatter(*points.numpy().T, s=size, c=colour, linewidths=0, alpha=0.6, rasterized=True)
        axes.set(xlim=bounds, ylim=bounds, aspect="equal", xlabel="$x$", ylabel="$y$")
        axes.set_title(f"{name}, {len(points):,} points")
    figure.savefig(path, dpi=110)
