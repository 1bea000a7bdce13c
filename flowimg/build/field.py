"""Settings to a network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowimg.build.data import DataFacts
from flowimg.conditions.augmentation import NUMBERS
from flowimg.errors import DataError
from flowimg.fields.cpu.norm import library
from flowimg.machine.device import pick_device
from flowimg.settings.data import ImageData
from flowimg.settings.field import MLP, UNet
from flowimg.settings.run import Config


def _mlp(settings: MLP, facts: DataFacts) -> nn.Module:
    from flowimg.fields.mlp import MLPField

    options = settings.model_dump(exclude={"kind"})
    return MLPField(facts.shape[0], len(facts.classes), **options)


def _unet(settings: UNet, facts: DataFacts) -> nn.Module:
    from flowimg.fields.unet import (
        UNetField,
        empty_unet,
        new_unet,
        pretrained_unet,
    )  # diffusers takes seconds to import

    channels, height, width = facts.shape
    classes = len(facts.classes)
    if height != width:
        raise DataError(f"the images are {width} x {height}, and the U-Net takes squares: give data.size")
    try:
        if settings.pretrained is None:
            options = settings.model_dump(exclude={"kind", "pretrained", "gradient_checkpointing"})
            unet = new_unet(height, channels, classes, **options)
        elif facts.architecture:  # its weights are in the checkpoint
            unet = empty_unet(facts.architecture)
        else:
            unet = pretrained_unet(settings.pretrained, height, channels, classes, settings.dropout)
    except ValueError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(
            f"field.pretrained {settings.pretrained} gives no UNet2DModel in safetensors, from a folder or from the "
            f"hub: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from None
    return UNetField(unet, classes, settings.gradient_checkpointing, facts.numbers)


FIELDS: dict[str, Callable[[Any, DataFacts], nn.Module]] = {"mlp": _mlp, "unet": _unet}


def build_field(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a run, its shape decided by the data, initialised from the seed."""
    if wants_c(config, pick_device()):
        library()  # it is compiled while diffusers is imported
    if isinstance(config.data, ImageData) and config.data.augment:
        facts = facts._replace(numbers=NUMBERS)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return FIELDS[config.field.kind](config.field, facts)


def architecture_of(config: Config, field: Any) -> dict[str, Any] | None:
    """What a network that was fetched is, so that the run's folder alone is enough later; None if settings tell."""
    return field.architecture() if isinstance(config.field, UNet) and config.field.pretrained else None


def wants_c(config: Config, device: torch.device) -> bool:
    """Whether a part of the field is in C, where that can be compiled: of U-Nets on a CPU in bf16."""
    return config.field.has_cpu_blocks and device.type == "cpu" and config.train.precision == "bf16"


def blocks_of(config: Config, device: torch.device) -> str | None:
    """What a U-Net's blocks are on a CPU in bf16: C, or torch where that cannot be compiled; None for other fields.

    Waits for the compiler.
    """
    if not wants_c(config, device):
        return None
    return "torch" if library().functions() is None else "C"
