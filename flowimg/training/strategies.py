"""How a field is spread over processes: on one, or a whole copy on each (DDP).

The loop asks the strategy of its run and never which one it is. All of it stands on accelerate, which launches the
processes, knows their devices, and rounds to the precision of the run where the network is evaluated (autocast).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Strategy(Protocol):
    """What the loop asks: which processes there are, and how a field and its tensors lie on them."""

    accelerator: Accelerator
    warms_up: bool
    """Whether its first backward pass is another one than the later ones; see `loop.warm_up`."""

    @property
    def device(self) -> torch.device: ...
    @property
    def process(self) -> int: ...
    @property
    def processes(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16, or None."""
        ...

    def wrap(self, field: nn.Module) -> nn.Module:
        """The field to train through: in the precision of the run, gradients averaged over processes."""
        ...

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """While inside, gradients stay on their process: for all micro-batches but the last."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run, for fields that are not wrapped."""
        ...

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The Euclidean norm of all numbers of all tensors together, shape ()."""
        ...

    def largest(self, flags: Tensor) -> None:
        """Replace each number by its largest over the processes, in place."""
        ...

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in order; the same number from each."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a number over all processes."""
        ...

    def whole(self, module: nn.Module) -> AbstractContextManager[nn.Module]:
        """The whole module on each process, to look through; nobody waits for another process inside."""
        ...

    def collect(self, tensor: Tensor, owner: int = 0) -> Tensor:
        """The whole of a tensor on its owner, to save."""
        ...

    def load(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Set a module to whole tensors."""
        ...

    def wait(self) -> None:
        """Wait for all processes."""
        ...


class Single:
    """One process; see `Strategy`."""

    warms_up = False

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.is_first: bool = accelerator.is_main_process

    @property
    def scaler(self) -> Any:
        return self.accelerator.scaler

    def wrap(self, field: nn.Module) -> nn.Module:
        # in fp32 there is nothing to wrap, and accelerate would import torch's sharded tensors to find that out
        return field if self.accelerator.mixed_precision == "no" else self.accelerator.prepare(field)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        # as torch.nn.utils.get_total_norm to the bit, without sorting them by device and dtype at every step
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))

    def largest(self, flags: Tensor) -> None:
        pass

    def gather_rows(self, rows: Tensor) -> Tensor:
        return rows

    def sum(self, value: Tensor) -> Tensor:
        return value

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[nn.Module]:
        yield module

    def collect(self, tensor: Tensor, owner: int = 0) -> Tensor:
        return tensor

    def load(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        module.load_state_dict(tensors)

    def wait(self) -> None:
        pass


class DataParallel(Single):
    """A whole copy of the field on each of several processes, gradients averaged by torch's DDP; see `Strategy`."""

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
    return Single(accelerator) if accelerator.num_processes == 1 else DataParallel(accelerator)
