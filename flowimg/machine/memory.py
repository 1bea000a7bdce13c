"""How much memory a pass takes, and the largest micro-batch that fits.

    fixed       weights, gradients, the optimiser's two averages, those of the weights: known from the parameters
    per sample  what the backward pass keeps of the forward pass, measured at two sizes

The global batch stays as it is: what does not fit at once is accumulated.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from flowimg.errors import MachineError

SLACK = 1.4
"""What a pass takes over what it keeps: gradients of activations and workspaces come and go."""
SHARE = 0.85
"""Share of the free memory that training may take."""
TRIED = 4
"""Samples in the smaller of the two passes that are measured."""


def fixed_bytes(field: nn.Module, averages: int = 1) -> dict[str, int]:
    """Bytes of everything that does not grow with the batch, with so many averages of the weights.

    AdamW has two averages of its own; Muon has one of a matrix, and needs as much again while it moves it.
    """
    weights = sum(p.numel() * p.element_size() for p in field.parameters())
    return {"weights": weights, "gradients": weights, "optimiser": 2 * weights, "average": averages * weights}


def kept_bytes(field: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass of this field keeps for its backward pass, each memory once."""
    own = {p.untyped_storage().data_ptr() for p in field.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, or of the machine within what its container allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        most, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, most - now)
    return free


def largest(share: int, per_sample: float, fixed: float, free: float) -> int:
    """The largest divisor of a process's share of the batch that fits.

    Raises:
        MachineError: If not even one sample does.
    """
    for size in sorted((n for n in range(1, share + 1) if share % n == 0), reverse=True):
        if fixed + size * per_sample * SLACK <= free * SHARE:
            return size
    need = (fixed + per_sample * SLACK) / 2**30
    raise MachineError(
        f"not even a micro-batch of 1 fits: about {need:.1f} GiB are needed, {free * SHARE / 2**30:.1f} GiB may be "
        "taken; take a smaller field or data.size, or field.gradient_checkpointing"
    )


def find_micro_batch(field: nn.Module, forward: Callable[[int], Tensor], share: int, averages: int = 1) -> int:
    """The largest micro-batch that fits on this process's device.

    Args:
        field: On its device, not wrapped yet.
        forward: Samples to their mean loss, in the precision of the run.
        share: Samples of the global batch that each process has.
        averages: Averages of the weights that are kept.

    Raises:
        MachineError: If not even one sample fits.
    """
    training = field.training
    field.train()
    small = min(TRIED, share)
    first = kept_bytes(field, partial(forward, small))
    more = min(2 * small, share)
    per_sample = first / small
    if more > small:
        per_sample = max(kept_bytes(field, partial(forward, more)) - first, 0) / (more - small)
    fixed = sum(fixed_bytes(field, averages).values()) - fixed_bytes(field)["weights"]  # those are there already
    device = next(field.parameters()).device
    size = largest(share, per_sample, fixed, free_bytes(device))
    while device.type == "cuda" and size > 1:  # the true answer, with what else is in the memory
        try:
            forward(size).backward()
            break
        except torch.OutOfMemoryError:
            size = max(n for n in range(1, size) if share % n == 0)
        finally:
            field.zero_grad()
            torch.cuda.empty_cache()
    field.zero_grad()
    field.train(training)
    return size
