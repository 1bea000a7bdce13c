"""Curves of training: the loss beside what of it can never be learned, and how the run went.

A record is a line of RUN/metrics.jsonl, a floor the loss of the best of all fields (`flowimg.flow.irreducible`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowimg.figures.style import DATA, FLOW, NOISE, OF_TIME, SERIES, drawing
from flowimg.flow.irreducible import Irreducible

GROUPS = 24
"""Points of the curve of what is left to learn, at most."""
DOTTED = 12
"""Values of a line at most that are marked one by one."""
Records = Sequence[dict[str, Any]]


def loss_figure(records: Records, floor: Irreducible | None, path: Path) -> None:
    """Write the loss over steps as everybody plots it and, where there is a floor, what is left above it.

    Args:
        records: Lines of metrics, by step.
        floor: The part that cannot be learned, or None where it is not known.
        path: The PNG's file.
    """
    steps, loss = series(records, "loss")
    explained = floor is not None and len(loss) > 0
    with drawing(path, 9, 4, 1, 2 if explained else 1, squeeze=False) as (figure, panels):
        left = panels[0, 0]
        left.plot(steps, loss, color=FLOW, label="training")
        held_out = series(records[1:], "held_out_loss_ema")
        left.plot(
            *held_out,
            color=DATA,
            ls="--",
            marker=_dot(held_out[0]),
            label="held out, averaged weights, even times",
        )
        left.set(xlabel="step", ylabel="loss (mean square error of $v$)")
        left.set_ylim(0, 1.35 * left.get_ylim()[1])
        left.grid(axis="y")
        left.legend(loc="upper right")
        left.set_title("what one sees")
        if floor is None or not explained:
            return
        left.axhspan(0, floor.mean, color=NOISE, alpha=0.22, lw=0)
        high = floor.mean > 0.25 * left.get_ylim()[1]  # else the words stand above the grey, not in it
        left.text(
            0.5, floor.mean * (0.5 if high else 1), f"{floor.of}:\n{floor.mean:.3f} of the training loss", ha="center",
            va="center" if high else "bottom", transform=left.get_yaxis_transform(), fontsize=9,
            bbox=None if high else {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
        )  # fmt: skip
        right = panels[0, 1]
        # a line's loss is a mean over random draws and jitters: means of several lines show what it does
        groups = np.array_split(np.array([steps, loss]), min(GROUPS, len(loss)), axis=1)
        middle, means = np.array([group.mean(axis=1) for group in groups]).T
        above = means - floor.mean
        noise = float(np.diff(means[len(means) // 2 :]).std()) / 2**0.5 if len(means) > 4 else 0.0
        right.plot(middle[above > 0], above[above > 0], color=FLOW, marker=".", lw=1)
        right.set(xlabel="step", ylabel="training loss above the grey part", yscale="log")
        if noise:
            right.set_ylim(noise / 3, None)
            right.axhspan(noise / 3, noise, color=NOISE, alpha=0.22, lw=0)
            right.text(
                0.03,
                noise * 0.9,
                "jitter of the loss: no more is seen",
                transform=right.get_yaxis_transform(),
                va="top",
            )
        right.grid(which="both", axis="y")
        right.set_title("what is left to learn")
        share = 100 * floor.mean / loss[-1]
        said = f"{share:.0f} %" if share < 99.5 else "nearly all"
        figure.suptitle(f"The loss stays high, and {said} of it is out of any field's reach", x=0.02, ha="left")


def loss_by_t_figure(records: Records, floor: Irreducible | None, path: Path) -> None:
    """Write the loss over flow time, a line for each of some steps from early to late, above the floor."""
    lines = [record for record in records if record.get("loss_by_t")]
    some = [lines[place] for place in sorted({round(p) for p in np.geomspace(1, len(lines), 6) - 1})] if lines else []
    with drawing(path, 6.4, 4.2) as (_, axes):
        for place, record in enumerate(some):
            values = np.array(record["loss_by_t"], dtype=float)
            middle = (np.arange(len(values)) + 0.5) / len(values)
            colour = OF_TIME(0.25 + 0.75 * place / max(len(some) - 1, 1))
            axes.plot(middle, values, color=colour, marker="o", ms=3, label=f"step {record['step']:,}")
        if floor:
            middle = (np.arange(len(floor.by_t)) + 0.5) / len(floor.by_t)
            axes.fill_between(middle, 0, floor.by_t, color=NOISE, alpha=0.22, lw=0, label=floor.of)
        axes.set(xlabel="flow time $t$: 0 is noise, 1 is data", ylabel="loss", xlim=(0, 1), ylim=(0, None))
        axes.set_title("where along the way the loss is")
        axes.grid(axis="y")
        if some or floor:
            axes.legend(fontsize=8)


def training_figure(records: Records, path: Path) -> None:
    """Write over steps how the run went, and what it made of its machine as far as that is known."""
    known = {key: name for key, name in TRACES.items() if key in USUAL or series(records, key)[0]}
    rows = -(-len(known) // 3)
    with drawing(path, 9, 0.2 + 2.9 * rows, rows, 3, squeeze=False) as (_, panels):
        for axes in panels.flat[len(known) :]:
            axes.set_axis_off()
        for axes, (key, name) in zip(panels.flat, known.items(), strict=False):
            line = series(records, key)
            axes.plot(*line, color=FLOW, marker=_dot(line[0]))
            _trace(axes, name)


def _dot(places: Sequence[float]) -> str | None:
    """What marks the values of a line: of few they are seen, and one alone is not lost."""
    return "." if len(places) <= DOTTED else None


def compare_figure(runs: dict[str, Records], path: Path) -> None:
    """Write the held-out loss, gradient norm and speed of several runs over the samples they have seen."""
    with drawing(path, 9, 3.6, 1, 3) as (figure, panels):
        traces = {"held_out_loss_ema": "held-out loss", "grad_norm": TRACES["grad_norm"]}
        traces["samples_per_second"] = TRACES["samples_per_second"]
        for axes, (key, name) in zip(panels, traces.items(), strict=True):
            for place, records in enumerate(runs.values()):
                line = series(records, key, "samples")
                axes.plot(*line, color=SERIES[place % len(SERIES)], ls=_dash(place), marker=_dot(line[0]))
            _trace(axes, name)
            axes.set_xlabel("samples seen")
        keys = [Line2D([], [], color=SERIES[p % len(SERIES)], ls=_dash(p), label=name) for p, name in enumerate(runs)]
        figure.legend(handles=keys, loc="outside lower left", ncols=min(len(keys), 3))


TRACES = {
    "lr": "learning rate", "grad_norm": "gradient norm", "samples_per_second": "samples/s",
    "utilisation": "share of peak speed", "data_wait": "share of time in data",
    "peak_memory_mib": "peak memory, MiB",
}  # fmt: skip
"""What is plotted of how a run went, and how it is called."""
USUAL = ("lr", "grad_norm", "samples_per_second")


def series(records: Records, key: str, over: str = "step") -> tuple[list[float], list[float]]:
    """The steps (or samples) and values of the records that have this value."""
    there = [(record[over], record[key]) for record in records if record.get(key) is not None]
    return [x for x, _ in there], [y for _, y in there]


def _trace(axes: Axes, name: str) -> None:
    axes.set(xlabel="step", ylim=(0, None))
    axes.set_title(name)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _short(value: float) -> str:
    """A number on an axis: 0.005, 120k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _dash(place: int) -> str:
    """Lines differ in dash as well as in colour."""
    return ("-", "--", ":", "-.")[place % 4]
