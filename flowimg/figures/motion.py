"""Points in motion: particles carried by the velocity, their density over time, and the curvature of their paths."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from flowimg.figures.style import DATA, DENSITY, FLOW, INK, NOISE, drawing, plane

BINS = 72
"""Cells of a density per side."""
ARROWS = 21
"""Arrows of the velocity per side."""
MARGIN = 1.25
"""The half side of the plane over that of the data: it shows most of the noise and all of the flow."""
FRAME_MS, HOLD_MS = 50, 1500
"""How long a frame of an animation is shown, and its last one; its first is shown for half as long as the last."""
MAX_BYTES = 3_500_000
"""Larger animations are compressed more: a report contains them, and people send it."""


def flow_animation(
    states: Tensor,
    times: Sequence[float],
    velocity: Callable[[Tensor, float], Tensor],
    data: Tensor,
    extent: float,
    path: Path,
    title: str,
    trailing: int = 12,
) -> None:
    """Write the velocity with particles that follow it, some with their trails, as an animated WebP.

    The last frame is also written as a PNG, for print.

    Args:
        states: The particles at each time, shape (T, N, 2).
        times: Their T flow times, rising.
        velocity: (x, t) -> v, for the arrows.
        data: Exact samples, shape (M, 2), for the shaded background.
        extent: Half the side of the square that contains the data.
        path: The file of the WebP.
        title: The beginning of each frame's title.
        trailing: The number of particles with a trail, the first ones.
    """
    side = MARGIN * extent
    grid, arrows = _arrows(velocity, times, side)
    moving, trails = states[:, trailing:], states[:, :trailing]
    frames = []
    with drawing(path.with_suffix(".png"), 6.4, 6.8) as (figure, axes):
        plane(axes, side)
        _shade(axes, data, side)
        field = axes.quiver(
            *grid.T.numpy(), *arrows[0].T.numpy(), color="#9a9a9a", angles="xy", scale_units="xy", scale=1.1,
            width=0.0028, headwidth=4,
        )  # fmt: skip
        dots = axes.scatter(*moving[0].T.numpy(), s=5, c=FLOW, linewidths=0, alpha=0.7)
        lines = [axes.plot([], [], color=INK, lw=1.3)[0] for _ in range(trails.shape[1])]
        axes.scatter(*trails[0].T.numpy(), s=22, facecolors="white", edgecolors=INK, linewidths=1.2, zorder=3)
        heads = axes.scatter(*trails[0].T.numpy(), s=30, c=FLOW, edgecolors=INK, linewidths=1, zorder=4)
        axes.set_title("rings: noise; arrows: velocity; blue: the region of the data", fontsize=9)
        name = figure.suptitle(" ", x=0.02, ha="left")
        for frame, t in enumerate(times):
            field.set_UVC(*arrows[frame].T.numpy())
            dots.set_offsets(moving[frame].numpy())
            heads.set_offsets(trails[frame].numpy())
            for row, trail in enumerate(lines):
                trail.set_data(*trails[: frame + 1, row].T.numpy())
            name.set_text(f"{title}: $t$ = {t:.2f}")
            figure.set_dpi(100)
            frames.append(_pixels(figure))
    write_animation(frames, path)


def _arrows(velocity: Callable[[Tensor, float], Tensor], times: Sequence[float], side: float) -> tuple[Tensor, Tensor]:
    """The feet of the arrows, shape (ARROWS^2, 2), and the arrows at each time, shape (T, ARROWS^2, 2)."""
    line = torch.linspace(-side, side, ARROWS + 2)[1:-1]
    grid = torch.cartesian_prod(line, line)
    fields = torch.stack([velocity(grid, t) for t in times])
    # one scale for all times makes lengths comparable; the few longest arrows are cut to one cell of the grid
    arrows = fields / (float(fields.norm(dim=2).quantile(0.9)) or 1.0)
    return grid, arrows / arrows.norm(dim=2, keepdim=True).clamp(min=1) * (2 * side / ARROWS)


def write_animation(frames: Sequence[Image.Image], path: Path, frame_ms: int = FRAME_MS) -> None:
    """Write frames as a WebP that repeats, with a pause on the first and last frame, of `MAX_BYTES` if possible."""
    durations = [HOLD_MS // 2, *[frame_ms] * (len(frames) - 2), HOLD_MS][-len(frames) :]
    for quality, scale in ((60, 1.0), (40, 1.0), (40, 0.7), (25, 0.5), (10, 0.3)):
        size = round(frames[0].width * scale), round(frames[0].height * scale)
        first, *rest = [frame if scale == 1 else frame.resize(size) for frame in frames]
        options = {"quality": quality, "method": 4, "duration": durations, "loop": 0}
        first.save(path, format="WEBP", save_all=True, append_images=rest, **options)
        if path.stat().st_size <= MAX_BYTES:
            break


def density_figure(
    snapshots: Sequence[Tensor], times: Sequence[float], data: Tensor, extent: float, path: Path, title: str
) -> None:
    """Write the density of the points at each time, that of the data, and the difference of the last two, on one scale.

    Args:
        snapshots: Points at each time, shape (N, 2) each.
        times: Their flow times; the last one is that of the samples.
        data: The same number of exact samples, shape (N, 2).
        extent: Half the side of the square that contains the data.
        path: The file of the PNG.
        title: The title of the figure.
    """
    side = MARGIN * extent
    maps = [_density(points, side) for points in [*snapshots, data]]
    top = float(np.quantile(maps[-1][maps[-1] > 0], 0.99)) * 1.15
    rows = -(-(len(maps) + 1) // 4)
    ratios = {"height_ratios": [*[1] * rows, 0.07]}
    with drawing(path, 9, 2.5 * rows + 0.9, rows + 1, 4, layout=None, gridspec_kw=ratios) as (figure, panels):
        cells, bars = list(panels[:rows].flat), panels[rows]
        names = [*(f"$t$ = {t:.2g}" for t in times), "data"]
        names[0] += ", noise"
        names[-2] += ", samples"
        square = {"origin": "lower", "extent": (-side, side) * 2}
        for axes, density, name in zip(cells, maps, names, strict=False):
            plane(axes, side, name, labels=False)
            shown = axes.imshow(density.T, cmap=DENSITY, vmin=0, vmax=top, **square)
        truth, last, *unused = cells[len(maps) - 1 :]
        truth.spines[:].set_color(DATA)
        truth.title.set_color(DATA)
        plane(last, side, "samples minus data", labels=False)
        difference = last.imshow((maps[-2] - maps[-1]).T, cmap="PuOr_r", vmin=-top, vmax=top, **square)
        for axes in [*unused, *bars[[0, 2]]]:
            axes.set_axis_off()
        figure.suptitle(title, x=0.02, ha="left")
        figure.colorbar(shown, cax=bars[1], orientation="horizontal", extend="max", ticks=[0, top / 2, top])
        figure.colorbar(difference, cax=bars[3], orientation="horizontal", ticks=[-top, 0, top])
        bars[1].set_xticklabels(["0", f"{top / 2:.3f}", f"{top:.3f}"])
        bars[3].set_xticklabels(["less", "0", "more"])
        bars[1].set_xlabel("share of points per unit of area", fontsize=9)
        # set by hand, since a layout engine would make the columns uneven, to fit the labels of the colour bars
        figure.subplots_adjust(left=0.02, right=0.96, top=0.88, bottom=0.1, wspace=0.05, hspace=0.2)


def detours(states: Tensor) -> Tensor:
    """The length of each path over that of the straight line between its ends.

    Args:
        states: States along the paths, shape (T, N, *D).

    Returns:
        Ratios of 1 or more, shape (N,); 1 for a straight path at any speed.
    """
    flat = states.flatten(2).double()
    length = flat.diff(dim=0).norm(dim=2).sum(0)
    return length / (flat[-1] - flat[0]).norm(dim=1).clamp(min=1e-12)


def straightness_figure(states: Tensor, extent: float, path: Path, title: str, shown: int = 40) -> None:
    """Write paths with the straight lines between their ends, and a histogram of how much longer the paths are.

    Args:
        states: Particles at each time, shape (T, N, 2).
        extent: Half the side of the square that contains the data.
        path: The file of the PNG.
        title: The beginning of the figure's title.
        shown: The number of paths drawn; the histogram counts all.
    """
    longer = (detours(states) - 1) * 100
    median = float(longer.median())
    with drawing(path, 9, 4.9, 1, 2) as (figure, (left, right)):
        some = states[:, :shown]
        plane(left, MARGIN * extent, f"{shown} paths and their straight lines")
        for row in range(some.shape[1]):
            left.plot(*some[[0, -1], row].T.numpy(), color=NOISE, lw=0.9, ls=(0, (4, 2)))
            left.plot(*some[:, row].T.numpy(), color=FLOW, lw=1.4)
        left.scatter(*some[0].T.numpy(), s=18, facecolors="white", edgecolors=NOISE, zorder=3, label="start (noise)")
        left.scatter(*some[-1].T.numpy(), s=18, c=DATA, zorder=3, label="end")
        left.plot([], [], color=FLOW, label="path")
        left.plot([], [], color=NOISE, ls=(0, (4, 2)), label="straight line")
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, fontsize=8, columnspacing=1.2)
        top = max(float(longer.quantile(0.98)), 1.0)
        right.hist(longer.clamp(max=top).numpy(), bins=40, range=(0, top), color=FLOW)
        right.axvline(median, color=INK, lw=1.2)
        right.annotate(f" median {median:.1f} %", (median, 1), xycoords=("data", "axes fraction"), va="top", fontsize=9)
        right.set(xlabel="excess length of the path, %", ylabel="particles")
        right.set_title(f"all {states.shape[1]:,} paths; the last bar is {top:.0f} % and more")
        right.grid(axis="y")
        figure.suptitle(f"{title}: the median path is {median:.1f} % longer than a straight line", x=0.02, ha="left")


def _density(points: Tensor, side: float) -> np.ndarray:
    """The share of points per unit of area, shape (BINS, BINS), x first."""
    x, y = points.T.numpy()
    counts, _, _ = np.histogram2d(x, y, bins=BINS, range=[(-side, side), (-side, side)])
    return counts / len(points) / (2 * side / BINS) ** 2


def _shade(axes: Axes, data: Tensor, side: float) -> None:
    """Shade the cells that contain data."""
    tint = np.zeros((BINS, BINS, 4))
    tint[_density(data, side).T > 0] = matplotlib.colors.to_rgba(DATA, 0.16)
    axes.imshow(tint, origin="lower", extent=(-side, side) * 2, zorder=0)


def _pixels(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
