"""Compiling a network: whether it is worth it, and with which options."""

import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from flowimg.errors import MachineError
from flowimg.machine.device import pick_device

MIN_EVALUATIONS = 4000
"""Evaluations of a batch from which a minute of compiling pays off on a GPU."""
MIN_STEPS = 2000
"""Steps of a run from which a minute of compiling pays off: an H100 saves 30 to 60 ms per step on CIFAR-10."""


def compiles(asked: bool | str, name: str, cache: Path, worth: bool = True) -> bool:
    """Whether to compile a network: as requested; `auto` compiles on GPUs where it is worth it.

    Prepares torch for it, whose compiled code is then cached for the next start.

    Args:
        asked: True, False, auto, or graphs.
        name: Name of the setting, for errors.
        cache: The cache folder.
        worth: Whether compiling for a GPU takes less time than it saves.

    Raises:
        MachineError: If a CPU has no C++ compiler, or graphs are requested without an NVIDIA GPU.
    """
    device = pick_device().type
    if asked == "graphs" and (device != "cuda" or torch.version.hip is not None):
        raise MachineError(f"{name} graphs needs an NVIDIA GPU: leave it out, or use true")
    if not (worth and device == "cuda" if asked == "auto" else asked):
        return False
    if device == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise MachineError(f"{name} needs a C++ compiler on a CPU, such as g++: install one, or leave it out")
    # torch would suggest TF32 for fp32, and warn about a cached function in diffusers
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
    return True


def compiler_options(
    asked: bool | str, steps: int, processes: int, cache: Path, convolutions: bool
) -> dict[str, bool] | None:
    """Options of torch.compile for a training step; None where it is not compiled.

    The two options are used on one NVIDIA GPU only; with several processes, which average gradients, they are untested.

        triton.cudagraphs          otherwise a GPU waits for the host to send it the thousand operations of a step
        force_layout_optimization  convolutions in 16 bits get their channels last. Otherwise the compiler decides for
                                   the whole network, and against it where one convolution halves the channels, as in
                                   every U-Net; then images are transposed around each convolution.

    Args:
        asked: train.compile.
        steps: Number of steps of the run.
        processes: Number of processes of the launch.
        cache: The cache folder.
        convolutions: Whether the network consists of convolutions in 16 bits.

    Raises:
        MachineError: See `compiles`.
    """
    if not compiles(asked, "train.compile", cache, steps >= MIN_STEPS):
        return None
    if pick_device().type != "cuda":
        return {}
    single = processes == 1 and torch.version.hip is None
    return {
        "triton.cudagraphs": asked == "graphs" or (asked == "auto" and single),
        "force_layout_optimization": single and convolutions,
    }


def how_compiled(options: dict[str, bool] | None) -> str:
    """A description of `compiler_options`."""
    if options is None:
        return "not compiled"
    words = {"triton.cudagraphs": "in graphs", "force_layout_optimization": "channels last"}
    return ", ".join(["compiled", *(word for name, word in words.items() if options.get(name))])


class Compiled(nn.Module):
    """A network that is compiled for batches of one size, and of twice that size, which guidance needs.

    Batches of other sizes, such as the last one, use the network as it is: compiling for them would take too long.
    """

    def __init__(self, field: nn.Module, size: int) -> None:
        super().__init__()
        self.field, self.sizes = field, (size, 2 * size)
        self.compiled = torch.compile(field, dynamic=False)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        """The velocity, shape of x."""
        velocity: Tensor = (self.compiled if len(x) in self.sizes else self.field)(x, t, cond)
        return velocity


def compiled_for(
    field: nn.Module, asked: bool | str, count: int, batch_size: int, num_steps: int, cache: Path
) -> nn.Module:
    """The network, compiled if that is requested, or worth it for `count` samples on this process."""
    size = min(count, batch_size)
    worth = size > 0 and count // size * num_steps >= MIN_EVALUATIONS
    return Compiled(field, size) if compiles(asked, "--compile", cache, worth) else field
