"""`flowimg export`, and RUN/model: a run's network as a folder that stock diffusers loads, with its model card."""

import shutil
from glob import escape
from pathlib import Path
from typing import Any

from flowimg.errors import MachineError, SettingsError
from flowimg.files import filled, write_text
from flowimg.machine.device import pick_device
from flowimg.machine.processes import one_process
from flowimg.names import word
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import OpenRun, open_run, weights_name
from flowimg.settings.verbs import Export

STEPS = Export.model_fields["num_steps"].default
"""Euler steps in the example of the model card: the default of `flowimg sample`."""


def export(settings: Export) -> dict[str, Any]:
    """Write the folder, print where its instructions are, and upload it if requested."""
    one_process("export")
    if settings.out is None:
        raise SettingsError("flowimg export needs a folder to write to: flowimg export RUN FOLDER")
    out = Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} exists and is not overwritten: name a new folder")
    if settings.push_to_hub is not None and settings.push_to_hub.count("/") != 1:
        raise SettingsError(f"--push-to-hub {settings.push_to_hub} is not a repository: give OWNER/NAME")
    run = open_run(settings.run, settings.weights, settings.step, pick_device(), settings.shape)
    if getattr(run.field, "exports", None) is None:
        raise SettingsError(
            f"{settings.run} has a field of kind {run.config.field.kind}, with which no pipeline of diffusers draws: "
            "those of kind unet and dit are exported"
        )
    from flowimg.sampling.pipeline import lacking

    if why := lacking(run.field):
        raise MachineError(why)
    # a run draws grids only of its raw and its averaged weights
    grid = grid_for(run.folder, run.step, settings.weights) if isinstance(settings.weights, str) else None
    write_model(out, run, grid, settings.num_steps, settings.weights)
    print(f"step {run.step}, {weights_name(settings.weights)} weights: {out}")
    print(f"how to use it: {out}/README.md")
    if settings.push_to_hub:
        print(f"uploaded: {_push(out, settings.push_to_hub, settings.private)}")
    return {"run": settings.run, "step": run.step, "folder": str(out), "hub": settings.push_to_hub}


def grid_for(folder: RunFolder, step: int, weights: str = "ema") -> Path | None:
    """The run's grid of these weights at this step, or else the newest earlier one."""
    raw, newest = weights == "raw", folder.grid(step, weights)

    def order(path: Path) -> tuple[int, str]:
        return len(path.name), path.name  # steps of nine digits after those of eight

    grids = [path for path in folder.samples.glob("step_*.png") if path.stem.endswith("_raw") == raw]
    return max((path for path in grids if order(path) <= order(newest)), key=order, default=None)


def write_model(
    folder: Path, run: OpenRun, grid: Path | None, num_steps: int = STEPS, weights: str | float = "ema"
) -> None:
    """Write the folder, in the place of what was there.

    Args:
        folder: Where to.
        run: The run, with a field that has a form.
        grid: A picture of samples for the card.
        num_steps: Euler steps in the example of the card.
        weights: Which weights they are, for the card.
    """
    # diffusers' pipelines take seconds to import
    from flowimg.fields.stock import network_of
    from flowimg.jobs.card import card_of
    from flowimg.sampling.pipeline import save_pipeline

    folder = folder.resolve()  # "." has a name too
    height, width = run.facts.usual[1:]
    side = height if height == width else (height, width)
    network_of(run.field).register_to_config(sample_size=side)  # one shape may be chosen
    for leftover in folder.parent.glob(f".{escape(folder.name)}.*.tmp"):  # of a process that died while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    with filled(folder) as aside:
        save_pipeline(aside, run.field, run.facts.classes, run.facts.absent)
        if grid is not None:
            shutil.copyfile(grid, aside / "samples.png")
        write_text(aside / "README.md", card_of(run, grid, num_steps, weights))


def _push(folder: Path, repository: str, private: bool) -> str:
    """Upload the folder, and return its address.

    Raises:
        MachineError: If the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of the network, the login and the hub, of many types
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MachineError(
            f"{folder} is written, but could not be uploaded to {repository}: {reason} (after `hf auth login`, "
            f"`hf upload {repository} {word(folder)}` does)"
        ) from None
    return f"https://huggingface.co/{repository}"
