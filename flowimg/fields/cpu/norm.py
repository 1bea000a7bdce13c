"""Group norm and SiLU of bfloat16 pictures with their channels last, on a CPU: one function, in C (norm.c).

Compiled with the system's C compiler in the background while diffusers is imported, which takes seconds; on Linux only.
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
from torch import Tensor
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("norm.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
MOST = 4096
"""Channels that norm.c has room for."""
LAST = torch.channels_last


class Library:
    """norm.c, compiled in the background; `functions` waits for it."""

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
        """The two functions; None if they are unavailable here."""
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
    """The library of this process; the first call starts to compile it."""
    global _library
    if _library is None:
        _library = Library()
    return _library


class Norm(torch.autograd.Function):
    """Group norm of x + e, with e the same for all pixels, and optionally SiLU: see norm.c."""

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
