"""`flowimg ema`: averages of a run's weights, of any length, made after it; and how near each can be come by."""

from typing import Any

import torch

from flowimg.files import written
from flowimg.machine.processes import alone
from flowimg.runs.folder import find_run
from flowimg.runs.opening import open_run, weights_name
from flowimg.settings.verbs import Ema
from flowimg.training.averages import LENGTHS
from flowimg.training.checkpoint import save_tensors
from flowimg.training.snapshots import MOST_OFF, find_kept, percent, plan

LISTED = (0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25)
"""Lengths that are listed where none is asked for."""


def ema(settings: Ema) -> dict[str, Any]:
    """Say how near each length can be come by; write those that were asked for, and say what takes them."""
    alone("ema")
    folder = find_run(settings.run)
    kept = find_kept(folder.snapshots, settings.step)
    both = " and ".join(f"{length:g}" for length in LENGTHS)
    print(f"{settings.run}, step {kept.step}: averages of lengths {both} were kept at {len(kept.steps)} steps up to it")
    print("  length   its profile is off by")
    made: list[dict[str, Any]] = []
    for length in settings.length or LISTED:
        error = plan(kept, length).error
        made.append({"length": length, "error": error, "able": error <= MOST_OFF, "file": None})
        print(f"  {length:<8g} {percent(error)}{'' if error <= MOST_OFF else '   too far off to be made'}")
    for each in made if settings.length else ():
        run = open_run(settings.run, each["length"], kept.step, torch.device("cpu"))
        path = folder.path / "averages" / f"{weights_name(each['length'])}_step_{kept.step:08d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        with written(path, synced=True) as aside:
            save_tensors(aside, run.field.state_dict())
        each["file"] = str(path)
        print(f"written   {path}")
    able = [each["length"] for each in made if each["able"]] or LENGTHS
    how = f"{settings.run} --weights {able[len(able) // 2]:g}" + (f" --step {kept.step}" if settings.step else "")
    for verb in ("sample", "evaluate", "export"):
        print(f"use one   flowimg {verb} {how}{' FOLDER' if verb == 'export' else ''}")
    return {"run": settings.run, "step": kept.step, "steps": kept.steps, "lengths": made}
