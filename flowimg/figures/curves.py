"""Curves of training: the loss beside its irreducible part, the loss over flow time, and the course of the run.

A record is a line of RUN/metrics.jsonl. The irreducible loss is that of the best possible field
(`flowimg.flow.irreducible`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowimg.figures.letters import set_name
from flowimg.figures.style import DATA, FLOW, NOISE, OF_TIME, drawing, line_style
from flowimg.flow.irreducible import Irreducible

GROUPS = 24
"""The maximum number of points on the curve of the reducible loss."""
DOTTED = 12
"""Lines of at most this number of values have a dot on each."""
Records = Sequence[dict[str, Any]]
Line = tuple[list[float], list[float]]


def loss_figure(records: Records, irreducible: Irreducible | None, path: Path) -> None:
    """Write the loss over steps and, if the irreducible loss is known, how far the loss is above it.

    Args:
        records: Lines of metrics, by step.
        irreducible: The irreducible loss, or None if it is not known.
        path: The file of the PNG.
    """
    steps, loss = series(records, "loss")
    known = irreducible if loss else None
    with drawing(path, 9, 4, 1, 2 if known else 1, squeeze=False) as (figure, panels):
        left = panels[0, 0]
        left.plot(steps, loss, color=FLOW, label="training")
        if held_out := any("held_out_loss_ema" in record for record in records):
            label = "held-out data, EMA weights, even times"
            _plot(left, series(records[1:], "held_out_loss_ema"), color=DATA, ls="--", label=label)
        title = "training and held-out loss" if held_out else "training loss"
        left.set(xlabel="step", ylabel="loss (mean square error of $v$)", title=title)
        left.set_ylim(0, 1.35 * left.get_ylim()[1])
        left.grid(axis="y")
        left.legend(loc="upper right")
        if known:
            _grey_part(left, known)
            _reducible(panels[0, 1], (steps, loss), known)
            share = 100 * known.mean / loss[-1]
            percent = f"{share:.0f} %" if share < 99.5 else "Nearly all"
            figure.suptitle(f"{percent} of the loss is irreducible", x=0.02, ha="left")


def _grey_part(axes: Axes, irreducible: Irreducible) -> None:
    """Shade the irreducible part of the loss, and name it inside the shade or, if that is too low, above it."""
    axes.axhspan(0, irreducible.mean, color=NOISE, alpha=0.22, lw=0)
    high = irreducible.mean > 0.25 * axes.get_ylim()[1]
    axes.text(
        0.5, irreducible.mean * (0.5 if high else 1), f"{irreducible.of}:\n{irreducible.mean:.3f} of the training loss",
        ha="center", va="center" if high else "bottom", transform=axes.get_yaxis_transform(), fontsize=9,
        bbox=None if high else {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
    )  # fmt: skip


def _reducible(axes: Axes, line: Line, irreducible: Irreducible) -> None:
    """Plot the loss above its irreducible part, on a logarithmic scale."""
    # the loss of a record is a mean over random draws and jitters; means over several records show the trend
    groups = np.array_split(np.array(line), min(GROUPS, len(line[0])), axis=1)
    steps, means = np.array([group.mean(axis=1) for group in groups]).T
    above = means - irreducible.mean
    axes.plot(steps[above > 0], above[above > 0], color=FLOW, marker=".", lw=1)
    axes.set(xlabel="step", ylabel="training loss above the grey part", yscale="log", title="reducible loss")
    jitter = float(np.diff(means[len(means) // 2 :]).std()) / 2**0.5 if len(means) > 4 else 0.0
    if jitter:
        axes.set_ylim(jitter / 3, None)
        axes.axhspan(jitter / 3, jitter, color=NOISE, alpha=0.22, lw=0)
        axes.text(0.03, jitter * 0.9, "jitter of the loss", transform=axes.get_yaxis_transform(), va="top")
    axes.grid(which="both", axis="y")


def loss_by_t_figure(records: Records, irreducible: Irreducible | None, path: Path) -> None:
    """Write the loss over flow time at up to six steps, early to late, and the irreducible loss."""
    lines = [record for record in records if record.get("loss_by_t")]
    chosen = sorted({round(p) for p in np.geomspace(1, len(lines), 6) - 1}) if lines else []
    with drawing(path, 6.4, 4.2) as (_, axes):
        for number, record in enumerate(lines[row] for row in chosen):
            values = np.array(record["loss_by_t"], dtype=float)
            colour = OF_TIME(0.25 + 0.75 * number / max(len(chosen) - 1, 1))
            axes.plot(_middles(len(values)), values, color=colour, marker="o", ms=3, label=f"step {record['step']:,}")
        if irreducible:
            by_t = irreducible.by_t
            axes.fill_between(_middles(len(by_t)), 0, by_t, color=NOISE, alpha=0.22, lw=0, label=irreducible.of)
        axes.set(xlabel="flow time $t$: 0 is noise, 1 is data", ylabel="loss", xlim=(0, 1), ylim=(0, None))
        axes.set_title("loss over flow time")
        axes.grid(axis="y")
        if chosen or irreducible:
            axes.legend(fontsize=8)


def _middles(count: int) -> np.ndarray:
    """The middles of the intervals that divide [0, 1] evenly."""
    return (np.arange(count) + 0.5) / count


def training_figure(records: Records, path: Path) -> None:
    """Write learning rate, gradient norm and speed over steps, and what else is known of the hardware's utilisation."""
    known = {key: name for key, name in TRACES.items() if key in USUAL or series(records, key)[0]}
    rows = -(-len(known) // 3)
    with drawing(path, 9, 0.2 + 2.9 * rows, rows, 3, squeeze=False) as (_, panels):
        for axes in panels.flat[len(known) :]:
            axes.set_axis_off()
        for axes, (key, name) in zip(panels.flat, known.items(), strict=False):
            _plot(axes, series(records, key), color=FLOW)
            _trace(axes, name)


def _plot(axes: Axes, line: Line, **style: Any) -> None:
    """Plot a line, with dots if it is short, so that a single value is visible."""
    axes.plot(*line, marker="." if len(line[0]) <= DOTTED else None, **style)


def compare_figure(runs: dict[str, Records], path: Path) -> None:
    """Write the held-out loss, gradient norm and speed of several runs over the number of samples seen."""
    traces = {"held_out_loss_ema": "held-out loss", **{key: TRACES[key] for key in ("grad_norm", "samples_per_second")}}
    with drawing(path, 9, 3.6, 1, 3) as (figure, panels):
        for axes, (key, name) in zip(panels, traces.items(), strict=True):
            for number, records in enumerate(runs.values()):
                _plot(axes, series(records, key, "samples"), **line_style(number))
            _trace(axes, name)
            axes.set_xlabel("samples seen")
        keys = [Line2D([], [], **line_style(number)) for number in range(len(runs))]
        legend = figure.legend(keys, ["run"] * len(keys), loc="outside lower left", ncols=min(len(keys), 3))
        for text, name in zip(legend.get_texts(), runs, strict=True):
            set_name(text, name)


TRACES = {
    "lr": "learning rate", "grad_norm": "gradient norm", "samples_per_second": "samples/s",
    "utilisation": "share of peak speed", "data_wait": "share of time waiting for data",
    "peak_memory_mib": "peak memory, MiB",
}  # fmt: skip
"""The panels of `training_figure`: keys of records and their titles."""
USUAL = ("lr", "grad_norm", "samples_per_second")
"""The panels that are drawn even when empty."""


def series(records: Records, key: str, over: str = "step") -> Line:
    """The steps (or samples) and values of the records that have this value."""
    present = [record for record in records if record.get(key) is not None]
    return [record[over] for record in present], [record[key] for record in present]


def _trace(axes: Axes, name: str) -> None:
    axes.set(xlabel="step", ylim=(0, None), title=name)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """A number on an axis: 0.005, 120k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
