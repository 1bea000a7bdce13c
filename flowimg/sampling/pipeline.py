"""The folder that diffusers reads by itself: which pipeline draws with which network.

| network | pipeline and scheduler |
|---|---|
| U-Net without classes | DDPMPipeline, FlowMatchEulerDiscreteScheduler |
| U-Net with classes | the small LabelPipeline below, for stock pipelines know no classes of U-Nets |
| DiT | DiTPipeline, FlowMapEulerDiscreteScheduler, and an autoencoder that changes nothing |
| DiT that predicts x_1 | the same, with DPMSolverMultistepScheduler |

FlowMatchEulerDiscreteScheduler takes N - 1 equal steps and a last one of 1/1000, or the whole way at once for N = 1.
Equal steps need shift_terminal = 1 / N, with which diffusers divides by zero at N = 1. FlowMapEulerDiscreteScheduler
takes N equal ones. A DiTPipeline wants a decoder: `identity` is one for pixels.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMPipeline,
    DiffusionPipeline,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from flowimg.conditions.labels import class_number, shown, there_are

FLOW_MAP = "FlowMapEulerDiscreteScheduler"
"""What diffusers calls the scheduler of equal steps; it has it since May 2026."""
SMALL = 2.0**14
"""Pictures are divided by this before `identity`, whose tanh is then the identity to 1e-9."""


class LabelPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Pictures of named classes from a conditional U-Net whose last embedding stands for "no class".

    Args:
        unet: The network, in diffusers' convention: timestep 1000 (1 - t), output noise - data.
        scheduler: A flow-matching scheduler.
        classes: The names of the classes; without names they are called by their numbers, "0", "1" and so on.
        absent: Those of them, by number, that the network learned from no picture.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        classes: list[str] | None = None,  # a type that diffusers knows: of others it would say so in a warning
        absent: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(classes=list(classes or ()), absent=list(absent or ()))

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in order."""
        return list(self.config["classes"]) or [str(n) for n in range(self.unet.config["num_class_embeds"] - 1)]

    @torch.no_grad()
    def __call__(
        self,
        labels: int | str | Iterable[int | str],
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        shape: tuple[int, int] | None = None,
    ) -> ImagePipelineOutput:
        """Draw a picture of each of these classes.

        Args:
            labels: The name of a class for each picture, or a single one: 1 and "1" both mean the class called "1".
            generator: One, or a list of one a picture.
            guidance_scale: 1 is none; above, pictures fit their class better and vary less.
            num_inference_steps: Euler steps. A single one is taken without the `shift_terminal` of the scheduler.
            output_type: "pil" or "np", (B, H, W, C) in [0, 1]; Pillow knows pictures of 8 bits and 1, 3 or 4 channels.
            shape: Height and width; by default the `sample_size` of the network. Another one than it was trained on
                may look wrong.
        Raises:
            ValueError: If a label is not the name of a class, or of one that was not learned, or there are none.
        """
        names, absent = self.classes, self.config.get("absent", [])  # folders of earlier versions do not say
        numbers = [_number(label, names, absent) for label in _several(labels)]
        if not numbers:
            raise ValueError(f"there are no labels: give at least one class; {there_are(names, '')}")
        device = self.unet.device
        cond = torch.tensor(numbers, device=device)
        free = torch.full_like(cond, len(names))
        size, channels = self.unet.config["sample_size"], self.unet.config["in_channels"]
        sides = shape or ((size, size) if isinstance(size, int) else size)
        x = randn_tensor((len(numbers), channels, *sides), generator, device, self.unet.dtype)
        scheduler = self.scheduler
        if num_inference_steps == 1 and scheduler.config.get("shift_terminal"):  # it would divide by zero
            scheduler = type(scheduler).from_config(scheduler.config, shift_terminal=None)
        scheduler.set_timesteps(num_inference_steps)
        for timestep in self.progress_bar(scheduler.timesteps):
            output = self.unet(x, timestep, class_labels=cond).sample
            if guidance_scale != 1:
                without = self.unet(x, timestep, class_labels=free).sample
                output = without + guidance_scale * (output - without)
            x = scheduler.step(output, timestep, x).prev_sample
        pixels = (x / 2 + 0.5).clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(pixels) if output_type == "pil" else pixels)


def _several(labels: Any) -> list[Any]:
    """Labels as a list: text is a single one, and not its letters."""
    try:
        return [labels] if isinstance(labels, str | bytes) else list(labels)
    except TypeError:  # a number, or a tensor that is one
        return [labels]


def _number(label: Any, names: Sequence[str], absent: Collection[int]) -> int:
    number = class_number(label, names)
    if number is None:
        raise ValueError(f"{shown(repr(label))} is not a class: {there_are(names, label)}")
    if number in absent:
        raise ValueError(f"{shown(names[number])} was not learned: the network was trained on no picture of this class")
    return number


class Form(NamedTuple):
    """The pipeline that draws with a network: what that is, its class, where it is imported from, how it is made.

    `words` say what the network is. `build` takes the field, the names of its classes, and those of them, by number,
    that it learned from no picture.
    """

    words: str
    name: str
    module: str
    build: Callable[[Any, Sequence[str], Collection[int]], Any]


def form_of(field: nn.Module, conditional: bool) -> Form | None:
    """The pipeline of a field; None if there is none."""
    return FORMS.get((str(getattr(field, "exports", None)), conditional))


def lacking(field: nn.Module) -> str | None:
    """What the installed diffusers lacks to draw with a field, as a sentence; None if it has all."""
    needed = getattr(field, "exports", None) == "transformer" and getattr(field, "predicts", "v") == "v"
    if needed and not hasattr(diffusers, FLOW_MAP):
        return f"diffusers {diffusers.__version__} has no {FLOW_MAP}, which draws with this network: upgrade diffusers"
    return None


def save_pipeline(folder: Path, field: nn.Module, classes: Sequence[str], absent: Collection[int] = ()) -> None:
    """Write a field as a folder for the `from_pretrained` of its pipeline.

    Args:
        folder: Where to.
        field: The field, which has a form.
        classes: The names of its classes; empty for an unconditional one.
        absent: Those of them, by number, that it learned from no picture.
    """
    form = form_of(field, bool(classes))
    assert form is not None
    form.build(field, classes, absent).save_pretrained(folder, safe_serialization=True)


def names_in_pipeline(classes: Sequence[str]) -> list[str]:
    """The names by which a DiTPipeline knows classes: it splits them at commas, so that some need their numbers."""
    plain = [name.strip() for name in classes]
    clear = len({*plain}) == len(plain) and not any("," in name for name in plain)
    return plain if clear else [str(number) for number in range(len(classes))]


def identity(channels: int) -> AutoencoderTiny:
    """An autoencoder whose latents are the pictures themselves, over its scaling factor."""
    # made while a run trains, in another thread: it must draw nothing from the generator that dropout draws from
    with torch.device("meta"):
        vae = AutoencoderTiny(
            in_channels=channels,
            out_channels=channels,
            latent_channels=channels,
            encoder_block_out_channels=(channels,),
            decoder_block_out_channels=(2 * channels,),  # a channel for what is above 0, and one for what is below
            num_encoder_blocks=(0,),
            num_decoder_blocks=(0,),
            scaling_factor=SMALL,
        )
    vae.to_empty(device="cpu")
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    (first, last), (split, _, join) = vae.encoder.layers, vae.decoder.layers
    with torch.no_grad():
        for one in range(channels):
            # the encoder gets (x + 1) / 2, and 2 y - 1 is made of what the decoder gives
            first.weight[one, one, 1, 1], last.weight[one, one, 1, 1], last.bias[one] = 1, 2 / SMALL, -1 / SMALL
            split.weight[one, one, 1, 1], split.weight[channels + one, one, 1, 1] = 1, -1
            join.weight[one, one, 1, 1], join.weight[one, channels + one, 1, 1] = SMALL / 2, -SMALL / 2
            join.bias[one] = 0.5
    return vae


def _plain(field: Any, classes: Sequence[str], absent: Collection[int]) -> Any:
    return DDPMPipeline(field.unet, FlowMatchEulerDiscreteScheduler())


def _labelled(field: Any, classes: Sequence[str], absent: Collection[int]) -> Any:
    return LabelPipeline(field.unet, FlowMatchEulerDiscreteScheduler(), list(classes), list(absent))


def _dit(field: Any, classes: Sequence[str], absent: Collection[int]) -> Any:
    network = field.transformer
    if field.predicts == "x":
        scheduler = DPMSolverMultistepScheduler(prediction_type="sample", use_flow_sigmas=True)
    else:
        scheduler = getattr(diffusers, FLOW_MAP)()
    pipeline: Any = DiTPipeline(network, identity(network.config["in_channels"]), scheduler)
    pipeline.register_to_config(id2label=dict(enumerate(names_in_pipeline(classes))) or None)  # which it does not keep
    return pipeline


FORMS = {
    ("unet", False): Form("U-Net", "DDPMPipeline", "diffusers", _plain),
    ("unet", True): Form("U-Net", "LabelPipeline", "flowimg.sampling.pipeline", _labelled),
    ("transformer", False): Form("transformer (DiT)", "DiTPipeline", "diffusers", _dit),
    ("transformer", True): Form("transformer (DiT)", "DiTPipeline", "diffusers", _dit),
}
"""The pipeline of a field, by what it `exports` and whether it has classes."""
