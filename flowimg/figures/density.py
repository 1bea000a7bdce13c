"""The log-density of points over the plane."""

from pathlib import Path

from torch import Tensor

from flowimg.figures.style import DATA, DENSITY, FLOW, INK, drawing

DEPTH = 6.0
"""Nats below the densest place at which the map ends."""


def log_density_figure(
    density: Tensor, inside: Tensor, nats: Tensor, entropy: float | None, side: float, path: Path, title: str
) -> None:
    """Write the map of log-density, and how it is spread at data.

    Args:
        density: Nats on an even grid, x first, shape (S, S).
        inside: Whether a place lies on the support, shape (S, S).
        nats: -log p of fresh data, shape (N,).
        entropy: What its mean is for a perfect field, or None.
        side: Half the side of the map.
        path: The PNG's file.
        title: Names the run.
    """
    with drawing(path, 9.6, 4.6, 1, 2) as (figure, (left, right)):
        top = float(density.quantile(0.999))
        square = (-side, side, -side, side)
        shown = left.imshow(density.T.numpy(), origin="lower", extent=square, cmap=DENSITY, vmin=top - DEPTH, vmax=top)
        left.contour(inside.T.numpy(), levels=[0.5], colors=[DATA], linewidths=0.8, extent=square)
        left.set_title("log-density in nats; blue: the edge of the data")
        left.set(aspect="equal", xticks=[], yticks=[])
        figure.colorbar(shown, ax=left, extend="min", shrink=0.85)
        most = float(nats.quantile(0.995))
        low = float(nats.min())
        right.hist(nats.clamp(max=most).numpy(), bins=60, range=(low, most), color=FLOW)
        mean = float(nats.mean())
        right.axvline(mean, color=INK, lw=1.4, label=f"mean {mean:.3f}")
        if entropy is not None:
            right.axvline(entropy, color=DATA, lw=1.4, ls="--", label=f"entropy of the data {entropy:.3f}")
        right.set(xlabel="-log p at fresh data, nats (lower is better)", ylabel="points")
        right.set_title(f"{len(nats):,} points that the field never saw")
        right.grid(axis="y")
        right.legend(loc="upper right", fontsize=9)
        figure.suptitle(title, x=0.02, ha="left")
