"""The folder that diffusers reads by itself.

An unconditional U-Net is, as it stands, the unet of a stock pipeline:

    DDPMPipeline(unet, FlowMatchEulerDiscreteScheduler())

whose N steps are N - 1 equal ones and a last one of 1/1000, or the whole way at once for N = 1. Equal steps need
shift_terminal = 1 / N, with which diffusers divides by zero at N = 1. Stock pipelines know no classes: a conditional
U-Net comes with the small `LabelPipeline` below.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from flowimg.conditions.labels import class_number, shown, there_are


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


def save_pipeline(folder: Path, unet: UNet2DModel, classes: Sequence[str], absent: Collection[int] = ()) -> None:
    """Write a U-Net as a folder for `DiffusionPipeline.from_pretrained`, or `LabelPipeline.from_pretrained`.

    Args:
        folder: Where to.
        unet: The network.
        classes: The names of its classes; empty for an unconditional one.
        absent: Those of them, by number, that it learned from no picture.
    """
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline: Any = DDPMPipeline(unet, scheduler)
    if classes:
        pipeline = LabelPipeline(unet, scheduler, list(classes), list(absent))
    pipeline.save_pretrained(folder, safe_serialization=True)
