"""What a run was made with, for its folder."""

import platform
from typing import Any

import torch

from flowimg.version import __version__


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
