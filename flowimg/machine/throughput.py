"""What a run makes of its machine: the share of the speed of matrix products that its network reaches."""

import sys
import time

import torch
from accelerate import Accelerator
from torch import Tensor, nn

SIZES = {"cuda": 8192}
"""Rows of the square matrices that are multiplied to know a device; 1,024 where it is not named."""


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of large matrices: the best of a few, after one to warm up."""
    size = SIZES.get(device.type, 1024)
    a = torch.randn(size, size, device=device).to(dtype)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # which waits for the product
        taken.append(time.perf_counter() - began)
    return float(2 * size**3 / min(taken[1:]))


@torch.no_grad()
def pass_flops(field: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating-point operations of a sample's way forward and back, as torch counts them: back is twice forward.

    Args:
        field: On its device, in evaluation mode.
        shape: Of a sample, *D.
    """
    from torch.utils.flop_counter import FlopCounterMode  # which imports triton

    first: Tensor = next(field.parameters())
    x, t = first.new_zeros(1, *shape), first.new_full((1,), 0.5)
    with FlopCounterMode(display=False) as counter:
        field(x, t)
    return 3 * int(counter.get_total_flops())


def samples_at_peak(accelerator: Accelerator, field: nn.Module, shape: tuple[int, ...]) -> float:
    """Samples a second of all processes, if their network ran as fast as matrix products do on this one's device."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    with accelerator.autocast():
        needed = pass_flops(field, shape)
    return accelerator.num_processes * product_flops(accelerator.device, dtype) / needed


def peak_memory(device: torch.device) -> int | None:
    """MiB that were in use at most: of the GPU by tensors, of a CPU by this process; None where nobody counts."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 2**20 if sys.platform == "darwin" else most / 2**10)
