"""`flowimg interpolate`: pictures between the noises of several seeds."""

from itertools import pairwise
from typing import Any

import torch
from PIL import Image

from flowimg.conditions.labels import labelled
from flowimg.figures.samples import save_grid
from flowimg.jobs.drawing import label_of, new_folder, opened_on_pictures, sampler_of
from flowimg.jobs.sample import how_name
from flowimg.sampling.sampler import arc, noise
from flowimg.settings.verbs import Interpolate


def interpolate(settings: Interpolate) -> dict[str, Any]:
    """Draw a row of pictures for each pair of neighbouring seeds, and the grid of all rows."""
    settings, run = opened_on_pictures("interpolate", settings)
    label = label_of(settings, run)
    x_0 = torch.cat([arc(a, b, settings.frames) for a, b in pairwise(noise(settings.seeds, run.space.shape))])
    name = f"{how_name(settings, run, label)}_between_{'_'.join(str(seed) for seed in settings.seeds)}"
    out = new_folder(settings.out, run.folder.generated / name)
    first = run.facts.present[0] if label is None and run.facts.classes else label
    cond = labelled(first, len(x_0), run.facts.classes)
    states, nfe = sampler_of(run, settings).follow(x_0, cond)
    x_1 = states[-1]
    for old in out.glob("row*_frame*.png"):  # there may have been more frames the last time
        old.unlink()
    for number, picture in enumerate(run.space.rows(x_1).squeeze(-1).numpy()):
        row, frame = divmod(number, settings.frames)
        Image.fromarray(picture).save(out / f"row{row:02d}_frame{frame:03d}.png")
    save_grid(run.space, x_1, out / "grid.png", settings.frames)
    print(f"{len(x_1)} pictures between {len(settings.seeds)} seeds, {nfe} evaluations each: {out}")
    print(f"the grid: {out / 'grid.png'}")
    return {"run": settings.run, "step": run.step, "folder": str(out), "grid": str(out / "grid.png"), "nfe": nfe}
