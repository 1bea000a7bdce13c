"""The machine a job runs on: device, precision, processes."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from flowimg import __version__


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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
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
