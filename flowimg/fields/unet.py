"""A velocity field for pictures: diffusers' UNet2DModel, kept in diffusers' own convention.

diffusers runs from data to noise: its sigma is 1 - t, its timestep 1000 sigma, its output noise - data. So

    v(x, t) = -unet(x, 1000 (1 - t)),

and the network inside is, as it stands, the unet of a stock `DDPMPipeline` with `FlowMatchEulerDiscreteScheduler`.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from flowimg.fields.mlp import class_rows

HEAD = 64
"""Channels an attention head; diffusers' default of 8 makes many tiny, slow heads."""
GROUPS = 32
"""Groups of the group norms; they must divide the channels of every level."""


def unet_problem(size: int, channels: Sequence[int], attention: Sequence[int]) -> str | None:
    """Why pictures of `size` pixels a side do not fit a U-Net of these levels, as a sentence; None if they do.

    Args:
        size: Pixels a side.
        channels: Channels of each level; each level after the first halves the size.
        attention: Sizes at which there is self-attention.
    """
    halvings = len(channels) - 1
    sizes = [size >> level for level in range(len(channels))]
    if size % 2**halvings:
        return (
            f"pictures of {size} pixels do not halve {halvings} times, as the {len(channels)} levels of "
            f"field.channels ask: resize or pad them to a multiple of {2**halvings}, or use fewer levels"
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
    """Velocity of pictures in [-1, 1].

    Args:
        size: Pixels a side of the square pictures.
        image_channels: 1 for grey, 3 for RGB.
        num_classes: Classes the field may be asked for; 0 makes it unconditional.
        channels: Channels of each level; each level after the first halves the size.
        layers: Residual blocks a level.
        attention: Sizes (pixels a side) at which there is self-attention; the middle always has it.
        dropout: Dropout in the residual blocks.
        zero_output: Start from the velocity 0.
        gradient_checkpointing: Compute activations again in the backward pass: slower, far less memory.
    Raises:
        ValueError: If size, levels and attention do not fit together; the message says what would.
    """

    def __init__(
        self,
        size: int,
        image_channels: int,
        num_classes: int = 0,
        channels: Sequence[int] = (128, 256),
        layers: int = 2,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        zero_output: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if problem := unet_problem(size, channels, attention):
            raise ValueError(problem)
        attends = [size >> level in attention for level in range(len(channels))]
        classes: dict[str, Any] = {"num_class_embeds": num_classes + 1} if num_classes else {}
        self.num_classes = num_classes
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=image_channels,
            out_channels=image_channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=HEAD,
            norm_num_groups=GROUPS,
            dropout=dropout,
            **classes,
        )
        if zero_output:
            nn.init.zeros_(self.unet.conv_out.weight)
            nn.init.zeros_(self.unet.conv_out.bias)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Velocity at x and t.

        Args:
            x: Pictures on the way from noise to data, shape (B, C, H, W).
            t: Flow times in [0, 1], shape (B,); 0 is noise, 1 is data.
            cond: Labels, shape (B,), `NO_CLASS` for none; None is no class for all.
        Returns:
            Velocity, shape (B, C, H, W), in data units per unit of t.
        """
        labels = class_rows(cond, len(x), self.num_classes, x.device) if self.num_classes else None
        # a float tensor: UNet2DModel would truncate a Python float to a whole number
        timestep = 1000 * (1 - t)
        return -self.unet(x, timestep, class_labels=labels).sample
