"""The network."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from flowimg.settings.base import Fraction, Positive, Settings


class MLP(Settings):
    """Multilayer perceptron, for points."""

    learns: ClassVar = "points"
    fast_in_bf16: ClassVar = False
    has_cpu_blocks: ClassVar = False
    has_utilisation: ClassVar = False
    kind: Literal["mlp"] = "mlp"
    width: Positive = 128
    """Units a hidden layer."""
    depth: Positive = 4
    """Hidden layers."""
    x_frequencies: Annotated[int, Field(ge=0)] = 0
    """Sines and cosines of x among the inputs."""
    t_frequencies: Annotated[int, Field(ge=0)] = 0
    """Sines and cosines of t among the inputs."""
    dropout: Fraction = 0.0
    """Fraction of hidden units dropped in training."""
    zero_output: bool = True
    """Start from the velocity 0."""


class UNet(Settings):
    """diffusers' UNet2DModel, for images."""

    learns: ClassVar = "images"
    fast_in_bf16: ClassVar = True
    has_cpu_blocks: ClassVar = True
    has_utilisation: ClassVar = True
    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256)
    """Channels of each level; each level after the first halves the size."""
    layers: Positive = 2
    """Residual blocks a level."""
    attention: tuple[Positive, ...] = ()
    """Sizes (pixels a side) with self-attention; the middle always has it."""
    dropout: Fraction = 0.0
    """Dropout in the residual blocks."""
    scale_shift: bool = False
    """Time and class scale and shift what the second norm of a residual block gives, in place of a mere shift."""
    zero_output: bool = True
    """Start from the velocity 0."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, far less memory."""
    pretrained: str | None = None
    """Start from the weights of this UNet2DModel, a hub id or a folder; its channels, layers and the like win."""
