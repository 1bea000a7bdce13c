"""`flowimg export`, and RUN/model: a run's network as a folder that stock diffusers loads, with its model card."""

import shutil
from glob import escape
from pathlib import Path
from typing import Any

from flowimg.build.data import build_space
from flowimg.errors import MachineError, SettingsError
from flowimg.files import filled, write_text
from flowimg.machine.device import pick_device
from flowimg.machine.processes import one_process
from flowimg.names import in_markdown, one_line, text_of, word
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import OpenRun, open_run, weights_name
from flowimg.settings.reading import changed, dump, flatten
from flowimg.settings.run import Config
from flowimg.settings.verbs import Export
from flowimg.spaces.depth import BYTES

STEPS = Export.model_fields["num_steps"].default
"""Euler steps in the example of the model card: the default of `flowimg sample`."""
PATHS = ("data.source", "data.root", "field.pretrained", "train.evaluate_features")
"""Settings that may be paths; the card has their last parts. `data.cache` is left out."""


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
            f"{settings.run} has a field of kind {run.config.field.kind}: diffusers knows only the U-Net"
        )
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
        run: The run, with a U-Net field.
        grid: A picture of samples for the card.
        num_steps: Euler steps in the example of the card.
        weights: Which weights they are, for the card.
    """
    from flowimg.sampling.pipeline import save_pipeline

    folder = folder.resolve()  # "." has a name too
    network = _network(run)
    height, width = run.facts.usual[1:]
    network.register_to_config(sample_size=height if height == width else (height, width))  # one shape may be chosen
    for leftover in folder.parent.glob(f".{escape(folder.name)}.*.tmp"):  # of a process that died while it wrote
        shutil.rmtree(leftover, ignore_errors=True)
    with filled(folder) as aside:
        save_pipeline(aside, network, run.facts.classes, run.facts.absent)
        if grid is not None:
            shutil.copyfile(grid, aside / "samples.png")
        write_text(aside / "README.md", _card(run, grid, num_steps, weights))


def _use(run: OpenRun, space: Any, num_steps: int) -> tuple[str, str]:
    """Three lines of code that draw a picture, and what else there is to know of it."""
    config, facts, more = run.config, run.facts, ""
    # Pillow has pictures of 8 bits only, and none of five channels
    plain = space.depth == BYTES and "png" in space.formats
    drawn, form = ("picture", "") if plain else ("numbers", ', output_type="np"')
    if facts.classes:
        learned = [facts.classes[number] for number in facts.present]
        guidance = ", guidance_scale=2.0" if config.train.label_drop > 0 else ""
        use = f"""from flowimg.sampling.pipeline import LabelPipeline
pipeline = LabelPipeline.from_pretrained("FOLDER")
{drawn} = pipeline([{learned[0]!r}], num_inference_steps={num_steps}{guidance}{form}).images[0]"""
        lacking = [in_markdown(facts.classes[number]) for number in facts.absent]
        unlearned = f" There was no picture of {', '.join(lacking)}." if lacking else ""
        more = f"""
LabelPipeline is a small pipeline with classes, from the Python package flowimg that trained this network. The network
itself loads with diffusers only, `UNet2DModel.from_pretrained("FOLDER", subfolder="unet")`; its last class stands for
"no class". The classes, in order: {", ".join(map(in_markdown, facts.classes))}.{unlearned}\n"""
    else:
        use = f"""from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("FOLDER")
{drawn} = pipeline(num_inference_steps={num_steps}{form}).images[0]"""
    if not plain:
        low, high = space.depth.low, space.depth.high
        stored = f"`numbers * {high - low:g}{f' + {low:g}' if low else ''}`{', rounded,' if space.depth.whole else ''}"
        more += f"\nThe numbers, (H, W, C), go from 0 to 1; {stored} are those of the pictures it learned from.\n"
    if others := [bucket[:2] for bucket in facts.buckets if bucket[:2] != facts.usual[1:]]:
        network = f"`pipeline.unet.register_to_config(sample_size={others[-1]})`"
        how = f"`shape={others[-1]}` in the call" if facts.classes else network
        more += f"\nIt draws {facts.usual[2]} x {facts.usual[1]} pixels, and another shape by {how} (height, width).\n"
    return use, more


def _card(run: OpenRun, grid: Path | None, num_steps: int, weights: str | float) -> str:
    """The model card: a description, three lines of code, and the settings of the run."""
    config, facts = run.config, run.facts
    parameters = sum(p.numel() for p in _network(run).parameters())
    name, shown = one_line(text_of(run.folder.path.resolve().name)), _without_paths(config)
    space: Any = build_space(config, facts)
    sizes, data = " or ".join(f"{w} x {h}" for _, h, w in facts.shapes), in_markdown(shown.data.source)
    which = f"conditional on {len(facts.present)} classes" if facts.classes else "unconditional"
    use, more = _use(run, space, num_steps)
    pictured = f"![Samples at step {int(grid.stem.split('_')[1])}](samples.png)" if grid else ""
    average = {"ema": "averaged (EMA)", "raw": "raw"}.get(str(weights), f"averaged ({weights_name(weights)})")
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [flow-matching, flowimg]
---
# {in_markdown(name)}

{pictured}

A U-Net of {parameters:,} parameters that draws {space.words}, {sizes} pixels,
{which}; trained by flow matching on {data}
with flowimg: {run.step:,} steps of {config.train.batch_size}, {average} weights.

## Use

```python
{use}
```

FOLDER is this folder, or its id on the hub. It takes any number of steps; the last one
is 1/1000 long, and the others are equal, as in `flowimg sample --times diffusers`. This makes N equal steps:

```python
from diffusers import FlowMatchEulerDiscreteScheduler
N = 1
pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=1 / N if N > 1 else None)
```
{more}
## How it was made

```yaml
{dump(shown.model_copy(update={"run": name}))}```
"""


def _network(run: OpenRun) -> Any:
    """The network in the run's field that diffusers knows."""
    field: Any = run.field
    return getattr(field, field.exports)


def _without_paths(config: Config) -> Config:
    """The settings for a card, which may be published: no path of this machine is in them."""
    found = flatten(config)
    named = {key: _public(found[key]) for key in PATHS if found.get(key)}
    return changed(config, {**named, "data.cache": None}, "the model card")


def _public(source: str) -> str:
    """A name or an id of the hub unchanged; only the last part of a path on this machine."""
    path = source.count("/") != 1 or source.startswith(("/", ".", "~")) or Path(source).exists()
    return (Path(source).name or Path(source).resolve().name or "pictures") if path else source


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
