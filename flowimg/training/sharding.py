"""A field of which each process holds a part only: weights, gradients, optimiser and averages, by torch's fully_shard.

Processes 0 to N-1 share one copy of everything, N to 2N-1 the next one, and so on. Of a weight of R rows, process k of
a copy holds the rows from k r on, r = ceil(R / N) of them while there are any. A pass gathers the whole weights of a
block of the field where it is used; gradients are summed over the processes of a copy, then over the copies.

What moves is what lies here: the optimiser, clipping and the averages work on plain tensors that share memory with the
parts, and do not know that there are others. Weights are gathered in fp32 and rounded where they are used, as without
sharding, so the numbers are those of DDP up to the order of sums.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flowimg.training.averages import with_weights
from flowimg.training.strategies import DataParallel

SMALL = 2**22
"""Parameters up to which a field is one block: cut into more, it would wait for more calls than it saves memory."""
KEPT = 0.25
"""Share of the device's memory up to which gathered weights are kept for the backward pass."""
HELD = 6
"""Bytes of gathered weights and of their 16-bit copies, for each parameter."""


class Sharded(DataParallel):
    """Weights, gradients, optimiser and averages cut over `shard` processes; a copy of them on each such group."""

    warms_up = False

    def __init__(self, accelerator: Accelerator, shard: int, patience: timedelta, memory: int) -> None:
        """Join processes that wait for each other at most for `patience`, on devices with this many bytes of memory."""
        super().__init__(accelerator)
        self.shard, self.copies, self.memory = shard, self.processes // shard, memory
        self.part, self.copy = self.process % shard, self.process // shard
        if self.copies == 1:
            self.mesh = torch.distributed.init_device_mesh(self.device.type, (shard,), mesh_dim_names=("shard",))
        else:  # groups that a mesh makes itself have torch's own, shorter patience
            ranks, make = torch.arange(self.processes).view(-1, shard), torch.distributed.new_subgroups_by_enumeration
            groups = [make(of.tolist(), patience)[0] for of in (ranks.T, ranks)]
            names = ("copies", "shard")
            self.mesh = DeviceMesh.from_group(groups, self.device.type, ranks, mesh_dim_names=names)
        self.group = self.mesh.get_group("shard")

    def wrap(self, field: nn.Module) -> nn.Module:
        """The field itself, its weights cut; its blocks are what `field.gathered` names, if it is not small."""
        from torch.distributed.fsdp import fully_shard

        keep, blocks = self.keeps(sum(p.numel() for p in field.parameters())), units(field)[:-1]
        # of accelerate only the rounding: its own sharding trains DDP on CPUs, and has one model a process
        wrapped: nn.Module = self.accelerator.prepare_model(field, evaluation_mode=True)
        for unit in [*blocks, wrapped]:
            cut = fully_shard(unit, mesh=self.mesh, reshard_after_forward=not keep)
            cut.set_force_sum_reduction_for_comms(self.device.type == "cpu")  # gloo has no mean
        return wrapped

    def keeps(self, count: int) -> bool:
        return bool(self.gather_rows(torch.tensor([keeps(count, self.memory)], device=self.device)).all())

    @contextmanager
    def no_sync(self, wrapped: Any) -> Iterator[None]:
        """While inside, gradients stay whole on their process, which takes the memory of the weights."""
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)

    def average(self, field: nn.Module) -> nn.Module:
        """The rows that lie here, in a module that is never called."""
        return with_weights(self.template, {n: self.rows(p.detach()).clone() for n, p in field.named_parameters()})

    def here(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [p.to_local() if hasattr(p, "to_local") else p for p in parameters]

    def hand_over(self, field: nn.Module, here: list[Tensor]) -> None:
        # house: Python per parameter, as torch's fully_shard gives each a gradient anew at every step
        for p, part in zip(field.parameters(), here, strict=True):
            part.grad = None if p.grad is None else self.here([p.grad])[0]
            p.grad = None

    def norm(self, tensors: list[Tensor]) -> Tensor:
        squares = super().norm(tensors).square()
        # over all: copies that each clipped by a sum of their own would drift apart, bit by bit
        torch.distributed.all_reduce(squares)
        return (squares / self.copies).sqrt()

    def matrices(self, rows: Tensor, count: int, work: Callable[[Tensor], Tensor]) -> Tensor:
        """Each process works on its share of the matrices, whole: two exchanges of all with all.

        The matrices are padded to N times as many, and their parts to r rows, so that all exchanges are of one size.
        """
        number, own, columns = rows.shape
        each, most = math.ceil(number / self.shard), math.ceil(count / self.shard)
        sent = rows.new_zeros(self.shard * each, most, columns)
        sent[:number, :own] = rows
        parts = self._exchange(sent).view(self.shard, each, most, columns)
        whole = parts.transpose(0, 1).reshape(each, self.shard * most, columns)
        worked = torch.zeros_like(whole)
        worked[:, :count] = work(whole[:, :count])
        parts = worked.view(each, self.shard, most, columns).transpose(0, 1).reshape(sent.shape)
        return self._exchange(parts)[:number, :own]

    def _exchange(self, sent: Tensor) -> Tensor:
        got = torch.empty_like(sent)
        torch.distributed.all_to_all_single(got, sent, group=self.group)
        return got

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[nn.Module]:
        """The whole module on each process, gathered once; it needs no other process then."""
        shapes = (p.shape for p in self.template.parameters())
        names = (name for name, _ in module.named_parameters())
        parts = self.here(p.detach() for p in module.parameters())
        whole = {n: self._gathered(p, s) for n, p, s in zip(names, parts, shapes, strict=True)}
        yield with_weights(self.template, whole)

    def _gathered(self, part: Tensor, shape: torch.Size) -> Tensor:
        padded = self._padded(part, shape)
        whole = padded.new_empty(self.shard * len(padded), *shape[1:])
        torch.distributed.all_gather(list(whole.split(len(padded))), padded, group=self.group)
        return whole[: shape[0]]

    def _padded(self, part: Tensor, shape: torch.Size) -> Tensor:
        """A part with as many rows as the largest one."""
        padded = part.new_zeros(math.ceil(shape[0] / self.shard), *shape[1:])
        padded[: len(part)] = part
        return padded

    def owns(self, number: int) -> bool:
        return self.process == number % self.shard

    def collect(self, tensor: Tensor, shape: torch.Size | None, number: int) -> Tensor | None:
        """Only the processes of the first copy take part; the others have nothing to give."""
        if shape is None:
            return super().collect(tensor, shape, number)
        if self.copy:
            return None
        padded = self._padded(self.here([tensor.detach()])[0], shape)
        parts = [torch.empty_like(padded) for _ in range(self.shard)] if self.owns(number) else None
        torch.distributed.gather(padded, parts, dst=number % self.shard, group=self.group)
        return None if parts is None else torch.cat(parts)[: shape[0]].cpu()

    def rows(self, whole: Tensor) -> Tensor:
        each = math.ceil(len(whole) / self.shard)
        return whole[self.part * each : (self.part + 1) * each]

    def load(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        names = [name for name, _ in module.named_parameters()]
        for name in {*names} ^ {*tensors}:
            raise ValueError(f"{name} is only in one of network and checkpoint")
        for name, part, own in zip(names, self.here(module.parameters()), self.template.parameters(), strict=True):
            if tensors[name].shape != own.shape:
                raise ValueError(f"{name} has shape {list(tensors[name].shape)}, not {list(own.shape)}")
            part.detach().copy_(self.rows(tensors[name]))


def keeps(count: int, memory: float) -> bool:
    """Whether the gathered weights of a field of this many parameters are kept, with this many bytes of memory."""
    return HELD * count <= KEPT * memory


def units(field: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together: its blocks, unless it is small, and the field for the rest.

    Blocks are what `field.gathered` names; of a list of modules, each.
    """
    small = sum(p.numel() for p in field.parameters()) <= SMALL
    named = [field.get_submodule(name) for name in (() if small else getattr(field, "gathered", ()))]
    blocks = [[*module] if isinstance(module, nn.ModuleList) else [module] for module in named]
    return [*chain.from_iterable(blocks), field]
