"""Quality over its cost: distance over evaluations of the network, and the effects of guidance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FixedLocator, NullLocator

from flowimg.figures.letters import set_name
from flowimg.figures.style import DATA, FAINT, FLOW, NOISE, OTHER, drawing, line_style

NEAR = 0.05
"""A distance at most this much (relative) from the converged one counts as converged."""
MARKS = "os^Dvx"


def nfe_figure(
    lines: Mapping[tuple[str, str], Sequence[tuple[int, float]]], converged: float, name: str, path: Path
) -> None:
    """Write distance over evaluations, a panel per grid of times with a line per solver.

    Args:
        lines: By solver and grid: the number of evaluations, and the distance.
        converged: The distance of an adaptive solver at a small tolerance.
        name: The name of the distance.
        path: The file of the PNG.
    """
    solvers, grids = (list(dict.fromkeys(key[part] for key in lines)) for part in (0, 1))
    counts = sorted({n for points in lines.values() for n, _ in points})
    width = max(8, 2.9 * len(grids) + 0.6)
    with drawing(path, width, 4.2, 1, len(grids), sharey=True, squeeze=False) as (figure, panels):
        for axes, grid in zip(panels[0], grids, strict=True):
            axes.axhspan(converged * (1 - NEAR), converged * (1 + NEAR), color=NOISE, alpha=0.3, lw=0)
            for number, solver in enumerate(solvers):
                if points := lines.get((solver, grid)):
                    style = {**line_style(number), "marker": MARKS[number % len(MARKS)]}
                    axes.plot(*zip(*points, strict=True), ms=4, lw=1.2, label=solver, **style)
            axes.set(xscale="log", yscale="log", xlabel="evaluations per sample", title=f"{grid} times")
            axes.xaxis.set_major_locator(FixedLocator(counts))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.grid(axis="y", which="both")
        set_name(panels[0, 0].yaxis.label, name)
        keys, names = panels[0, 0].get_legend_handles_labels()
        figure.legend(keys, names, loc="outside lower center", ncols=len(names))
        title = f"Distance over evaluations; grey: within {100 * NEAR:.0f} % of the converged {converged:.3g}"
        figure.suptitle(title, x=0.01, ha="left")


def guidance_figure(rows: Sequence[dict[str, Any]], judge: float, name: str, path: Path) -> None:
    """Write agreement with the label, precision, coverage and the distance over the guidance scale.

    Args:
        rows: One per scale: scale, agreement, coverage, precision, score (the distance).
        judge: The accuracy of the classifier on real pictures.
        name: The name of the distance.
        path: The file of the PNG.
    """
    scales = [row["scale"] for row in rows]
    curves = {"agreement": "agreement with the label", "precision": "precision", "coverage": "coverage of the data"}
    with drawing(path, 9, 4.2, 1, 2) as (figure, (left, right)):
        for (key, label), colour in zip(curves.items(), (FLOW, OTHER, DATA), strict=True):
            left.plot(scales, [row[key] for row in rows], color=colour, marker="o", ms=4, label=label)
        left.axhline(judge, color=FLOW, lw=0.8, ls=":", label="accuracy of the classifier on real pictures")
        left.set(ylabel="share", ylim=(0, 1.02), title="quality and diversity")
        figure.legend(loc="outside lower left", ncols=2, fontsize=9)
        right.plot(scales, [row["score"] for row in rows], color=FLOW, marker="o", ms=4)
        right.set(ylim=(0, None), title="distance to the data")
        set_name(right.yaxis.label, name)
        for axes in (left, right):
            axes.set_xlabel("guidance scale (1: no guidance)")
            axes.grid(axis="y", color=FAINT)
