"""The versions and the hardware that a run used, for its folder."""

import platform
from typing import Any

import torch

from flowimg.version import __version__


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """The content of environment.json."""
    import accelerate
    import numpy

    return {
        "flowimg": __version__,
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, accelerate, numpy)},
        "platform": platform.platform(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
