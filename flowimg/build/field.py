"""Settings to a network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowimg.build.facts import DataFacts
from flowimg.errors import DataError
from flowimg.fields.cpu.norm import library
from flowimg.flow.randomness import SEEDS, key
from flowimg.machine.device import pick_device
from flowimg.settings.field import MLP, DiT, JiT, UNet
from flowimg.settings.run import Config

DIT_OPTIONS = ("width", "depth", "heads", "patch", "dropout", "zero_output")


def _mlp(settings: MLP, facts: DataFacts) -> nn.Module:
    from flowimg.fields.mlp import MLPField

    return MLPField(facts.shape[0], len(facts.classes), **settings.model_dump(exclude={"kind"}))


def _unet(settings: UNet, facts: DataFacts) -> nn.Module:
    from diffusers import UNet2DModel  # takes seconds

    from flowimg.fields import unet

    (channels, height, width), classes = facts.shape, len(facts.classes)
    if settings.pretrained is None:
        _check_buckets(facts, len(settings.channels) - 1)
    try:
        if settings.pretrained is None:
            options = settings.model_dump(exclude={"kind", "pretrained", "gradient_checkpointing"})
            network = unet.new_unet((height, width), channels, classes, **options)
        elif facts.architecture:  # a run that continues: the weights are in its checkpoint
            network = UNet2DModel.from_config(facts.architecture)
        else:
            network = unet.pretrained_unet(settings.pretrained, (height, width), channels, classes, settings.dropout)
    except ValueError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise _no_network(settings.pretrained, "UNet2DModel", error) from None
    _check_buckets(facts, len(network.config["block_out_channels"]) - 1)
    return unet.UNetField(network, classes, settings.gradient_checkpointing, facts.numbers)


def _dit(settings: DiT, facts: DataFacts) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    from flowimg.fields import dit

    try:
        # a pretrained network has patches of its own
        patch = settings.patch if settings.pretrained is None else 1
        if problem := dit.dit_problem(facts.shapes, patch, len(facts.classes)):
            raise ValueError(problem)
        if settings.pretrained is None:
            network = dit.new_dit(facts.shape, **settings.model_dump(include=set(DIT_OPTIONS)))
        elif facts.architecture:
            network = DiTTransformer2DModel.from_config(facts.architecture)
        else:
            network = dit.pretrained_dit(settings.pretrained, facts.shape, settings.dropout, settings.output)
    except ValueError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise _no_network(settings.pretrained, "DiTTransformer2DModel", error) from None
    return dit.DiTField(network, len(facts.classes), settings.gradient_checkpointing, settings.output)


def _jit(settings: JiT, facts: DataFacts) -> nn.Module:
    from flowimg.fields.jit import JiTField
    from flowimg.fields.patches import patch_problem

    if problem := patch_problem(facts.shapes, settings.patch):
        raise DataError(problem)
    options = settings.model_dump(exclude={"kind"})
    return JiTField(facts.shape[0], len(facts.classes), numbers=facts.numbers, **options)


def _no_network(source: str | None, kind: str, error: OSError) -> DataError:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"field.pretrained {source} is not a folder or hub id of a {kind} in safetensors: {why}")


def _check_buckets(facts: DataFacts, halvings: int) -> None:
    """Refuse buckets that the levels of a U-Net cannot halve.

    Raises:
        DataError: If there are such.
    """
    if odd := [bucket for bucket in facts.buckets if bucket[0] % 2**halvings or bucket[1] % 2**halvings]:
        raise DataError(
            f"data.buckets has pictures of {odd[0][0]} x {odd[0][1]}, which do not halve {halvings} times, as the "
            f"network asks: give data.buckets.multiple {2**halvings}, or a multiple of it"
        )


FIELDS: dict[str, Callable[[Any, DataFacts], nn.Module]] = {"mlp": _mlp, "dit": _dit, "jit": _jit, "unet": _unet}


def build_field(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a run, with a shape that the data decide, initialised from the seed."""
    if wants_c(config, pick_device()):
        library()  # starts the C compiler, which runs while diffusers is imported
    facts = facts._replace(numbers=config.data.numbers)
    with torch.random.fork_rng(devices=[]):
        # a generator does not tell larger seeds apart
        torch.default_generator.manual_seed(config.seed if config.seed < SEEDS else key("weights", config.seed))
        return FIELDS[config.field.kind](config.field, facts)


def architecture_of(config: Config, field: Any) -> dict[str, Any] | None:
    """The architecture of a pretrained network, so that the run's folder is enough later; None for other networks."""
    if not getattr(config.field, "pretrained", None):
        return None
    from flowimg.fields.stock import architecture, network_of

    return architecture(network_of(field))


def wants_c(config: Config, device: torch.device) -> bool:
    """Whether a run uses blocks written in C, if they can be compiled: U-Nets do on a CPU in bf16."""
    return config.field.has_cpu_blocks and device.type == "cpu" and config.train.precision == "bf16"


def blocks_of(config: Config, device: torch.device) -> str | None:
    """What runs the blocks of a U-Net on a CPU in bf16: C, or torch if the C cannot be compiled. None for other runs.

    Waits for the compiler.
    """
    return ("C" if library().functions() else "torch") if wants_c(config, device) else None
