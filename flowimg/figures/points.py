"""Plots of points: samples beside data, on one scale; and the log-density of points over the plane."""

from pathlib import Path

from torch import Tensor

from flowimg.figures.style import DATA, DENSITY, FLOW, INK, blank, drawing

DEPTH = 6.0
"""The range of the map of log-density in nats, down from the highest density."""


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


def log_density_figure(
    density: Tensor, inside: Tensor, nats: Tensor, entropy: float | None, side: float, path: Path, title: str
) -> None:
    """Write the map of log-density, and a histogram of its values at fresh data.

    Args:
        density: Log-density in nats on an even grid, x first, shape (S, S).
        inside: Whether a grid point lies on the support of the data, shape (S, S).
        nats: -log p of fresh data, shape (N,).
        entropy: The mean of `nats` for a perfect field, or None if unknown.
        side: Half the side of the map.
        path: The file of the PNG.
        title: The title of the figure.
    """
    with drawing(path, 9.6, 4.6, 1, 2) as (figure, (left, right)):
        top = float(density.quantile(0.999))
        square = (-side, side, -side, side)
        shown = left.imshow(density.T.numpy(), origin="lower", extent=square, cmap=DENSITY, vmin=top - DEPTH, vmax=top)
        left.contour(inside.T.numpy(), levels=[0.5], colors=[DATA], linewidths=0.8, extent=square)
        left.set(aspect="equal", xticks=[], yticks=[], title="log-density in nats; blue: edge of the support")
        figure.colorbar(shown, ax=left, extend="min", shrink=0.85)
        most, mean = float(nats.quantile(0.995)), float(nats.mean())
        right.hist(nats.clamp(max=most).numpy(), bins=60, range=(float(nats.min()), most), color=FLOW)
        right.axvline(mean, color=INK, lw=1.4, label=f"mean {mean:.3f}")
        if entropy is not None:
            right.axvline(entropy, color=DATA, lw=1.4, ls="--", label=f"entropy of the data {entropy:.3f}")
        right.set(xlabel="-log p at fresh data, nats (lower is better)", ylabel="points")
        right.set_title(f"{len(nats):,} points not used in training")
        right.grid(axis="y")
        right.legend(loc="upper right", fontsize=9)
        figure.suptitle(title, x=0.02, ha="left")
