"""How much memory training takes, and the largest micro-batch that fits.

    fixed       weights, gradients, the optimiser's state and the averages of the weights: known from the parameters,
                see `scaling.memory_of`; and what a forward pass stores of the weights: measured
    per sample  what the forward pass stores for the backward pass: measured at two batch sizes

The global batch stays the same: gradients are accumulated over micro-batches.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from flowimg.errors import MachineError

OVERHEAD = 1.4
"""Peak memory of a pass relative to what it stores: gradients of activations and workspaces come on top."""
USABLE = 0.85
"""Fraction of the free memory that training may use."""
PROBE_SIZE = 4
"""Samples in the smaller of the two measured passes."""


def kept_bytes(field: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass of this network stores for its backward pass; shared memory counts once."""
    own = {p.untyped_storage()._cdata for p in field.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:  # the meta device has no addresses
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU; else of the machine, within the limit of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        most, now = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text("utf-8")) for name in ("max", "current"))
        free = min(free, most - now)
    return free


def largest(share: int, per_sample: float, fixed: float, free: float) -> int:
    """The largest micro-batch that fits, a divisor of a process's share of the batch.

    Raises:
        MachineError: If not even one sample fits.
    """
    for size in range(share, 0, -1):
        if share % size == 0 and fixed + size * per_sample * OVERHEAD <= free * USABLE:
            return size
    need = (fixed + per_sample * OVERHEAD) / 2**30
    raise MachineError(
        f"not even a micro-batch of 1 fits: it needs about {need:.1f} GiB, and {free * USABLE / 2**30:.1f} GiB are "
        "usable; use a smaller network or data.size, or field.gradient_checkpointing"
    )


def find_micro_batch(
    field: nn.Module, forward: Callable[[int], Tensor], share: int, fixed: float, tried: bool = True
) -> int:
    """The largest micro-batch that fits on this process's device.

    Args:
        field: The network, on its device, not wrapped yet.
        forward: Number of samples to their mean loss, in the precision of the run.
        share: Samples of the global batch per process.
        fixed: Bytes of the run that do not grow with the batch, beside the weights of the field, which are there.
        tried: Whether a GPU passes through a micro-batch of that size, forward and back, to be sure.

    Raises:
        MachineError: If not even one sample fits.
    """
    training = field.training
    field.train()
    small = min(PROBE_SIZE, share)
    more = min(2 * small, share)
    first = kept_bytes(field, partial(forward, small))
    per_sample = first / small
    if more > small:
        per_sample = max(kept_bytes(field, partial(forward, more)) - first, 0) / (more - small)
    fixed += first - small * per_sample
    device = next(field.parameters()).device
    size = largest(share, per_sample, fixed, free_bytes(device))
    while tried and device.type == "cuda" and size > 1:  # the final answer, with everything else in memory
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
