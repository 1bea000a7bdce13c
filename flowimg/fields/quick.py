"""diffusers' residual blocks on a CPU in bfloat16, with the channels last.

oneDNN's convolutions take half the time on pictures whose channels lie together, but torch's group norm takes five to
ten times as long on them, and diffusers' blocks turn them back for their shortcuts. So group norm and SiLU are one
function here, in C (norm.c), and the blocks leave the layout alone. It is compiled with the C compiler of the machine
while the data are loaded; without one, on other devices, in other precisions and under torch.compile the blocks are
diffusers' own. Modules and weights are those of the stock network, whatever computes it.
"""

import atexit
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("norm.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
MOST = 4096
"""Channels that norm.c has room for."""
LAST = torch.channels_last


class Library:
    """norm.c, being compiled; `functions` waits for it."""

    def __init__(self) -> None:
        self._functions: Any = None
        self._compiler: subprocess.Popen[bytes] | None = None
        found = shutil.which("cc") or shutil.which("gcc")
        if found is None or sys.platform != "linux":
            return
        try:
            self._folder = TemporaryDirectory(prefix="flowimg-")
            made = Path(self._folder.name) / "norm.o"
            self._compiler = subprocess.Popen(
                [found, *FLAGS, "-c", str(SOURCE), "-o", str(made)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError:  # no folder to write to, or nothing that can be run
            return
        # linked without -fopenmp, that it finds torch's own threads, and starts no others beside them
        self._link = [found, "-shared", str(made), "-o", str(made.with_suffix(".so")), "-lm"]
        atexit.register(self.functions)

    def functions(self) -> Any:
        """The two functions; None if they cannot be had here."""
        if self._compiler is not None:
            compiled = self._compiler.wait() == 0 and subprocess.run(self._link, capture_output=True).returncode == 0
            self._compiler = None
            if compiled:
                self._functions = self._load(self._link[-2])
            self._folder.cleanup()
        return self._functions

    @staticmethod
    def _load(path: str) -> Any:
        try:
            found = ctypes.CDLL(path)
        except OSError:  # its torch has other threads, or its folder may not be run from
            return None
        pointer, many = ctypes.c_void_p, ctypes.c_long
        found.forward.argtypes = [*[pointer] * 7, *[many] * 4, ctypes.c_float, ctypes.c_int]
        found.backward.argtypes = [*[pointer] * 11, *[many] * 4, ctypes.c_int]
        found.forward.restype = found.backward.restype = None
        return found


_library: Library | None = None


def library() -> Library:
    """That of this process."""
    global _library
    if _library is None:
        _library = Library()
    return _library


class Norm(torch.autograd.Function):
    """Group norm of x + e, e the same for all pixels, and SiLU if asked: see norm.c."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, e: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        """x and the result (B, C, H, W) in bfloat16, channels last; e (B, C) or None, weight and bias (C,) in float."""
        x = x.contiguous(memory_format=LAST)
        e = None if e is None else e.float().contiguous()
        y = torch.empty_like(x)
        mean, rstd = (torch.empty(len(x), groups) for _ in range(2))
        sizes = (len(x), x.shape[2] * x.shape[3], x.shape[1], groups)
        library().functions().forward(*_places(x, e, y, weight, bias, mean, rstd), *sizes, eps, silu)
        ctx.save_for_backward(x, e, weight, bias, mean, rstd)
        ctx.sizes, ctx.silu = sizes, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, e, weight, bias, mean, rstd = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=LAST)
        dx = torch.empty_like(x)
        of_e, of_weight, of_bias = (torch.empty(x.shape[:2]) for _ in range(3))
        given = _places(x, e, dy, dx, weight, bias, mean, rstd, None if e is None else of_e, of_weight, of_bias)
        library().functions().backward(*given, *ctx.sizes, ctx.silu)
        return dx, None if e is None else of_e, of_weight.sum(0), of_bias.sum(0), None, None, None


def _places(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


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
    """The same network, its blocks as above where they fit; norm.c begins to be compiled where there is no GPU."""
    if not torch.cuda.is_available():
        library()
    for module in unet.modules():
        if type(module) is nn.GroupNorm and _holds(module):
            module.__class__ = QuickNorm
        elif type(module) is ResnetBlock2D and _plain(module):
            module.__class__ = QuickBlock
        elif type(module) is Upsample2D and module.use_conv and module.name == "conv" and module.norm is None:
            module.__class__ = QuickUpsample
    return unet


def _holds(norm: nn.GroupNorm) -> bool:
    """Whether norm.c can do it: it has room for so many channels, and weights to read."""
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
