"""Recipes for Fashion-MNIST against each other: one network, one loop, the same pictures seen.

    python benchmarks/quality.py FOLDER OUT recipes      ours, torchcfm's, Meta's; three learning rates each
    python benchmarks/quality.py FOLDER OUT seeds        the three at their best rates, three seeds
    python benchmarks/quality.py FOLDER OUT ablation     one change of ours at a time, three seeds, fewer pictures
    python benchmarks/quality.py FOLDER OUT precision    ours in fp32 and bf16, three seeds

FOLDER holds the parquet files of the data set. What is trained or evaluated already is not again, so several may run
side by side, each with its share: --of 2 --part 0. At the end, or with --table, the table.

Run with OMP_NUM_THREADS=1: CPU seconds are then those of one core.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from timed import cpu_seconds, scores_of

from flowimg.config import Config, Evaluate, validate

PICTURES, FEW = 172_800, 43_200
"""Pictures seen: in about 20 minutes of one core, and in the ablation."""
SAMPLES, GLANCE = 5000, 1000
"""Samples that a recipe is judged by, and those that tell which of its weights, raw or averaged, are the better."""
HOW = {"solver": "ab2", "num_steps": 25, "precision": "bf16"}
"""How samples are drawn, for every run alike."""

# what features.md has of each: batch and learning rate are scaled to the budget, warm-ups to the same share of it
TORCHCFM = {
    "batch": 128, "times": {"kind": "uniform", "stratified": False}, "dropout": 0.1, "warmup": 0.0125,
    "optim": {"schedule": "constant", "clip": 1.0, "ema": 0.9999},
}  # fmt: skip
META = {
    "batch": 64, "times": {"kind": "skewed", "stratified": False}, "dropout": 0.3, "warmup": 0.0,
    "optim": {"betas": [0.9, 0.95], "weight_decay": 0.01, "schedule": "constant", "clip": None, "ema": 0.999},
}  # fmt: skip
OURS = {
    "batch": 64, "times": {"kind": "logit_normal"}, "dropout": 0.0, "warmup": 0.02,
    "optim": {"betas": [0.9, 0.99], "schedule": "cosine", "clip": 1.0, "ema": 0.995},
}  # fmt: skip
RECIPES = {"ours": OURS, "torchcfm": TORCHCFM, "meta": META}
RATES = {"ours": (1e-3, 2e-3, 4e-3), "torchcfm": (5e-4, 1e-3, 2e-3), "meta": (5e-4, 1e-3, 2e-3)}
BEST = {"ours": 2e-3, "torchcfm": 1e-3, "meta": 1e-3}
"""The best of those rates, by what was measured."""


def plan(source: str, out: Path, name: str, recipe: dict[str, Any], rate: float, seed: int, **change: Any) -> Config:
    """The run of a recipe."""
    pictures, batch = change.pop("pictures", PICTURES), recipe["batch"]
    steps = pictures // batch
    values = {
        "run": str(out / f"{name}_{rate:g}_seed{seed}"),
        "seed": seed,
        "data": {
            "kind": "images", "source": source, "labels": False, "size": 32, "resize": "keep",
            "background": [0, 0, 0], "held_out": 1000,
        },
        "times": recipe["times"],
        "field": {
            "kind": "unet", "channels": [32, 64, 96, 128], "layers": 1, "attention": [],
            "dropout": recipe["dropout"], **change.pop("field", {}),
        },
        "optim": {**recipe["optim"], "lr": rate, "warmup": round(steps * recipe["warmup"])},
        "train": {
            "steps": steps, "batch_size": batch, "precision": "bf16", "log_every": max(1, steps // 15),
            "sample_every": steps, "checkpoint_every": max(1, steps // 3), "keep": 2, **change.pop("train", {}),
        },
        "grid": {"count": 64, "num_steps": 20},
        "figures": False,
        **change,
    }  # fmt: skip
    return validate(Config, values, name)


def changed(**change: Any) -> dict[str, Any]:
    """Our recipe with some of its parts in another way."""
    return {**OURS, **change, "optim": {**OURS["optim"], **change.get("optim", {})}}


ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ours": (OURS, {}),
    "uniform times": (changed(times={"kind": "uniform"}), {}),
    "skewed times": (changed(times={"kind": "skewed"}), {}),
    "times not stratified": (changed(times={"kind": "logit_normal", "stratified": False}), {}),
    "times shifted to noise (2)": (changed(times={"kind": "logit_normal", "shift": 2.0}), {}),
    "minibatch OT, blocks of 64": (OURS, {"coupling": {"kind": "ot", "block": 64}}),
    "dropout 0.1": (changed(dropout=0.1), {}),
    "output not from zero": (OURS, {"field": {"zero_output": False}}),
    "constant rate": (changed(optim={"schedule": "constant"}), {}),
    "linear decay": (changed(optim={"schedule": "linear"}), {}),
    "weight decay 0.01": (changed(optim={"weight_decay": 0.01}), {}),
    "batch 32": (changed(batch=32), {}),
    "batch 128": (changed(batch=128), {}),
}


def runs(what: str, source: str, out: Path) -> list[tuple[str, Config]]:
    """Names and runs, seeds interleaved."""
    if what == "recipes":
        return [
            (f"{name}, learning rate {rate:g}", plan(source, out, name, RECIPES[name], rate, 0))
            for place in range(3)
            for name in RECIPES
            for rate in [RATES[name][place]]
        ]
    if what == "seeds":
        return [
            (name, plan(source, out, name, RECIPES[name], BEST[name], seed)) for seed in (0, 1, 2) for name in RECIPES
        ]
    if what == "precision":
        return [
            (form, plan(source, out / form, "ours", OURS, BEST["ours"], seed, pictures=FEW, train={"precision": form}))
            for seed in (0, 1, 2)
            for form in ("bf16", "fp32")
        ]
    return [
        (name, plan(source, out / name.replace(" ", "_"), "few", recipe, BEST["ours"], seed, pictures=FEW, **more))
        for seed in (0, 1, 2)
        for name, (recipe, more) in ABLATIONS.items()
    ]


def measure(config: Config, samples: int) -> dict[str, Any]:
    """CPU seconds, better weights and their distance; trained and evaluated where that is not done."""
    spent = cpu_seconds(config)

    def distance(weights: str, count: int) -> float:
        return scores_of(Evaluate(run=str(config.run), weights=weights, count=count, **HOW))["frechet"]

    better = min(("ema", "raw"), key=lambda weights: distance(weights, min(samples, GLANCE)))
    return {"frechet": distance(better, samples), "weights": better, "cpu": spent}


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: mean and range over seeds, and CPU seconds."""
    lines = ["| | Fréchet distance | range | weights | CPU seconds |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in rows):
        mine = [found for other, found in rows if other == name]
        distances = [found["frechet"] for found in mine]
        kinds = " and ".join(sorted({found["weights"] for found in mine}))
        seconds = statistics.mean(found["cpu"] for found in mine)
        spread = f"{min(distances):.2f} to {max(distances):.2f}" if len(mine) > 1 else "one seed"
        lines.append(f"| {name} | {statistics.mean(distances):.2f} | {spread} | {kinds} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=["recipes", "seeds", "ablation", "precision"])
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    todo = runs(given.what, given.source, given.out)
    rows = []
    for number, (name, config) in enumerate(todo):
        there = (Path(str(config.run)) / "cpu_seconds.json").exists()
        if (given.table and not there) or (not given.table and number % given.of != given.part):
            continue
        rows.append((name, measure(config, given.samples)))
        print(f"{name}, seed {config.seed}: {rows[-1][1]}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
