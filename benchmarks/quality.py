"""Recipes for Fashion-MNIST against each other: one network, one loop, the same pictures seen.

    python benchmarks/quality.py FOLDER OUT recipes      ours, torchcfm's, Meta's; three learning rates each
    python benchmarks/quality.py FOLDER OUT seeds        the three at their best rates, three seeds
    python benchmarks/quality.py FOLDER OUT ablation     one change of ours at a time, three seeds, an eighth, 16 x 16
    python benchmarks/quality.py FOLDER OUT precision    ours in fp32 and bf16, three seeds, a quarter

The last two see so much of the pictures alone; the ablation has them at half the side, and three of the four levels.
FOLDER holds the parquet files of the data set. What is trained or evaluated already is not again, so several may run
side by side, each with its share: --of 2 --part 0. At the end, or with --table, the table.

Run with OMP_NUM_THREADS=1: CPU seconds are then those of one core.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from timed import cpu_seconds, scores_of

from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

PICTURES = 172_800
"""Pictures seen: in about 20 minutes of one core."""
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
    "optim": {"kind": "muon", "betas": [0.9, 0.99], "schedule": "cosine", "clip": 1.0, "ema": 0.995},
}  # fmt: skip
RECIPES = {"ours": OURS, "torchcfm": TORCHCFM, "meta": META}
RATES = {"ours": (1e-3, 2e-3, 4e-3), "torchcfm": (5e-4, 1e-3, 2e-3), "meta": (5e-4, 1e-3, 2e-3)}
"""Around the best of each, by what was measured."""
BEST = {"ours": 2e-3, "torchcfm": 1e-3, "meta": 1e-3}


def plan(source: str, out: Path, name: str, recipe: dict[str, Any], rate: float, seed: int, **change: Any) -> Config:
    """The run of a recipe."""
    pictures, batch = change.pop("pictures", PICTURES), recipe["batch"]
    steps = pictures // batch
    values = {
        "run": str(out / f"{name}_{rate:g}_seed{seed}"),
        "seed": seed,
        "data": {
            "kind": "images", "source": source, "labels": False, "size": 32, "resize": "keep",
            "background": [0, 0, 0], "held_out": 1000, **change.pop("data", {}),
        },
        "times": recipe["times"],
        "field": {
            "kind": "unet", "channels": [32, 64, 96, 128], "layers": 1, "attention": [],
            "dropout": recipe["dropout"], **change.pop("field", {}),
        },
        "optim": {"lr": rate, **recipe["optim"], "warmup": round(steps * recipe["warmup"])},
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


LENGTHS = (0.05, 0.1, 0.2)
"""Of averages made afterwards."""
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ours": (OURS, {"train": {"snapshots": 8}}),
    "AdamW": (changed(optim={"kind": "adamw"}), {}),
    "AdamW, equal seconds": (changed(optim={"kind": "adamw"}), {"pictures": 28_800}),
    "AdamW at 4e-3": (changed(optim={"kind": "adamw", "lr": 4e-3}), {}),
    "uniform times": (changed(times={"kind": "uniform"}), {}),
    "skewed times": (changed(times={"kind": "skewed"}), {}),
    "times not stratified": (changed(times={"kind": "logit_normal", "stratified": False}), {}),
    "times shifted to noise (2)": (changed(times={"kind": "logit_normal", "shift": 2.0}), {}),
    "cosmap weighting": (OURS, {"weighting": {"kind": "cosmap"}}),
    "flips": (OURS, {"data": {"flip": True}}),
    "augmentation 0.12": (OURS, {"data": {"augment": 0.12}}),
    "minibatch OT, blocks of 64": (OURS, {"coupling": {"kind": "ot", "block": 64}}),
    "dropout 0.1": (changed(dropout=0.1), {}),
    "output not from zero": (OURS, {"field": {"zero_output": False}}),
    "constant rate": (changed(optim={"schedule": "constant"}), {}),
    "linear decay": (changed(optim={"schedule": "linear"}), {}),
    "weight decay 0.01": (changed(optim={"weight_decay": 0.01}), {}),
    "batch 32": (changed(batch=32), {}),
    "batch 32, equal seconds": (changed(batch=32), {"pictures": 15_200}),
    "batch 128": (changed(batch=128), {}),
}


def runs(what: str, source: str, out: Path) -> list[tuple[str, Config, tuple[str | float, ...]]]:
    """Names, runs, and the weights of which the better are taken; seeds interleaved."""
    both = ("ema", "raw")
    if what == "recipes":
        return [
            (f"{name}, learning rate {rate:g}", plan(source, out, name, RECIPES[name], rate, 0), both)
            for name in RECIPES
            for rate in RATES[name]
        ]
    if what == "seeds":
        return [
            (name, plan(source, out, name, RECIPES[name], BEST[name], seed), both)
            for seed in (0, 1, 2)
            for name in RECIPES
        ]
    if what == "precision":
        how = {"pictures": PICTURES // 4}
        return [
            (
                form,
                plan(source, out / form, "ours", OURS, BEST["ours"], seed, train={"precision": form}, **how),
                ("ema",),
            )
            for seed in (0, 1, 2)
            for form in ("bf16", "fp32")
        ]
    found: list[tuple[str, Config, tuple[str | float, ...]]] = []
    for seed in (0, 1, 2):
        for name, (recipe, more) in ABLATIONS.items():
            folder = out / name.replace(" ", "_").replace(",", "")
            small = {
                "pictures": PICTURES // 8,
                **more,
                "data": {"size": 16, "resize": "pad", **more.get("data", {})},
                "field": {"channels": [32, 64, 128], **more.get("field", {})},
            }
            config = plan(source, folder, "few", recipe, BEST["ours"], seed, **small)
            found.append((name, config, ("ema",)))
            if name == "ours":
                found += [(f"average of length {length}", config, (length,)) for length in LENGTHS]
    return found


def measure(config: Config, candidates: tuple[str | float, ...], samples: int) -> dict[str, Any]:
    """CPU seconds, better weights and their distance; trained and evaluated where that is not done."""
    spent = cpu_seconds(config)

    def scores(weights: str | float, count: int) -> dict[str, Any]:
        return scores_of(Evaluate(run=str(config.run), weights=weights, count=count, **HOW))

    better = candidates[0]
    if len(candidates) > 1:
        better = min(candidates, key=lambda weights: scores(weights, min(samples, GLANCE))["frechet"])
    found = scores(better, samples)
    return {"frechet": found["frechet"], "weights": better, "cpu": spent, "features": found["features_sha256"]}


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: mean and range over seeds, and CPU seconds."""
    lines = ["| | Fréchet distance | range | weights | CPU seconds |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in rows):
        mine = [found for other, found in rows if other == name]
        distances = [found["frechet"] for found in mine]
        kinds = " and ".join(sorted({str(found["weights"]) for found in mine}))
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
    parser.add_argument("--samples", type=int, default=None, help="5,000; 1,000 in the ablation")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    samples = given.samples or (GLANCE if given.what == "ablation" else SAMPLES)
    todo = runs(given.what, given.source, given.out)
    rows = []
    order = list(dict.fromkeys(str(config.run) for _, config, _ in todo))  # one run is trained by one of them
    for name, config, weights in todo:
        there = (Path(str(config.run)) / "cpu_seconds.json").exists()
        mine = order.index(str(config.run)) % given.of == given.part
        if (given.table and not there) or not (given.table or mine):
            continue
        rows.append((name, measure(config, weights, samples)))
        print(f"{name}, seed {config.seed}: {rows[-1][1]}", flush=True)
    if len({found["features"] for _, found in rows}) > 1:
        raise SystemExit(
            "these were compared in different networks: keep FLOWIMG_CACHE, or delete their evaluations.jsonl"
        )
    print(table(rows))


if __name__ == "__main__":
    main()
