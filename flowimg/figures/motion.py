"""Points in motion: particles carried by the velocity, their density on the way, how crooked their paths are."""

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

from flowimg.figures.style import DATA, DENSITY, FLOW, INK, NOISE, blank, common_style, drawing, plane

BINS = 72
"""Cells a side of a density."""
ARROWS = 21
"""Arrows a side of the field."""
MARGIN = 1.25
"""How far the plane reaches beyond the data: most of the noise and all of the flow is in sight."""
FRAME_MS, HOLD_MS = 50, 1500
"""How long a frame of an animation stands, and its first and last."""
MOST_BYTES = 3_500_000
"""An animation heavier than this is made lighter: a report holds it, and is sent."""


def flow_animation(
    states: Tensor,
    times: Sequence[float],
    velocity: Callable[[Tensor, float], Tensor],
    data: Tensor,
    extent: float,
    path: Path,
    title: str,
    chosen: int = 12,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Write the field with particles flowing through it, and the trails of a chosen few, as an animated WebP.

    Beside it the last frame is kept as a PNG, for print.

    Args:
        states: The particles at each time, shape (T, N, 2).
        times: Their flow times, T of them, rising.
        velocity: (x, t) -> v, the field on the plane, for the arrows.
        data: Exact samples, shape (M, 2): the faint ground.
        extent: Half the side of the square that holds the data.
        path: The WebP's file.
        title: Opens the title of each frame.
        chosen: Particles with a trail, the first so many.
        progress: Called after each frame.
    """
    side = MARGIN * extent
    line = torch.linspace(-side, side, ARROWS + 2)[1:-1]
    grid = torch.cartesian_prod(line, line)
    fields = torch.stack([velocity(grid, t) for t in times])
    # one scale for all times, so that lengths compare; the few that are longer are cut to one cell of the grid
    typical = float(fields.norm(dim=2).quantile(0.9)) or 1.0
    arrows = fields / typical
    arrows = arrows / arrows.norm(dim=2, keepdim=True).clamp(min=1) * (2 * side / ARROWS)
    moving, trails = states[:, chosen:], states[:, :chosen]
    with common_style():
        figure, axes = blank(6.4, 6.8)
        plane(axes, side)
        _ground(axes, data, side)
        field = axes.quiver(
            *grid.T.numpy(), *arrows[0].T.numpy(), color="#9a9a9a", angles="xy", scale_units="xy", scale=1.1,
            width=0.0028, headwidth=4,
        )  # fmt: skip
        dots = axes.scatter(*moving[0].T.numpy(), s=5, c=FLOW, linewidths=0, alpha=0.7)
        lines = [axes.plot([], [], color=INK, lw=1.3)[0] for _ in range(trails.shape[1])]
        axes.scatter(*trails[0].T.numpy(), s=22, facecolors="white", edgecolors=INK, linewidths=1.2, zorder=3)
        heads = axes.scatter(*trails[0].T.numpy(), s=30, c=FLOW, edgecolors=INK, linewidths=1, zorder=4)
        axes.set_title("rings: where noise starts; arrows: the velocity; blue: where the data lie", fontsize=9)
        name = figure.suptitle(" ", x=0.02, ha="left")
        frames = []
        for place, t in enumerate(times):
            field.set_UVC(*arrows[place].T.numpy())
            dots.set_offsets(moving[place].numpy())
            heads.set_offsets(trails[place].numpy())
            for row, trail in enumerate(lines):
                trail.set_data(*trails[: place + 1, row].T.numpy())
            name.set_text(f"{title}: $t$ = {t:.2f}")
            figure.set_dpi(100)
            frames.append(_pixels(figure))
            progress()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=150)
    write_animation(frames, path)


def write_animation(frames: Sequence[Image.Image], path: Path, frame_ms: int = FRAME_MS) -> None:
    """Write frames as an animated WebP that repeats, its first and last frame held; lighter where it would be heavy."""
    held = [HOLD_MS // 2, *[frame_ms] * (len(frames) - 2), HOLD_MS][-len(frames) :]
    for quality, scale in ((60, 1.0), (40, 1.0), (40, 0.7), (25, 0.5), (10, 0.3)):
        size = round(frames[0].width * scale), round(frames[0].height * scale)
        first, *rest = [frame if scale == 1 else frame.resize(size) for frame in frames]
        packed = {"quality": quality, "method": 4, "duration": held, "loop": 0}
        first.save(path, format="WEBP", save_all=True, append_images=rest, **packed)
        if path.stat().st_size <= MOST_BYTES:
            break


def density_figure(
    snapshots: Sequence[Tensor], times: Sequence[float], data: Tensor, extent: float, path: Path, title: str
) -> None:
    """Write the density of the points at each time, of the data, and where the two differ, on one scale.

    Args:
        snapshots: Points at each time, shape (N, 2) each.
        times: Their flow times; the last is that of the samples.
        data: As many exact samples, shape (N, 2).
        extent: Half the side of the square that holds the data.
        path: The PNG's file.
        title: Names the run.
    """
    side = MARGIN * extent
    maps = [_density(points, side) for points in [*snapshots, data]]
    top = float(np.quantile(maps[-1][maps[-1] > 0], 0.99)) * 1.15
    columns = 4
    rows = -(-(len(maps) + 1) // columns)
    ratios = {"height_ratios": [*[1] * rows, 0.07]}
    with drawing(path, 9, 2.5 * rows + 0.9, rows + 1, columns, None, gridspec_kw=ratios) as (figure, panels):
        spots, below = list(panels[:rows].flat), panels[rows]
        names = [*(f"$t$ = {t:.2g}" for t in times), "data"]
        names[0] += ", noise"
        names[len(times) - 1] += ", samples"
        square = {"origin": "lower", "extent": (-side, side) * 2}
        for axes, density, name in zip(spots, maps, names, strict=False):
            plane(axes, side, name, labels=False)
            shown = axes.imshow(density.T, cmap=DENSITY, vmin=0, vmax=top, **square)
        truth, last = spots[len(maps) - 1], spots[len(maps)]
        truth.spines[:].set_color(DATA)
        truth.title.set_color(DATA)
        plane(last, side, "samples minus data", labels=False)
        gap = maps[len(times) - 1] - maps[-1]
        differs = last.imshow(gap.T, cmap="PuOr_r", vmin=-top, vmax=top, **square)
        for axes in [*spots[len(maps) + 1 :], *below[[0, 2]]]:
            axes.set_axis_off()
        figure.suptitle(title, x=0.02, ha="left")
        figure.colorbar(shown, cax=below[1], orientation="horizontal", extend="max", ticks=[0, top / 2, top])
        figure.colorbar(differs, cax=below[3], orientation="horizontal", ticks=[-top, 0, top])
        below[1].set_xticklabels(["0", f"{top / 2:.3f}", f"{top:.3f}"])
        below[3].set_xticklabels(["less", "0", "more"])
        below[1].set_xlabel("share of points a unit of area", fontsize=9)
        # a layout engine would make room for the words under the bars, and the columns uneven
        figure.subplots_adjust(left=0.02, right=0.96, top=0.88, bottom=0.1, wspace=0.05, hspace=0.2)


def detours(states: Tensor) -> Tensor:
    """How much longer each path is than the straight line between its ends: length / chord, 1 or more.

    Args:
        states: States on the way, shape (T, N, *D).
    Returns:
        Shape (N,); on a straight path, whatever the speed, 1.
    """
    flat = states.flatten(2).double()
    length = flat.diff(dim=0).norm(dim=2).sum(0)
    return length / (flat[-1] - flat[0]).norm(dim=1).clamp(min=1e-12)


def straightness_figure(states: Tensor, extent: float, path: Path, title: str, chosen: int = 40) -> None:
    """Write paths beside their chords, and how much longer than those they are.

    Args:
        states: Particles at each time, shape (T, N, 2).
        extent: Half the side of the square that holds the data.
        path: The PNG's file.
        title: Names the run.
        chosen: Paths drawn; all are counted.
    """
    longer = (detours(states) - 1) * 100
    median = float(longer.median())
    with drawing(path, 9, 4.9, 1, 2) as (figure, (left, right)):
        some = states[:, :chosen]
        plane(left, MARGIN * extent, f"{chosen} paths and their straight lines")
        for row in range(some.shape[1]):
            left.plot(*some[[0, -1], row].T.numpy(), color=NOISE, lw=0.9, ls=(0, (4, 2)))
            left.plot(*some[:, row].T.numpy(), color=FLOW, lw=1.4)
        left.scatter(*some[0].T.numpy(), s=18, facecolors="white", edgecolors=NOISE, zorder=3, label="noise")
        left.scatter(*some[-1].T.numpy(), s=18, c=DATA, zorder=3, label="where it lands")
        left.plot([], [], color=FLOW, label="path")
        left.plot([], [], color=NOISE, ls=(0, (4, 2)), label="straight line")
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, fontsize=8, columnspacing=1.2)
        top = max(float(longer.quantile(0.98)), 1.0)
        right.hist(longer.clamp(max=top).numpy(), bins=40, range=(0, top), color=FLOW)
        right.axvline(median, color=INK, lw=1.2)
        right.annotate(f" median {median:.1f} %", (median, 1), xycoords=("data", "axes fraction"), va="top", fontsize=9)
        right.set(xlabel="path longer than its straight line by, %", ylabel="particles")
        right.set_title(f"all {states.shape[1]:,}; the last bar: {top:.0f} % and more")
        right.grid(axis="y")
        figure.suptitle(f"{title}: paths are {median:.1f} % longer than straight lines", x=0.02, ha="left")


def _density(points: Tensor, side: float) -> np.ndarray:
    """Points a unit of area, as a share of all of them; shape (BINS, BINS), x first."""
    x, y = points.T.numpy()
    counts, _, _ = np.histogram2d(x, y, bins=BINS, range=[(-side, side), (-side, side)])
    return counts / len(points) / (2 * side / BINS) ** 2


def _ground(axes: Axes, data: Tensor, side: float) -> None:
    """Where the data lie, as a faint ground."""
    there = _density(data, side) > 0
    tint = np.zeros((*there.T.shape, 4))
    tint[there.T] = matplotlib.colors.to_rgba(DATA, 0.16)
    axes.imshow(tint, origin="lower", extent=(-side, side) * 2, zorder=0)


def _pixels(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
