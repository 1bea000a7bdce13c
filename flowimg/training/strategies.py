"""How a field is spread over processes: on one, or a whole copy on each (DDP); `sharding` has parts on each.

The loop asks the strategy of its run and never which one it is. All of it stands on accelerate, which launches the
processes, knows their devices, and rounds to the precision of the run where the network is evaluated (autocast).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowimg.training.averages import make_ema, template


class Strategy:
    """One process, which has all of the field; the base of every other strategy.

    `process` of `processes` is this one; `device` is its own. `warms_up` says that the first backward pass differs from
    the later ones: see `loop.warm_up`. `template` is the field that was spread, without its weights.
    `shard` processes share one copy of it.
    """

    warms_up = False
    shard = 1
    template: nn.Module

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.is_first: bool = accelerator.is_main_process

    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16, or None."""
        return self.accelerator.scaler

    def spread(self, field: nn.Module, averages: int) -> tuple[nn.Module, list[nn.Module]]:
        """The field to train through, see `wrap`, and this many averages, which begin at its weights."""
        self.template = template(field)
        made = [self.average(field) for _ in range(averages)]
        return self.wrap(field), made

    def average(self, field: nn.Module) -> nn.Module:
        """An average of the weights, as far as it is on this process."""
        return make_ema(field)

    def keeps(self, count: int) -> bool:
        """Whether whole weights of this many parameters stay between the passes; all processes call it together."""
        return True

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

    def here(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """What this process has of each parameter, in the same memory: plain tensors, which the optimiser moves."""
        return list(parameters)

    def hand_over(self, field: nn.Module, here: list[Tensor]) -> None:
        """Move the gradients of the field's parameters to what this process has of them."""

    def norm(self, tensors: list[Tensor]) -> Tensor:
        """The Euclidean norm of all numbers of all tensors together, shape ()."""
        # as torch.nn.utils.get_total_norm to the bit, without sorting them by device and dtype at every step
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))

    def matrices(self, rows: Tensor, count: int, work: Callable[[Tensor], Tensor]) -> Tensor:
        """Work on matrices of which this process has some rows; the same rows of the results.

        Args:
            rows: Shape (N, rows on this process, columns).
            count: The number of rows of a whole matrix.
            work: From whole matrices, shape (any number, count, columns), to as many of that shape; of 0 it makes 0.
        """
        return work(rows)

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
        """The whole module on each process, in evaluation mode; it needs no other process then.

        All processes enter together. Nothing moves meanwhile.
        """
        training = module.training
        if training:  # walking the modules of a small field costs as much as its operations
            module.eval()
        try:
            yield module
        finally:
            if training:
                module.train()

    def owns(self, number: int) -> bool:
        """Whether this process saves the file of this number."""
        return self.is_first

    def collect(self, tensor: Tensor, shape: torch.Size | None, number: int) -> Tensor | None:
        """The whole of a tensor, copied to the host of the process that owns a file; None on the others.

        All processes call it in the same order.

        Args:
            tensor: What this process has of it.
            shape: That of the whole; None for what each process has whole.
            number: Of the file.
        """
        return tensor.detach().to("cpu", copy=True) if self.owns(number) else None

    def rows(self, whole: Tensor) -> Tensor:
        """What this process has of a tensor."""
        return whole

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
