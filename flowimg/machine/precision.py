"""The precision of the network: bf16 where the device is fast in it, and fp32 that is fp32."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from flowimg.machine.device import pick_device


def fast_in_bf16(device: torch.device) -> bool:
    """Whether a device has units for products in bf16: then they are some times as fast as in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
    return device.type == "cpu" and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def settle_precision(asked: str, gains: bool) -> str:
    """The precision that is asked for; `auto` is bf16 for fields that gain from it where the device is fast in it."""
    if asked != "auto":
        return asked
    return "bf16" if gains and fast_in_bf16(pick_device()) else "fp32"


def settle_tf32(precision: str) -> None:
    """Have fp32 be fp32 on a GPU, where torch's convolutions round to TF32's 10 bits: what is fast in that has bf16."""
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or fp32 that is fp32."""
    settle_tf32(precision)
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
