"""The precision of the network: bf16 on devices where it is fast, and fp32 without TF32."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from flowimg.machine.device import pick_device


def fast_in_bf16(device: torch.device) -> bool:
    """Whether a device has hardware for matrix products in bf16, which makes them several times as fast as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # not Linux
        return False
    return device.type == "cpu" and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def settle_precision(asked: str, gains: bool) -> str:
    """The requested precision; `auto` is bf16 for networks that gain from it, on devices with fast bf16."""
    if asked != "auto":
        return asked
    return "bf16" if gains and fast_in_bf16(pick_device()) else "fp32"


def settle_tf32(precision: str) -> None:
    """Turn off TF32 for fp32: torch's convolutions on GPUs would round to 10 bits. Those GPUs have bf16 for speed."""
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or fp32 without TF32."""
    settle_tf32(precision)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
