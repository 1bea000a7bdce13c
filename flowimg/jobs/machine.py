"""The machine a job runs on: device, precision, processes."""

import atexit
import ctypes
import gc
import os
import platform
import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from flowimg import __version__
from flowimg.config import Config, Drawing, UNet
from flowimg.data.cache import cache_folder
from flowimg.fields.norm import library

DrawingT = TypeVar("DrawingT", bound=Drawing)

LONG = 2000
"""Steps of a run for which a compiler's minute is no loss: an H100 wins 30 to 60 ms in each of CIFAR-10's."""
PATIENCE = timedelta(hours=2)
"""How long processes wait for one that fetches data or draws; ten minutes, NCCL's own, are soon over."""


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""What mallopt of glibc may be told, by malloc.h: what is kept of freed memory, fetched ahead, and mapped by itself."""


class MachineError(Exception):
    """The machine or the launch does not fit; the message says what to change."""

    exit_status = 4


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU (also if ACCELERATE_USE_CPU asks for it)."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def alone(verb: str) -> None:
    """Refuse several processes where they would all do the same work and write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MachineError(f"flowimg {verb} runs on one process for now: start it without a launcher")


def processes(verb: str) -> PartialState:
    """All processes of a launch, for work that they share.

    Raises:
        MachineError: If they do not see each other.
    """
    get_ready()
    state = PartialState(cpu=pick_device().type == "cpu", timeout=PATIENCE)
    check_launch(state.num_processes, verb)
    return state


def get_ready() -> None:
    """What a process does before it meets others; see `leave_together`."""
    keep_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # its functions keep, for ever, the group that there is when it is imported, as torch's compiler does
        import torch.distributed.nn.functional  # noqa: F401


def leave_together() -> None:
    """Wait for all processes; at the exit of this one, take their group apart before Python does.

    One that went ahead, or left the group's threads to the interpreter's end, may be aborted, and its launcher would
    then kill the others and call the launch a failure.
    """
    PartialState().wait_for_everyone()
    if torch.distributed.is_initialized():
        atexit.register(_take_apart)


def _take_apart() -> None:
    PartialState().destroy_process_group()
    gc.collect()  # the threads end with the last that holds the group, which may be a cycle


def keep_memory() -> None:
    """Have glibc keep memory that is freed: else a CPU maps and zeroes the large tensors of every step anew.

    Where there is a GPU, another C library, or where MALLOC_ variables are set, all stays as it is.
    """
    if pick_device().type != "cpu" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):  # older ones take no more
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_TOP_PAD, 2**27)


def is_first() -> bool:
    """Whether this is the first of the processes that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def lost_others(error: Exception) -> bool:
    """Whether a process of many fails because another one, which told why, has ended."""
    return isinstance(error, torch.distributed.DistError) or "closed by peer" in str(error)


def check_launch(processes: int, verb: str) -> None:
    """Refuse processes that were launched together and do not see each other.

    Raises:
        MachineError: With the launch that works.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > processes:
        raise MachineError(
            f"{launched} processes were launched, but each sees only itself and would write the same files: on a CPU "
            f"launch with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N scripts/{verb}.py`"
        )


def fast_in_bf16(device: torch.device) -> bool:
    """Whether a device has units for products in bf16: then they are some times as fast as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
    return device.type == "cpu" and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def compiles(asked: bool | str, name: str, config: Config, worth: bool = True) -> bool:
    """Whether a run's field is compiled: as asked, or where it is worth the wait and the compiler is at its best.

    Its code is kept in the cache folder, for the next start.

    Args:
        asked: True, False, auto, or graphs.
        name: Of the setting that asks.
        config: The run's settings.
        worth: Whether it would be, on a GPU.
    Raises:
        MachineError: If there is no compiler for the code that it writes for a CPU, or no GPU for graphs.
    """
    device = pick_device().type
    if asked == "graphs" and (device != "cuda" or torch.version.hip is not None):
        raise MachineError(f"{name} graphs needs an NVIDIA GPU: leave it out, or say true")
    if not (worth and device == "cuda" if asked == "auto" else asked):
        return False
    if device == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise MachineError(f"{name} needs a C++ compiler on a CPU, as g++: install one, or leave it out")
    # it says that fp32 could be TF32, and that diffusers caches what it looks up
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    cache = cache_folder(config.data.cache if config.data.kind == "images" else None)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
    return True


def compiler_options(config: Config, count: int) -> dict[str, bool] | None:
    """What torch.compile is told of a training step on so many processes; None where it is not compiled: `compiles`.

    A GPU waits for the host to send it the thousand operations of a step, unless they are recorded as CUDA graphs. And
    the convolutions of a U-Net in 16 bits have their channels last throughout: the compiler, left to itself, decides so
    for all of a network or for none, and for none where one has half as many channels out as in, as every U-Net has;
    then pictures are turned around each of them. Both are done on NVIDIA's GPUs, on one process: where several sum
    their gradients nobody has tried it yet.
    """
    asked = config.train.compile
    if not compiles(asked, "train.compile", config, config.train.steps >= LONG):
        return None
    if pick_device().type != "cuda":
        return {}
    single = count == 1 and torch.version.hip is None
    return {
        "triton.cudagraphs": asked == "graphs" or (asked == "auto" and single),
        "force_layout_optimization": single and isinstance(config.field, UNet) and config.train.precision != "fp32",
    }


def how_compiled(options: dict[str, bool] | None) -> str:
    """What `compiler_options` come to, in words."""
    if options is None:
        return "not compiled"
    words = {"triton.cudagraphs": "in graphs", "force_layout_optimization": "channels last"}
    return ", ".join(["compiled", *(word for name, word in words.items() if options.get(name))])


def settle_precision(asked: str, config: Config) -> str:
    """The arithmetic that is asked for; `auto` is bf16 for U-Nets where the device is fast in it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if isinstance(config.field, UNet) and fast_in_bf16(pick_device()) else "fp32"


def wants_c(config: Config, device: torch.device) -> bool:
    """Whether a part of the field is C, where that can be compiled: of U-Nets on a CPU in bf16."""
    return isinstance(config.field, UNet) and device.type == "cpu" and config.train.precision == "bf16"


def blocks_of(config: Config, device: torch.device) -> str | None:
    """What a U-Net's blocks are on a CPU in bf16: C, or torch where that cannot be compiled; None for other fields.

    Waits for the compiler.
    """
    if not wants_c(config, device):
        return None
    return "torch" if library().functions() is None else "C"


def settle(settings: DrawingT, config: Config) -> DrawingT:
    """The same settings of a verb that draws, its arithmetic settled for this run and this device."""
    return settings.model_copy(update={"precision": settle_precision(settings.precision, config)})


def settle_tf32(precision: str) -> None:
    """Have fp32 be fp32 on a GPU, where torch's convolutions round to TF32's 10 bits: what is fast in that has bf16."""
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or fp32 that is fp32."""
    settle_tf32(precision)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """What a run was made with, for its folder."""
    import accelerate
    import numpy

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "flowimg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
