"""diffusers' residual blocks on a CPU in bfloat16, with the channels last.

oneDNN's convolutions take half the time on pictures in channels-last layout, but torch's group norm takes five to ten
times as long on them, and diffusers' blocks convert them back for their shortcuts. So group norm and SiLU are one
function in C here (norm.py), and the blocks keep the layout. Where it cannot be compiled, on other devices, in other
precisions and under torch.compile, the blocks are diffusers' own. Modules and weights are always those of the stock
network.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from flowimg.fields.cpu.norm import LAST, MOST, Norm, library


def _norm(module: nn.GroupNorm, x: Tensor, e: Tensor | None, silu: bool) -> Tensor:
    return Norm.apply(x, e, module.weight, module.bias, module.num_groups, module.eps, silu)


def _fits(x: Tensor, module: nn.GroupNorm) -> bool:
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.dim() == 4
        and module.weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and library().functions() is not None
    )


class QuickNorm(nn.GroupNorm):
    """A group norm."""

    def forward(self, x: Tensor) -> Tensor:
        return _norm(self, x, None, silu=False) if _fits(x, self) else super().forward(x)


class QuickBlock(ResnetBlock2D):  # type: ignore[misc]
    """A residual block: norm, SiLU, convolution, twice, the time's shift between; and what it adds to."""

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not _fits(input_tensor, self.norm1):
            return super().forward(input_tensor, temb, *args, **kwargs)
        x = input_tensor.contiguous(memory_format=LAST)
        h = self.conv1(_norm(self.norm1, x, None, silu=True))
        e = self.time_emb_proj(F.silu(temb))
        if self.time_embedding_norm == "scale_shift":
            scale, shift = e[:, :, None, None].chunk(2, dim=1)
            h = F.silu(_norm(self.norm2, h, None, silu=False) * (1 + scale) + shift)
        else:
            h = _norm(self.norm2, h, e, silu=True)
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            # by way of a matrix its gradient has the weight's own strides, or DDP would copy it and warn
            weight = self.conv_shortcut.weight.flatten(1)[:, :, None, None]
            x = F.conv2d(x, weight, self.conv_shortcut.bias)
        return x + h


class QuickUpsample(Upsample2D):  # type: ignore[misc]
    """Twice as many pixels a side, and a convolution."""

    def forward(self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if not self._quick(hidden_states) or output_size is not None:
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))

    @staticmethod
    def _quick(x: Tensor) -> bool:
        # what a block above left with its channels last; the stock one would turn it back where the batch is large
        return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous(memory_format=LAST)


def quicken(unet: UNet2DModel) -> UNet2DModel:
    """The same network, its blocks as above where they fit."""
    for module in unet.modules():
        if type(module) is nn.GroupNorm and _holds(module):  # house: exactly the stock classes are replaced
            module.__class__ = QuickNorm
        elif type(module) is ResnetBlock2D and _plain(module):  # house: as above
            module.__class__ = QuickBlock
        elif type(module) is Upsample2D and _convolves(module):  # house: as above
            module.__class__ = QuickUpsample
    return unet


def _holds(norm: nn.GroupNorm) -> bool:
    """Whether norm.c can compute it: it has weights, and no more channels than norm.c has room for."""
    return norm.affine and norm.num_channels <= MOST


def _plain(block: ResnetBlock2D) -> bool:
    """Whether it is the block that is written above."""
    return (
        _holds(block.norm1)
        and _holds(block.norm2)
        and block.upsample is None
        and block.downsample is None
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.time_embedding_norm in ("default", "scale_shift")
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _convolves(upsample: Upsample2D) -> bool:
    """Whether it is the upsampling that is written above."""
    return upsample.use_conv and upsample.name == "conv" and upsample.norm is None
