"""The model card of an exported folder: what the network is, three lines of code, and how it was made."""

from pathlib import Path
from typing import Any, NamedTuple, cast

from flowimg.build.data import build_space
from flowimg.fields.dit import FREE
from flowimg.fields.patches import NEAREST
from flowimg.fields.stock import network_of
from flowimg.names import in_markdown, one_line, text_of
from flowimg.runs.opening import OpenRun, weights_name
from flowimg.sampling.pipeline import Form, form_of, names_in_pipeline
from flowimg.settings.reading import changed, dump, flatten
from flowimg.settings.run import Config
from flowimg.spaces.depth import BYTES

PATHS = ("data.source", "data.root", "field.pretrained", "train.evaluate_features")
"""Settings that may be paths; the card has their last parts. `data.cache` is left out."""


FLOW_MATCH = """It takes any number of steps; the last one
is 1/1000 long, and the others are equal, as in `flowimg sample --times diffusers`. This makes N equal steps:

```python
from diffusers import FlowMatchEulerDiscreteScheduler
N = 1
pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=1 / N if N > 1 else None)
```"""
FLOW_MAP = """It takes any number of steps, of equal length. In fp32,
with a list of generators, it draws what `flowimg sample` draws from the same seeds."""
DPM = f"""The network predicts the picture, and is followed by DPM-Solver++:
near to what `flowimg sample` draws, and not equal to it. Take at most {round(1 / NEAREST)} steps: nearer to the data
than {NEAREST}, the network gives what makes the velocity right, and not the picture, so that more steps leave noise."""


class Use(NamedTuple):
    """What a card says of a pipeline: lines of code that draw a picture, its steps, and what else there is to know."""

    code: str
    steps: str
    more: str = ""


def _stock(run: OpenRun, call: str, num_steps: int) -> Use:
    code = f"""from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("FOLDER")
{call.format("", "")}"""
    return Use(code, FLOW_MATCH)


def _labels(run: OpenRun, call: str, num_steps: int) -> Use:
    facts = run.facts
    guidance = ", guidance_scale=2.0" if run.config.train.label_drop > 0 else ""
    code = f"""from flowimg.sampling.pipeline import LabelPipeline
pipeline = LabelPipeline.from_pretrained("FOLDER")
{call.format(f"[{facts.classes[facts.present[0]]!r}], ", guidance)}"""
    more = f"""
LabelPipeline is a small pipeline with classes, from the Python package flowimg that trained this network. The network
itself loads with diffusers only, `UNet2DModel.from_pretrained("FOLDER", subfolder="unet")`; its last class stands for
"no class". {_classes(run)}\n"""
    return Use(code, FLOW_MATCH, more)


def _dit(run: OpenRun, call: str, num_steps: int) -> Use:
    facts, field = run.facts, cast(Any, run.field)
    names = names_in_pipeline(facts.classes)
    guides = bool(names) and run.config.train.label_drop > 0
    drawn = f"pipeline.get_label_ids([{names[facts.present[0]]!r}])" if names else f"[{FREE}]"
    code = f"""from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("FOLDER")
{call.format(f"{drawn}, ", f", guidance_scale={2.0 if guides else 1.0}")}"""
    default = "does not guide at 1 or below, and has no guidance interval"
    unguided = f'{default}. Class {FREE} is "no class"' if guides else f"{default}; this network was trained for 1 only"
    numbers = names != [name.strip() for name in facts.classes]
    named = (
        " The pipeline cannot tell some of these names apart, for it splits them at commas and cuts spaces: call a "
        "class by its number in front."
        if numbers
        else ""
    )
    more = f"\nUnless `guidance_scale` is given, the pipeline guides at 4; it {unguided}."
    more += f" {_classes(run, numbers)}{named}" if names else ""
    more += """
diffusers remarks that the decoder is an AutoencoderTiny (it is the identity, for pixels), and on the type of the names:
both are as they should be. A copy by `save_pretrained` loses the names.\n"""
    if field.predicts == "x":
        return Use(code.replace(f"steps={num_steps}", f"steps={min(num_steps, round(1 / NEAREST))}"), DPM, more)
    return Use(code, FLOW_MAP, more)


def _classes(run: OpenRun, numbers: bool = False) -> str:
    """The names of the classes, with numbers in front if asked, and of those that were not learned."""
    facts = run.facts
    named = [
        f"{number}: {in_markdown(name)}" if numbers else in_markdown(name) for number, name in enumerate(facts.classes)
    ]
    lacking = [in_markdown(facts.classes[number]) for number in facts.absent]
    unlearned = f" There was no picture of {', '.join(lacking)}." if lacking else ""
    return f"The classes, in order: {('; ' if numbers else ', ').join(named)}.{unlearned}"


USES = {"DDPMPipeline": _stock, "LabelPipeline": _labels, "DiTPipeline": _dit}
"""By the name of the pipeline."""


def _use(run: OpenRun, form: Form, space: Any, num_steps: int) -> Use:
    """How the pipeline of a run is used."""
    facts, more = run.facts, ""
    # Pillow has pictures of 8 bits only, and none of five channels
    plain = space.depth == BYTES and "png" in space.formats
    drawn, kind = ("picture", "") if plain else ("numbers", ', output_type="np"')
    call = f"{drawn} = pipeline({{}}num_inference_steps={num_steps}{{}}{kind}).images[0]"
    use = USES[form.name](run, call, num_steps)
    if not plain:
        low, high = space.depth.low, space.depth.high
        stored = f"`numbers * {high - low:g}{f' + {low:g}' if low else ''}`{', rounded,' if space.depth.whole else ''}"
        more += f"\nThe numbers, (H, W, C), go from 0 to 1; {stored} are those of the pictures it learned from.\n"
    if others := [bucket[:2] for bucket in facts.buckets if bucket[:2] != facts.usual[1:]]:
        network = f"`pipeline.unet.register_to_config(sample_size={others[-1]})`"
        how = f"`shape={others[-1]}` in the call" if facts.classes else network
        more += f"\nIt draws {facts.usual[2]} x {facts.usual[1]} pixels, and another shape by {how} (height, width).\n"
    return use._replace(more=use.more + more)


def card_of(run: OpenRun, grid: Path | None, num_steps: int, weights: str | float) -> str:
    """The model card: a description, three lines of code, and the settings of the run."""
    config, facts = run.config, run.facts
    parameters = sum(p.numel() for p in network_of(run.field).parameters())
    name, shown = one_line(text_of(run.folder.path.resolve().name)), _without_paths(config)
    space: Any = build_space(config, facts)
    sizes, data = " or ".join(f"{w} x {h}" for _, h, w in facts.shapes), in_markdown(shown.data.source)
    which = f"conditional on {len(facts.present)} classes" if facts.classes else "unconditional"
    form = form_of(run.field, bool(facts.classes))
    assert form is not None
    use = _use(run, form, space, num_steps)
    pictured = f"![Samples at step {int(grid.stem.split('_')[1])}](samples.png)" if grid else ""
    average = {"ema": "averaged (EMA)", "raw": "raw"}.get(str(weights), f"averaged ({weights_name(weights)})")
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [flow-matching, flowimg]
---
# {in_markdown(name)}

{pictured}

A {form.words} of {parameters:,} parameters that draws {space.words}, {sizes} pixels,
{which}; trained by flow matching on {data}
with flowimg: {run.step:,} steps of {config.train.batch_size}, {average} weights.

## Use

```python
{use.code}
```

FOLDER is this folder, or its id on the hub. {use.steps}
{use.more}
## How it was made

```yaml
{dump(shown.model_copy(update={"run": name}))}```
"""


def _without_paths(config: Config) -> Config:
    """The settings for a card, which may be published: no path of this machine is in them."""
    found = flatten(config)
    named = {key: _public(found[key]) for key in PATHS if found.get(key)}
    return changed(config, {**named, "data.cache": None}, "the model card")


def _public(source: str) -> str:
    """A name or an id of the hub unchanged; only the last part of a path on this machine."""
    path = source.count("/") != 1 or source.startswith(("/", ".", "~")) or Path(source).exists()
    return (Path(source).name or Path(source).resolve().name or "pictures") if path else source
