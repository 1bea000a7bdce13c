"""The network."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import Fraction, Positive, Settings


class Network(Settings):
    """The traits of a network, which a kind may change."""

    learns: ClassVar = "points"
    """The kind of data that it learns."""
    fast_in_bf16: ClassVar = False
    """Whether bf16 makes it faster on a device with fast bf16."""
    has_cpu_blocks: ClassVar = False
    """Whether parts of it are written in C for CPUs."""
    has_barriers: ClassVar = False
    """Whether its operations on a CPU have barriers inside, as oneDNN's convolutions have: their threads spin there."""
    has_utilisation: ClassVar = False
    """Whether hardware utilisation is worth reporting: matrix products take most of its time."""
    takes_numbers: ClassVar = True
    """Whether it has an input for numbers beside time and class, such as those of `data.augment`."""


class MLP(Network):
    """Multilayer perceptron, for points."""

    kind: Literal["mlp"] = "mlp"
    width: Positive = 128
    """Units per hidden layer."""
    depth: Positive = 4
    """Number of hidden layers."""
    x_frequencies: Annotated[int, Field(ge=0)] = 0
    """Number of frequencies of the Fourier features of x; 0 turns them off."""
    t_frequencies: Annotated[int, Field(ge=0)] = 0
    """Number of frequencies of the Fourier features of t; 0 turns them off."""
    dropout: Fraction = 0.0
    """Fraction of hidden units dropped in training."""
    zero_output: bool = True
    """Initialise the output layer to zero, so that training starts from the velocity 0."""


class UNet(Network):
    """U-Net (diffusers' UNet2DModel), for images."""

    learns: ClassVar = "images"
    fast_in_bf16: ClassVar = True
    has_cpu_blocks: ClassVar = True
    has_barriers: ClassVar = True
    has_utilisation: ClassVar = True
    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256)
    """Channels of each level; each level after the first halves the resolution."""
    layers: Positive = 2
    """Residual blocks per level."""
    attention: tuple[Positive, ...] = ()
    """Resolutions (pixels per side) with self-attention; the middle block always has it."""
    dropout: Fraction = 0.0
    """Dropout rate in the residual blocks."""
    scale_shift: bool = False
    """Let time and class scale and shift the second norm of each residual block; by default they only shift it."""
    zero_output: bool = True
    """Initialise the output layer to zero, so that training starts from the velocity 0."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, but much less memory."""
    pretrained: str | None = None
    """Start from the weights of this UNet2DModel, a hub id or a folder; overrides channels, layers and attention."""


class Transformer(Network):
    """What the settings of all transformers share."""

    learns: ClassVar = "images"
    fast_in_bf16: ClassVar = True
    has_utilisation: ClassVar = True
    width: Positive = 384
    """Numbers per token; a multiple of 4 x heads."""
    depth: Positive = 12
    """Number of blocks."""
    heads: Positive = 6
    """Attention heads per block."""
    patch: Positive = 2
    """Pixels per side of a patch, which is a token."""
    dropout: Fraction = 0.0
    """Dropout rate in the blocks."""
    output: Literal["v", "x"] = "v"
    """Predict the velocity, or the data (for patches of about 100 numbers or more); the loss is in the velocity."""
    zero_output: bool = True
    """Initialise gates and output layer to zero, so that each block starts as the identity."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, but much less memory."""

    @model_validator(mode="after")
    def _fits(self) -> "Transformer":
        if self.width % (4 * self.heads):
            near = max(1, round(self.width / (4 * self.heads))) * 4 * self.heads
            raise ValueError(f"width {self.width} is no multiple of 4 x heads {self.heads}: give {near}")
        return self


class DiT(Transformer):
    """Transformer that stock diffusers draws with (DiTTransformer2DModel), for images of one size, square."""

    takes_numbers: ClassVar = False
    kind: Literal["dit"] = "dit"
    pretrained: str | None = None
    """Start from this DiTTransformer2DModel, a hub id or a folder; overrides width, depth, heads and patch. Its output
    must be that of field.output."""


class JiT(Transformer):
    """Transformer with RoPE, normed queries and keys, gated layers and one shared modulation, for images."""

    kind: Literal["jit"] = "jit"
    bottleneck: Positive | None = None
    """Numbers that a patch is brought to before it becomes a token; by default at most 128."""
    class_tokens: Annotated[int, Field(ge=0)] = 0
    """Number of tokens that hold the class, from a third of the blocks on; without classes there are none."""
