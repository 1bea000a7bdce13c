"""Hardware utilisation of a run (MFU): the speed of its network relative to plain matrix products."""

import sys
import time

import torch
from accelerate import Accelerator
from torch import Tensor, nn

SIZES = {"cuda": 8192}
"""Rows of the square matrices that measure a kind of device; 1,024 for other kinds."""


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second in products of large matrices: the best of five, after a warm-up."""
    size = SIZES.get(device.type, 1024)
    a = torch.randn(size, size, device=device).to(dtype)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the product
        taken.append(time.perf_counter() - began)
    return float(2 * size**3 / min(taken[1:]))


@torch.no_grad()
def pass_flops(field: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations per sample in a forward and a backward pass; the backward pass counts twice.

    Args:
        field: The network, in evaluation mode; its weights may be on the meta device.
        shape: Shape of a sample, *D.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    first: Tensor = next(field.parameters())
    x, t = first.new_zeros(1, *shape), first.new_full((1,), 0.5)
    with FlopCounterMode(display=False) as counter:
        field(x, t)
    return 3 * int(counter.get_total_flops())


def samples_at_peak(accelerator: Accelerator, field: nn.Module, shape: tuple[int, ...]) -> float:
    """Samples per second over all processes if the network ran as fast as matrix products do on this device."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    with accelerator.autocast():
        needed = pass_flops(field, shape)
    return accelerator.num_processes * product_flops(accelerator.device, dtype) / needed


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in MiB: of tensors on a GPU, of this process on a CPU; None on systems that do not measure it."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 2**20 if sys.platform == "darwin" else most / 2**10)
