"""The device, and the memory allocator of the C library."""

import ctypes
import os

import psutil
import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt, from malloc.h: freed memory kept, memory fetched ahead, size mapped separately."""


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU; the CPU too if ACCELERATE_USE_CPU is set."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, on Apple's as much as one process should use; else of the machine."""
    if device.type == "cpu":
        return psutil.virtual_memory().total
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.cuda.get_device_properties(device).total_memory


def keep_memory() -> None:
    """Let glibc keep freed memory; otherwise a CPU maps and zeroes the large tensors again in every step.

    Changes nothing with a GPU, with another C library, or if MALLOC_ variables are set.
    """
    if pick_device().type != "cpu" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):  # older versions allow no more
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_TOP_PAD, 2**27)
