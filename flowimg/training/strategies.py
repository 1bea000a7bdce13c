"""How a field is spread over processes: on one, or a whole copy on each (DDP).

The loop asks the strategy of its run and never which one it is. All of it stands on accelerate, which launches the
processes, knows their devices, and rounds to the precision of the run where the network is evaluated (autocast).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Strategy:
    """One process, which has all of the field; the base of every other strategy.

    `process` of `processes` is this one; `device` is its own. `warms_up` says that the first backward pass differs from
    the later ones: see `loop.warm_up`.
    """

    warms_up = False

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.is_first: bool = accelerator.is_main_process

    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16, or None."""
        return self.accelerator.scaler

    def wrap(self, field: nn.Module) -> nn.Module:
        """The field to train through: in the precision of the run, gradients averaged over processes."""
        # in fp32 there is nothing to wrap, and accelerate would import torch's sharded tensors to find that out
        return field if self.accelerator.mixed_precision == "no" else self.accelerator.prepare(field)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """While inside, gradients stay on their process: for all micro-batches but the last."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run, for fields that are not wrapped."""
        return self.accelerator.autocast()

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """The Euclidean norm of all numbers of all tensors together, shape ()."""
        # as torch.nn.utils.get_total_norm to the bit, without sorting them by device and dtype at every step
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))

    def largest(self, flags: Tensor) -> None:
        """Replace each number by its largest over the processes, in place."""

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in order; the same number from each."""
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return value

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[nn.Module]:
        """The whole module on each process, to look through; nobody waits for another process inside."""
        yield module

    def collect(self, tensor: Tensor, owner: int = 0) -> Tensor:
        """The whole of a tensor on its owner, to save."""
        return tensor

    def load(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Set a module to whole tensors."""
        module.load_state_dict(tensors)

    def wait(self) -> None:
        """Wait for all processes."""


class DataParallel(Strategy):
    """A whole copy of the field on each of several processes, gradients averaged by torch's DDP."""

    warms_up = True

    def wrap(self, field: nn.Module) -> nn.Module:
        return self.accelerator.prepare(field)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(wrapped)

    def largest(self, flags: Tensor) -> None:
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)

    def gather_rows(self, rows: Tensor) -> Tensor:
        return self.accelerator.gather(rows)

    def sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum")

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def strategy_of(accelerator: Accelerator) -> Strategy:
    """The strategy for the processes that were launched."""
    return Strategy(accelerator) if accelerator.num_processes == 1 else DataParallel(accelerator)
