"""The two pictures of the example: the share of points off the board per recipe, and the points themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from torch import Tensor

from flowimg.figures.style import DATA, FLOW, INK, NOISE, OTHER, drawing, plane

COLOURS = (NOISE, "#56b4e9", "#e69f00", "#cc79a7", OTHER, DATA, FLOW)
MARKS = "osD^vPX"
CHANCE = 50
"""Per cent of points off a board if they are spread evenly over it."""


class Line(NamedTuple):
    """A recipe: its name, its compute relative to the first, and the share off the board (0 to 1) for each board."""

    name: str
    compute: float
    off: Sequence[float]


def frequency_figure(lines: Sequence[Line], cells: Sequence[int], path: Path) -> None:
    """Plot the share of points off the board over the squares per side, a line per recipe; first and last stand out."""
    best, plain = lines[-1], lines[0]
    with drawing(path, 8, 5) as (figure, axes):
        axes.axhline(CHANCE, color=INK, lw=0.8, ls=":")
        axes.text(cells[0], CHANCE + 0.7, "knows nothing of the squares", fontsize=9)
        ends = _apart([100 * line.off[-1] for line in lines], 2.9)
        for place, line in enumerate(lines):
            colour = COLOURS[-1] if line is best else COLOURS[place % (len(COLOURS) - 1)]
            first = line is best or line is plain
            axes.plot(
                cells, 100 * np.array(line.off), color=colour, marker=MARKS[place % len(MARKS)], ms=6,
                lw=2.6 if first else 1.4, zorder=3 if first else 2,
            )  # fmt: skip
            said = f"{line.name}, {line.compute:.2g}x compute"
            axes.annotate(
                said, (cells[-1], 100 * line.off[-1]), (cells[-1] * 1.22, ends[place]), fontsize=9, va="center",
                color=INK, fontweight="bold" if first else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 1.2, "shrinkA": 1, "shrinkB": 4,
                            "relpos": (0, 0.5)},
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xlim(cells[0] * 0.93, cells[-1] * 1.06)
        axes.set_xticks(cells, [f"{n} x {n}" for n in cells])
        axes.minorticks_off()
        axes.set(xlabel="squares of the board, on the same area", ylabel="points that land off the board, %")
        axes.set_ylim(0, 58)
        axes.grid(axis="y")
        lost, kept = 100 * plain.off[-1], 100 * best.off[-1]
        repaired = "" if best is plain else f", {kept:.0f} % once repaired"
        figure.suptitle(
            f"The finer the board, the more lands off it: {lost:.0f} % of the finest{repaired}", x=0.02, ha="left"
        )


def boards_figure(
    rows: Mapping[str, Sequence[tuple[Tensor, Tensor]]], cells: Sequence[int], extent: float, path: Path
) -> None:
    """Plot points on each board, a row per recipe; points off the board are black.

    Args:
        rows: For each recipe the points (N, 2) on each board, and which of them are off it, (N,).
        cells: Squares per side of each board.
        extent: Half the side of the boards.
        path: The PNG's file.
    """
    with drawing(path, 2.3 * len(cells) + 0.4, 2.35 * len(rows) + 0.5, len(rows), len(cells), squeeze=False) as (
        figure,
        panels,
    ):
        for row, (name, boards) in enumerate(rows.items()):
            for column, (points, off) in enumerate(boards):
                axes = panels[row, column]
                plane(axes, 1.12 * extent, f"{cells[column]} x {cells[column]}" if row == 0 else "", labels=False)
                axes.scatter(*points[~off].T, s=1.8, c=DATA if row == 0 else FLOW, linewidths=0, rasterized=True)
                axes.scatter(*points[off].T, s=1.8, c="black", linewidths=0, rasterized=True)
                if row:
                    axes.set_xlabel(f"{100 * float(off.float().mean()):.0f} % off", fontsize=9)
            panels[row, 0].set_ylabel(name)
        figure.suptitle("Black: points that landed off their board", x=0.02, ha="left")


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in the same order and at least `gap` apart, moved as little as possible (least squares)."""
    order = np.argsort(heights)
    steps = gap * np.arange(len(heights))
    placed = np.empty(len(heights))
    placed[order] = isotonic_regression(np.asarray(heights, float)[order] - steps).x + steps
    return placed.tolist()
