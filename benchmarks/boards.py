"""Recipes for the checkerboard against each other, at fixed steps.

    python benchmarks/boards.py OUT short       30 s: configs/checkerboard.yaml, Meta's and torchcfm's recipes
    python benchmarks/boards.py OUT long        3 min: configs/checkerboard_long.yaml, the same two
    python benchmarks/boards.py OUT fine        3 min, 8 x 8 cells: configs/checkerboard_fine.yaml, the same two
    python benchmarks/boards.py OUT ablation    30 s: one change of configs/checkerboard.yaml at a time
    python benchmarks/boards.py OUT full        Meta's recipe for all its 20,001 steps

Three seeds each (--seeds 0 1 2). What is trained already is not again. Run with OMP_NUM_THREADS=1: the steps are
chosen for about 30 and 180 CPU seconds of one core. Scores are of 20,000 samples by 100 Euler steps.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from timed import cpu_seconds, scores_of

from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import load, validate
from flowimg.settings.run import Config

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = {"short": "checkerboard", "long": "checkerboard_long", "fine": "checkerboard_fine"}

# Meta's notebook: 4 hidden layers of 512, Swish, Adam 1e-3, batch 4096, uniform times, no average
META = {
    "field": {"kind": "mlp", "width": 512, "depth": 4, "zero_output": False},
    "optim": {"lr": 1e-3, "schedule": "constant", "clip": None, "ema": 0.0},
    "times": {"kind": "uniform", "stratified": False},
    "batch": 4096,
}
# torchcfm's 2D tutorials: Adam 1e-3, batch 256, 20,000 steps; on our network without sines, four hidden layers of 128
# (theirs: three of 64, SELU, sigma 0.1)
TORCHCFM = {
    "field": {"kind": "mlp", "width": 128, "depth": 4, "zero_output": False},
    "optim": {"lr": 1e-3, "schedule": "constant", "clip": None, "ema": 0.0},
    "times": {"kind": "uniform", "stratified": False},
    "batch": 256,
}
STEPS = {"short": (300, 15_000), "long": (1850, 90_000), "fine": (1850, 90_000), "full": (20_001, 0)}
"""Of Meta's recipe, what two cores do in 30 s and 3 minutes, twice our CPU seconds; of torchcfm's, about as many."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "configs/checkerboard.yaml": {},
    "times not shifted": {"times.shift": 1.0},
    "times shifted by 0.3": {"times.shift": 0.3},
    "times not stratified": {"times.stratified": False},
    "logit-normal times": {"times": {"kind": "logit_normal"}},
    "skewed times": {"times": {"kind": "skewed"}},
    "minibatch OT, blocks of 256, equal seconds": {"coupling": {"kind": "ot", "block": 256}, "train.steps": 1340},
    "no sines of x": {"field.x_frequencies": 0},
    "no sines of t": {"field.t_frequencies": 0},
    "constant rate": {"optim.schedule": "constant"},
    "no average": {"optim.ema": 0.0},
    "dropout 0.1": {"field.dropout": 0.1},
    "output not from zero": {"field.zero_output": False},
    "weight decay 0.01": {"optim.weight_decay": 0.01},
    "beta2 0.99": {"optim.betas": [0.9, 0.99]},
    "batch 256, equal seconds": {"train.batch_size": 256, "train.steps": 13_700},
    "batch 1024, equal seconds": {"train.batch_size": 1024, "train.steps": 4_600},
    "muon, equal seconds": {"optim.kind": "muon", "train.steps": 4000},
    "width 64, equal seconds": {"field.width": 64, "train.steps": 16_200},
    "width 256, equal seconds": {"field.width": 256, "train.steps": 3_000},
}


def ours(name: str, out: Path, label: str, seed: int, change: dict[str, Any]) -> Config:
    """A settings file with some keys in another way."""
    values = load(str(CONFIGS / f"{name}.yaml")).model_dump(mode="json")
    for key, value in change.items():
        *groups, last = key.split(".")
        inside = values
        for group in groups:
            inside = inside[group]
        inside[last] = value
    steps = values["train"]["steps"]
    return validate(
        Config, _quiet(values, out / f"{label}_{seed}".replace(" ", "_").replace("/", "_"), seed, steps), label
    )


def peer(recipe: dict[str, Any], cells: int, steps: int, out: Path, label: str, seed: int) -> Config:
    """Another's recipe in our loop."""
    values = {name: value for name, value in recipe.items() if name != "batch"}
    values |= {"data": {"kind": "points", "cells": cells}, "train": {"batch_size": recipe["batch"]}}
    return validate(Config, _quiet(values, out / f"{label}_{seed}", seed, steps), label)


def _quiet(values: dict[str, Any], run: Path, seed: int, steps: int) -> dict[str, Any]:
    often = {"steps": steps, "log_every": max(1, steps // 20), "sample_every": steps, "checkpoint_every": steps}
    return {
        **values, "run": str(run), "seed": seed, "figures": False, "train": {**values["train"], **often},
        "grid": {"count": 1000, "num_steps": 10},
    }  # fmt: skip


def runs(what: str, out: Path, seeds: list[int], recipes: list[str]) -> list[tuple[str, Config]]:
    """Names and runs, seeds interleaved."""
    out = out / what
    if what == "ablation":
        return [
            (name, ours("checkerboard", out, name, seed, change))
            for seed in seeds
            for name, change in ABLATIONS.items()
        ]
    cells = 8 if what == "fine" else 4
    meta, torchcfm = STEPS[what]
    found = []
    for seed in seeds:
        if what != "full" and "ours" in recipes:
            found.append((f"configs/{NAMES[what]}.yaml", ours(NAMES[what], out, "ours", seed, {})))
        if what != "full" and "torchcfm" in recipes:
            found.append(("torchcfm's recipe", peer(TORCHCFM, cells, torchcfm, out, "torchcfm", seed)))
        if "meta" in recipes:
            found.append(("Meta's recipe", peer(META, cells, meta, out, "meta", seed)))
    return found


def measure(config: Config) -> dict[str, float]:
    """CPU seconds and scores; trained and evaluated where that is not done."""
    cpu = cpu_seconds(config)
    scores = scores_of(Evaluate(run=str(config.run), weights="ema" if config.optim.ema else "raw"))
    return {**{name: scores[name] for name in ("off", "sw2", "mass_ratio")}, "steps": config.train.steps, "cpu": cpu}


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Markdown: mean and range over seeds."""
    lines = ["| | steps | CPU seconds | off, mean | range | sliced W2 | mass ratio |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in rows):
        mine = [found for other, found in rows if other == name]
        off = [100 * found["off"] for found in mine]
        mean = {key: statistics.mean(found[key] for found in mine) for key in mine[0]}
        lines.append(
            f"| {name} | {mean['steps']:,.0f} | {mean['cpu']:.0f} | {statistics.mean(off):.1f} % | "
            f"{min(off):.1f} to {max(off):.1f} | {mean['sw2']:.3f} | {mean['mass_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=["short", "long", "fine", "ablation", "full"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=["ours", "torchcfm", "meta"])
    given = parser.parse_args()
    rows = []
    for name, config in runs(given.what, given.out, given.seeds, given.recipes):
        rows.append((name, measure(config)))
        print(f"{name}, seed {config.seed}: {rows[-1][1]}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
