"""A velocity field for pictures: diffusers' UNet2DModel, kept in diffusers' own convention.

diffusers runs from data to noise: its sigma is 1 - t, its timestep 1000 sigma, its output noise - data. So

    v(x, t) = -unet(x, 1000 (1 - t)),

and the network inside is, as it stands, the unet of a stock `DDPMPipeline` with `FlowMatchEulerDiscreteScheduler`.
Where pictures are augmented, a linear layer beside it, which is 0 for pictures as they are, adds to its time embedding.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from diffusers import UNet2DModel
from torch import Tensor, nn

from flowimg.fields.cpu.blocks import quicken
from flowimg.fields.mlp import class_rows
from flowimg.fields.stock import stock_network, with_changes
from flowimg.flow.condition import Condition

HEAD = 64
"""Channels an attention head; diffusers' default of 8 makes many tiny, slow heads."""
GROUPS = 32
"""Groups of the group norms; they must divide the channels of every level."""


Size = int | tuple[int, int]
"""Pixels a side of a square, or height and width."""


def unet_problem(size: Size, channels: Sequence[int], attention: Sequence[int]) -> str | None:
    """Why pictures of this size do not fit a U-Net of these levels, as a sentence; None if they do.

    Args:
        size: Pixels a side of a square, or height and width.
        channels: Channels of each level; each level after the first halves both.
        attention: Sizes (pixels of the shorter side) at which there is self-attention.
    """
    shape, halvings = _sides(size), len(channels) - 1
    sizes = [min(shape) >> level for level in range(len(channels))]
    if any(side % 2**halvings for side in shape):
        multiple = "a multiple" if _square(shape) else "multiples"
        return (
            f"pictures of {_words(shape)} pixels do not halve {halvings} times, as the {len(channels)} levels of "
            f"field.channels ask: give data.size {multiple} of {2**halvings}, or use fewer levels"
        )
    if any(c % GROUPS for c in channels):
        return f"field.channels {list(channels)} must all be multiples of {GROUPS}, the groups of the group norms"
    for place in attention:
        if place not in sizes:
            return f"field.attention names size {place}, but the levels have the sizes {sizes}: name some of those"
    attending = [c for c, s in zip(channels, sizes, strict=True) if s in attention] + [channels[-1]]
    if any(c % HEAD for c in attending):
        return (
            f"levels with attention, and the last one, need multiples of {HEAD} channels (one head is {HEAD} "
            f"channels), but field.channels is {list(channels)}"
        )
    return None


class UNetField(nn.Module):
    """Velocity of pictures in [-1, 1], held by a stock UNet2DModel.

    Args:
        unet: The network, in diffusers' convention; `new_unet` or `pretrained_unet` make one.
        num_classes: Number of classes, one less than the network embeds; 0 makes the field unconditional.
        gradient_checkpointing: Compute activations again in the backward pass: slower, far less memory.
        numbers: How many numbers each further part of a condition has, by its name.
    """

    edges = ("unet.conv_in", "unet.conv_out", "unet.class_embedding", "augment")
    """Modules whose weights do not map hidden units to hidden units."""
    gathered = ("unet.down_blocks", "unet.mid_block", "unet.up_blocks")
    """Modules, or lists of them, whose weights are gathered together where the field is sharded."""
    exports = "unet"
    """The attribute that holds the network of a stock diffusers pipeline."""

    def __init__(
        self,
        unet: UNet2DModel,
        num_classes: int = 0,
        gradient_checkpointing: bool = False,
        numbers: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.unet = quicken(unet)
        self.num_classes = num_classes
        # without bias: an augmentation of 0 adds 0, so that the network itself is the field of unchanged pictures
        inside, count = unet.time_embedding.linear_2.out_features, numbers.get("augmentation")
        self.augment = nn.Linear(count, inside, bias=False) if count else None
        if self.augment is not None:
            nn.init.zeros_(self.augment.weight)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Velocity at x and t.

        Args:
            x: Pictures on the way from noise to data, shape (B, C, H, W).
            t: Flow times in [0, 1], shape (B,); 0 is noise, 1 is data.
            cond: Its label, shape (B,), and augmentation, shape (B, 9), are used; absent, they are null for all.

        Returns:
            Velocity, shape (B, C, H, W), in data units per unit of t.
        """
        numbers = None if cond is None else cond.augmentation
        rows = class_rows(cond, len(x), self.num_classes, x.device) if self.num_classes else None
        # a float tensor: UNet2DModel would truncate a Python float to a whole number
        timestep = 1000 * (1 - t)
        if numbers is None:
            return -self.unet(x, timestep, class_labels=rows).sample
        assert self.augment is not None
        more = self.augment(numbers)
        # the network has no input for it, and stays stock: for this one call
        hook = self.unet.time_embedding.register_forward_hook(lambda module, args, embedding: embedding + more)
        try:
            return -self.unet(x, timestep, class_labels=rows).sample
        finally:
            hook.remove()


def new_unet(
    size: Size,
    image_channels: int,
    num_classes: int = 0,
    channels: Sequence[int] = (128, 256),
    layers: int = 2,
    attention: Sequence[int] = (),
    dropout: float = 0.0,
    scale_shift: bool = False,
    zero_output: bool = True,
) -> UNet2DModel:
    """A network with new weights.

    Args:
        size: Pixels a side of square pictures, or height and width.
        image_channels: 1 for grey, 3 for RGB.
        num_classes: Number of classes besides "no class"; 0 makes it unconditional.
        channels: Channels of each level; each level after the first halves height and width.
        layers: Residual blocks a level.
        attention: Sizes (pixels of the shorter side) at which there is self-attention; the middle always has it.
        dropout: Dropout in the residual blocks.
        scale_shift: Time and class scale and shift the output of a residual block's second norm, instead of only
            shifting its input.
        zero_output: Start from the velocity 0.
    Raises:
        ValueError: If size, levels and attention do not fit together; the message says what would.
    """
    if problem := unet_problem(size, channels, attention):
        raise ValueError(problem)
    attends = [min(_sides(size)) >> level in attention for level in range(len(channels))]
    unet = UNet2DModel(
        sample_size=_sample_size(size),
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=HEAD,
        norm_num_groups=GROUPS,
        # with scale and shift, diffusers gives the attention in the middle no norm by default
        attn_norm_num_groups=GROUPS if scale_shift else None,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        dropout=dropout,
        num_class_embeds=num_classes + 1 if num_classes else None,
    )
    if zero_output:
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
    return unet


def _square(shape: tuple[int, int]) -> bool:
    return shape[0] == shape[1]


def _sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _sample_size(size: Size) -> Size:
    """A size as UNet2DModel has it: one number for a square, as it always was."""
    shape = _sides(size)
    return shape[0] if _square(shape) else shape


def _words(shape: tuple[int, int]) -> str:
    """A shape as messages have it: the width of a square, else width x height."""
    return str(shape[0]) if _square(shape) else f"{shape[1]} x {shape[0]}"


def pretrained_unet(
    source: str, size: Size, image_channels: int, num_classes: int = 0, dropout: float = 0.0
) -> UNet2DModel:
    """A network with the weights of a stock UNet2DModel; its class embedding is new unless it fits.

    Args:
        source: A folder, or an id of the hub, with the network itself or, in its folder `unet`, a pipeline's.
        size: Pixels a side of square pictures, or height and width.
        image_channels: 1 for grey, 3 for RGB.
        num_classes: Number of classes besides "no class"; 0 makes it unconditional.
        dropout: Dropout in the residual blocks.
    Raises:
        OSError: If there is no such network, in safetensors.
        ValueError: If it does not fit the pictures; the message says why.
    """
    stock = stock_network(UNet2DModel, source, "unet")
    old = stock.config
    halvings = len(old["block_out_channels"]) - 1
    if old["in_channels"] != image_channels or old["out_channels"] != image_channels:
        raise ValueError(
            f"{source} turns {old['in_channels']} channels into {old['out_channels']}, and the pictures have "
            f"{image_channels}: see data.channels"
        )
    if any(side % 2**halvings for side in _sides(size)):
        what = f"pictures of {_words(_sides(size))} pixels do not halve {halvings} times"
        raise ValueError(f"{what}, as {source} does: see data.size")
    if old["time_embedding_type"] != "positional" or old["class_embed_type"] is not None:
        raise ValueError(f"{source} embeds its time or class in a way that flow matching cannot use")
    changed = {
        "sample_size": _sample_size(size),
        "dropout": dropout,
        "num_class_embeds": num_classes + 1 if num_classes else None,
    }
    return with_changes(stock, changed, "class_embedding.")
