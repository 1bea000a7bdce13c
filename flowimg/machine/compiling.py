"""Compiling a field: whether it is worth it, and what torch.compile is told."""

import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from flowimg.errors import MachineError
from flowimg.machine.device import pick_device

WORTH = 4000
"""Evaluations of the field, a batch each, from which a compiler's minute pays on a GPU."""
LONG = 2000
"""Steps of a run for which a compiler's minute is no loss: an H100 wins 30 to 60 ms in each of CIFAR-10's."""


def compiles(asked: bool | str, name: str, cache: Path, worth: bool = True) -> bool:
    """Whether a field is compiled: as requested, or where it is worth the wait and the compiler is at its best.

    Its code is kept in the cache folder, for the next start.

    Args:
        asked: True, False, auto, or graphs.
        name: Name of the setting.
        cache: The cache folder.
        worth: Whether it would be worth it, on a GPU.

    Raises:
        MachineError: If there is no compiler for the code that it writes for a CPU, or no GPU for graphs.
    """
    device = pick_device().type
    if asked == "graphs" and (device != "cuda" or torch.version.hip is not None):
        raise MachineError(f"{name} graphs needs an NVIDIA GPU: leave it out, or say true")
    if not (worth and device == "cuda" if asked == "auto" else asked):
        return False
    if device == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise MachineError(f"{name} needs a C++ compiler on a CPU, such as g++: install one, or leave it out")
    # torch would suggest TF32 for fp32, and report that diffusers caches what it looks up
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
    return True


def compiler_options(
    asked: bool | str, steps: int, processes: int, cache: Path, convolutions: bool
) -> dict[str, bool] | None:
    """Options of torch.compile for a training step on `processes` processes; None where it is not compiled.

    A GPU waits for the host to send it the thousand operations of a step, unless they are recorded as CUDA graphs. And
    the convolutions of a U-Net in 16 bits have their channels last throughout: the compiler, left to itself, decides so
    for all of a network or for none, and for none where one has half as many channels out as in, as every U-Net has;
    then pictures are transposed around each of them. Both are done on NVIDIA's GPUs, on one process: where several
    average their gradients nobody has tried it yet.

    Args:
        asked: train.compile.
        steps: Steps of the run; a compiler's minute pays from `LONG` on.
        processes: Processes of the launch.
        cache: The cache folder.
        convolutions: Whether the field is made of convolutions in 16 bits.

    Raises:
        MachineError: See `compiles`.
    """
    if not compiles(asked, "train.compile", cache, steps >= LONG):
        return None
    if pick_device().type != "cuda":
        return {}
    single = processes == 1 and torch.version.hip is None
    return {
        "triton.cudagraphs": asked == "graphs" or (asked == "auto" and single),
        "force_layout_optimization": single and convolutions,
    }


def how_compiled(options: dict[str, bool] | None) -> str:
    """What `compiler_options` amount to, in words."""
    if options is None:
        return "not compiled"
    words = {"triton.cudagraphs": "in graphs", "force_layout_optimization": "channels last"}
    return ", ".join(["compiled", *(word for name, word in words.items() if options.get(name))])


class Compiled(nn.Module):
    """A field that is compiled for batches of one size, and of twice that, as guidance has them.

    Any other, as the last one, goes through the field as it is: it is not worth a compiler's time.
    """

    def __init__(self, field: nn.Module, size: int) -> None:
        super().__init__()
        self.field, self.sizes = field, (size, 2 * size)
        self.compiled = torch.compile(field, dynamic=False)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        """The field's velocity, shape of x; see the field."""
        velocity: Tensor = (self.compiled if len(x) in self.sizes else self.field)(x, t, cond)
        return velocity


def compiled_for(
    field: nn.Module, asked: bool | str, count: int, batch_size: int, num_steps: int, cache: Path
) -> nn.Module:
    """The field, compiled where that is requested, or worth it for `count` samples on this process."""
    size = min(count, batch_size)
    worth = size > 0 and count // size * num_steps >= WORTH
    return Compiled(field, size) if compiles(asked, "--compile", cache, worth) else field
