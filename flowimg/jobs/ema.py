"""`flowimg ema`: post-hoc EMAs of any length, and how accurately each can be reconstructed."""

from typing import Any

import torch

from flowimg.files import written
from flowimg.jobs.drawing import check_places
from flowimg.machine.processes import one_process
from flowimg.names import word
from flowimg.runs.folder import find_run
from flowimg.runs.opening import open_run, weights_name
from flowimg.settings.verbs import Ema
from flowimg.training.averages import LENGTHS
from flowimg.training.parts import save_tensors
from flowimg.training.snapshots import MOST_OFF, find_kept, percent, plan

LISTED = (0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25)
"""The lengths that are listed without --length."""


def ema(settings: Ema) -> dict[str, Any]:
    """Print the error of each length, write the requested averages, and print the commands that use them."""
    one_process("ema")
    folder = find_run(settings.run)
    if settings.length:
        check_places(folder.path / "averages" / "length.safetensors")
    kept = find_kept(folder.snapshots, settings.step)
    both = " and ".join(f"{length:g}" for length in LENGTHS)
    print(f"{settings.run}, step {kept.step}: averages of lengths {both} saved at {len(kept.steps)} steps up to it")
    print("  length   error of its profile")
    averages: list[dict[str, Any]] = []
    for length in settings.length or LISTED:
        error = plan(kept, length).error
        averages.append({"length": length, "error": error, "able": error <= MOST_OFF, "file": None})
        print(f"  {length:<8g} {percent(error)}{'' if error <= MOST_OFF else '   too inaccurate to be made'}")
    for average in averages if settings.length else ():
        run = open_run(settings.run, average["length"], kept.step, torch.device("cpu"))
        path = folder.path / "averages" / f"{weights_name(average['length'])}_step_{kept.step:08d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        with written(path, synced=True) as aside:
            save_tensors(aside, run.field.state_dict())
        average["file"] = str(path)
        print(f"written   {path}")
    able = [average["length"] for average in averages if average["able"]] or LENGTHS
    how = f"{word(settings.run)} --weights {able[len(able) // 2]:g}" + (f" --step {kept.step}" if settings.step else "")
    for command in (f"sample {how}", f"evaluate {how}", f"export {how} FOLDER"):
        print(f"use one   flowimg {command}")
    return {"run": settings.run, "step": kept.step, "steps": kept.steps, "lengths": averages}
