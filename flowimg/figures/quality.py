"""Quality over what it costs: distance over evaluations, and what guidance buys and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flowimg.figures.style import DATA, FAINT, FLOW, NOISE, OTHER, SERIES, drawing

NEAR = 0.05
"""A distance this much above the converged one counts as converged."""
DASHES = ("-", "--", ":", "-.")
MARKS = "os^Dvx"


def nfe_figure(
    lines: Mapping[tuple[str, str], Sequence[tuple[int, float]]], converged: float, name: str, path: Path
) -> None:
    """Write distance over evaluations, a line for each solver and grid of times.

    Args:
        lines: By solver and grid: evaluations counted, and the distance.
        converged: The distance of a flow that was followed as closely as it gets.
        name: What the distance is called.
        path: The PNG's file.
    """
    solvers = list(dict.fromkeys(solver for solver, _ in lines))
    grids = list(dict.fromkeys(grid for _, grid in lines))
    counts = sorted({n for points in lines.values() for n, _ in points})
    with drawing(path, max(8, 2.9 * len(grids) + 0.6), 4.2, 1, len(grids), sharey=True, squeeze=False) as (
        figure,
        panels,
    ):
        for axes, grid in zip(panels[0], grids, strict=True):
            axes.axhspan(converged * (1 - NEAR), converged * (1 + NEAR), color=NOISE, alpha=0.3, lw=0)
            for place, solver in enumerate(solvers):
                if points := lines.get((solver, grid)):
                    style = {"color": SERIES[place % len(SERIES)], "ls": DASHES[place % 4], "marker": MARKS[place % 6]}
                    axes.plot(*zip(*points, strict=True), ms=4, lw=1.2, label=solver, **style)
            axes.set(xscale="log", yscale="log", xlabel="evaluations a sample")
            axes.xaxis.set_major_locator(FixedLocator(counts))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.grid(axis="y", which="both")
            axes.set_title(f"{grid} times")
        panels[0, 0].set_ylabel(name)
        keys, names = panels[0, 0].get_legend_handles_labels()
        figure.legend(keys, names, loc="outside lower center", ncols=len(names))
        figure.suptitle(
            f"How many evaluations it takes; grey: within {100 * NEAR:.0f} % of the converged {converged:.3g}",
            x=0.01, ha="left",
        )  # fmt: skip


def guidance_figure(rows: Sequence[dict[str, Any]], judge: float, name: str, path: Path) -> None:
    """Write agreement with the asked label, coverage of the data, and the distance over the guidance scale.

    Args:
        rows: A scale each: scale, agreement, coverage, precision, score (the distance).
        judge: How often the classifier is right on real pictures.
        name: What the distance is called.
        path: The PNG's file.
    """
    scales = [row["scale"] for row in rows]
    with drawing(path, 9, 4.2, 1, 2) as (figure, panels):
        left, right = panels
        for key, colour, words in (
            ("agreement", FLOW, "agrees with the asked label"),
            ("precision", OTHER, "precision"),
            ("coverage", DATA, "coverage of the data"),
        ):
            left.plot(scales, [row[key] for row in rows], color=colour, marker="o", ms=4, label=words)
        left.axhline(judge, color=FLOW, lw=0.8, ls=":", label="the classifier on real pictures")
        left.set(xlabel="guidance scale (1 is none)", ylabel="share", ylim=(0, 1.02))
        left.set_title("quality against diversity")
        left.grid(axis="y", color=FAINT)
        figure.legend(loc="outside lower left", ncols=2, fontsize=9)
        right.plot(scales, [row["score"] for row in rows], color=FLOW, marker="o", ms=4)
        right.set(xlabel="guidance scale (1 is none)", ylabel=name, ylim=(0, None))
        right.set_title("distance to the data")
        right.grid(axis="y", color=FAINT)
