"""`flowimg interpolate`: pictures between the noises of several seeds."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from flowimg.conditions.labels import labelled
from flowimg.figures.samples import check_grid, save_grid
from flowimg.jobs.drawing import label_of, new_folder, opened_on_pictures, sampler_of
from flowimg.jobs.sample import how_name
from flowimg.sampling.sampler import arc, noise
from flowimg.sampling.writers import SINGLE
from flowimg.settings.verbs import Interpolate

MAX_NAME = 120
"""Letters that seeds take in the name of a folder at most."""


def interpolate(settings: Interpolate) -> dict[str, Any]:
    """Draw a row of pictures for each pair of neighbouring seeds, and the grid of all rows."""
    settings, run = opened_on_pictures("interpolate", settings)
    label = label_of(settings, run)
    frames = settings.frames * (len(settings.seeds) - 1)
    check_grid(run.space, frames, settings.frames, "give fewer --frames or seeds")
    x_0 = torch.cat([arc(a, b, settings.frames) for a, b in pairwise(noise(settings.seeds, run.space.shape))])
    name = f"{how_name(settings, run, label)}_between_{_between(settings.seeds)}"
    out = new_folder(settings.out, run.folder.generated / name)
    first = run.facts.present[0] if label is None and run.facts.classes else label
    cond = labelled(first, len(x_0), run.facts.classes)
    # the noise that a solver draws on the way is one for all, so that neighbours stay alike
    states, nfe = sampler_of(run, settings).follow(x_0, cond, seeds=[settings.seeds[0]] * len(x_0))
    x_1 = states[-1]
    space: Any = run.space
    form = space.formats[0]
    for old in out.glob(f"row*_frame*.{SINGLE[form]}"):  # there may have been more frames the last time
        old.unlink()
    for number, picture in enumerate(space.rows(x_1).numpy()):
        row, frame = divmod(number, settings.frames)
        (out / f"row{row:02d}_frame{frame:03d}.{SINGLE[form]}").write_bytes(space.as_file(picture, form))
    save_grid(run.space, x_1, out / "grid.png", settings.frames)
    print(f"{len(x_1)} pictures between {len(settings.seeds)} seeds, {nfe} evaluations each: {out}")
    print(f"the grid: {out / 'grid.png'}")
    return {"run": settings.run, "step": run.step, "folder": str(out), "grid": str(out / "grid.png"), "nfe": nfe}


def _between(seeds: Sequence[int]) -> str:
    """The seeds in the name of a folder; of many their ends and a hash, as a name has 255 bytes at most."""
    every = "_".join(map(str, seeds))
    short = f"{seeds[0]}_to_{seeds[-1]}_{hashlib.sha256(every.encode()).hexdigest()[:12]}"
    return every if len(every) <= MAX_NAME else short
