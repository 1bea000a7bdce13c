"""`flowimg invert`: from pictures back to their noise, and to pictures again."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save_file

from flowimg.conditions.labels import labelled
from flowimg.errors import SettingsError
from flowimg.evaluation.record import finite
from flowimg.figures.samples import check_grid, save_grid
from flowimg.jobs.drawing import label_of, new_folder, opened_on_pictures, sampler_of
from flowimg.jobs.given import given_pictures
from flowimg.jobs.sample import how_name
from flowimg.runs.opening import check_null
from flowimg.settings.verbs import Invert


def invert(settings: Invert) -> dict[str, Any]:
    """Follow pictures to their noise and back; write the noise, and a grid of all three."""
    if not settings.pictures:
        raise SettingsError("flowimg invert needs pictures: flowimg invert RUN PICTURE ...")
    settings, run = opened_on_pictures("invert", settings)
    label = label_of(settings, run)
    if label is None:
        check_null(run, "give --label")
    check_grid(run.space, 3 * len(settings.pictures), 3, "give fewer pictures")
    space: Any = run.space
    x_1 = given_pictures(run, settings.pictures)
    out = new_folder(settings.out, run.folder.generated / f"{how_name(settings, run, label)}_inverted")
    cond, sampler = labelled(label, len(x_1), run.facts.classes), sampler_of(run, settings)
    (_, x_0), nfe = sampler.follow(x_1, cond, back=True)
    again = sampler.follow(x_0, cond).states[-1]
    save_file({"x_0": x_0}, out / "noise.safetensors")
    seen = torch.cat([x_1, x_0 / 3, again])  # nearly all of the noise is within three standard deviations
    save_grid(space, rearrange(seen, "(kind n) c h w -> (n kind) c h w", kind=3), out / "grid.png", 3)
    print(f"{'picture':<40} noise mean, std   back, mean error in grey levels")
    told = []
    for name, there, back, z in zip(settings.pictures, x_1, again, x_0, strict=True):
        off = float((there - back).abs().mean() * space.half)
        mean, std = float(z.mean()), float(z.std())
        told.append(finite({"picture": name, "noise_mean": mean, "noise_std": std, "error": off}))
        print(f"{Path(name).name[:40]:<40} {mean:+.3f}, {std:.3f}     {off:.3f}")
    print(f"{nfe} evaluations each way; noise: {out / 'noise.safetensors'}")
    print(f"the grid (picture, noise, back): {out / 'grid.png'}")
    where = {"folder": str(out), "noise": str(out / "noise.safetensors"), "grid": str(out / "grid.png")}
    return {"run": settings.run, "step": run.step, **where, "nfe": nfe, "pictures": told}
