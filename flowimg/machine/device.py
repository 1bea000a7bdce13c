"""The device, and the C library's memory."""

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""What mallopt of glibc may be told, by malloc.h: what is kept of freed memory, fetched ahead, and mapped by itself."""


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU (also if ACCELERATE_USE_CPU asks for it)."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, or what Apple's lets one process have."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.cuda.get_device_properties(device).total_memory


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
