"""`flowimg sample`: samples of a run's field, from seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from flowimg.config import Sample, SettingsError, nearest
from flowimg.jobs.draw import draw, show, turns
from flowimg.jobs.folder import Trained, check_guidance, open_run
from flowimg.jobs.machine import alone, autocast, pick_device
from flowimg.sampling.generate import to_uint8

GRID = 400
"""Samples in the grid at most; the files hold all."""


def sample(settings: Sample) -> None:
    """Draw samples, write them and a grid of them, and say where they are."""
    alone("sample")
    device = pick_device()
    run = open_run(settings.run, settings.weights, settings.step, device)
    points = run.config.data.kind == "points"
    label = _label(settings, run)
    check_guidance(settings.guidance, run.facts, run.config)
    seeds = range(settings.seed, settings.seed + settings.count)
    labels = turns(seeds, run.facts.classes) if label is None else torch.full((len(seeds),), label)

    facts = {
        "run": settings.run,
        "step": run.step,
        "weights": settings.weights,
        "seed": settings.seed,
        "count": settings.count,
        "label": None if label is None else run.facts.classes[label],
        "solver": settings.solver,
        "num_steps": settings.num_steps,
        "guidance": settings.guidance,
        "format": settings.format,
        "precision": settings.precision,
    }
    out = _folder(settings, run, facts)
    with autocast(device, settings.precision):
        samples, nfe = draw(
            run.field, run.config, run.facts, settings, seeds, settings.batch_size, labels=labels, bar=True
        )

    _write(out, samples, labels, seeds, settings.format, points)
    (out / "samples.json").write_text(json.dumps({**facts, "nfe": nfe}, indent=1) + "\n")
    kept = None if labels is None else labels[:GRID]
    show(samples[:GRID] if not points else samples, kept, run.config, out / "grid.png", f"step {run.step}")
    print(f"{len(samples)} samples of step {run.step}, {nfe} evaluations each: {out}")
    print(f"the grid: {out / 'grid.png'}")


def _label(settings: Sample, run: Trained) -> int | None:
    """The number of the class that was asked for by number or name."""
    if settings.label is None:
        return None
    classes = list(run.facts.classes)
    if not classes:
        raise SettingsError(f"--label {settings.label} needs a conditional run, and {settings.run} is not one")
    if str(settings.label) in classes:
        return classes.index(str(settings.label))
    if str(settings.label).isdecimal() and int(settings.label) < len(classes):
        return int(settings.label)
    raise SettingsError(
        f"--label {settings.label} is no class of {settings.run}: {nearest(str(settings.label), classes)}"
    )


def _folder(settings: Sample, run: Trained, facts: dict[str, Any]) -> Path:
    """Where to write: a folder that is new, empty, or holds these very samples."""
    name = f"step_{run.step:08d}_{settings.weights}_{settings.solver}{settings.num_steps}"
    name += f"_seed{settings.seed}x{settings.count}"
    name += "" if facts["label"] is None else f"_class{facts['label']}"
    name += "" if settings.precision == "fp32" else f"_{settings.precision}"
    name += "" if settings.format == "png" else f"_{settings.format}"
    name += "" if settings.guidance == 1 else f"_guidance{settings.guidance:g}"
    out = Path(settings.out) if settings.out else run.folder.path / "generated" / name
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file: name a folder")
    if out.exists() and any(out.iterdir()):
        try:
            before = json.loads((out / "samples.json").read_text())
        except (OSError, ValueError):
            before = {}
        if {name: before.get(name) for name in facts} != facts:
            raise SettingsError(f"--out {out} holds other files, which are not overwritten: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write(out: Path, samples: Tensor, labels: Tensor | None, seeds: range, form: str, points: bool) -> None:
    """Write the samples: one PNG a picture, or one array: (N, H, W, C) uint8, points (N, 2) float32."""
    array = samples.numpy() if points else rearrange(to_uint8(samples), "n c h w -> n h w c").numpy()
    if form == "npy":
        np.save(out / "samples.npy", array)
    elif form == "npz":
        arrays: dict[str, Any] = {"samples": array, "seeds": np.array(seeds)}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        np.savez_compressed(out / "samples.npz", **arrays)
    elif not points:  # a point is no picture: the figure shows them all
        from PIL import Image

        for seed, pixels in zip(seeds, array, strict=True):
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out / f"{seed:06d}.png")
