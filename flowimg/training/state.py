"""The state of a run, from step 0 or from what a checkpoint holds, as tensors by file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowimg.flow.objectives import Data, Draw, Objective
from flowimg.training.averages import gamma_of
from flowimg.training.flags import Reading, StepFlags
from flowimg.training.optimisers.adamw import AdamW
from flowimg.training.optimisers.muon import Muon, hidden_matrices
from flowimg.training.parts import parts_of
from flowimg.training.schedules import Schedule, constant
from flowimg.training.strategies import Strategy


@dataclass(frozen=True)
class Recipe:
    """How the optimiser moves; see the settings of the same names. With a momentum it is Muon, else AdamW."""

    steps: int
    accumulation: int = 1
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    momentum: float | None = None
    warmup: int = 0
    schedule: Schedule = constant
    clip: float | None = 1.0
    ema: float = 0.999
    max_skips: int = 10
    lengths: tuple[float, ...] = ()


@dataclass
class Window:
    """What happened since the last line of metrics: kept on the device, read only when a line is written."""

    times: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


@dataclass
class Training:
    """The state of a run: the field, its average, the optimiser, and the number of steps done.

    `draw` gives what a step sees at some positions, as `objective.draw`, made on demand or ahead of time. `loss` is the
    objective's, or that compiled: for training only, whose shapes never change. `powers` are the power averages by
    their lengths, if the recipe wants any. With `graphs`, the loss and its gradients lie in memory that the next step
    overwrites. `seconds` is the time of the steps since this start. `offset` is the number of samples seen beyond step
    times batch size, in a run whose batch size was changed; `seen` is what the processes last agreed on.
    """

    strategy: Strategy
    field: nn.Module
    wrapped: nn.Module
    ema: nn.Module
    powers: dict[float, nn.Module]
    optimizer: AdamW
    objective: Objective
    draw: Callable[[int, range], Draw]
    recipe: Recipe
    loss: Callable[[nn.Module, Draw], Tensor]
    graphs: bool = False
    step: int = 0
    seconds: float = 0.0
    offset: int = 0
    window: Window = field(default_factory=Window)
    seen: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        # walking the modules for these at every step would cost a small network more than its own operations
        self.moved: list[Tensor] = self.optimizer.param_groups[0]["params"]
        self.parameters = self.moved[: len(list(self.field.parameters()))]  # the objective's own come after them
        self.ema_parameters: list[Tensor] = list(self.ema.parameters())
        self.power_parameters: list[tuple[float, list[Tensor]]] = [
            (gamma_of(length), list(average.parameters())) for length, average in self.powers.items()
        ]
        self.flags = StepFlags(self.strategy)

    @property
    def samples(self) -> int:
        """Samples seen."""
        return self.step * self.objective.batch_size + self.offset

    def micro_batches(self) -> list[range]:
        """This process's positions in the global batch, a range for each micro-batch."""
        size = self.objective.batch_size // (self.strategy.processes * self.recipe.accumulation)
        start = self.strategy.process * size * self.recipe.accumulation
        return [range(start + m * size, start + (m + 1) * size) for m in range(self.recipe.accumulation)]


def start(
    strategy: Strategy,
    field: nn.Module,
    objective: Objective,
    data: Data,
    recipe: Recipe,
    options: dict[str, bool] | None = None,
    offload: bool = False,
) -> Training:
    """A run at step 0: the field wrapped for its processes, the optimiser, the averages.

    Given options of torch.compile, even an empty dict, the loss is compiled with them; with None it is not. With
    `offload`, what the backward pass needs of the forward pass waits in the host's memory.
    """
    if strategy.processes > 1 and list(objective.parameters()):
        raise ValueError("parameters of an objective are trained by one process only: nobody averages their gradients")
    field = field.to(strategy.device)
    wrapped, (ema, *averages) = strategy.spread(field, 1 + len(recipe.lengths))
    powers = dict(zip(recipe.lengths, averages, strict=True))
    how: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": recipe.weight_decay}
    here = strategy.here(field.parameters())
    moved = [*here, *objective.parameters()]
    # the optimiser is not prepared: accelerate's wrapper would look for a dozen libraries at every step
    if recipe.momentum is None:
        optimizer = AdamW(moved, **how)
    else:
        dtype = torch.bfloat16 if strategy.accelerator.mixed_precision == "bf16" else torch.float32
        hidden, whole = hidden_matrices(field), strategy.template.named_parameters()
        matrices = {part: len(p) for part, (name, p) in zip(here, whole, strict=True) if name in hidden}
        optimizer = Muon(moved, matrices, recipe.momentum, dtype, strategy.matrices, **how)
    loss: Callable[[nn.Module, Draw], Tensor] = objective.loss
    if options is not None:
        # torch compiles eight versions of a function and then stops silently; a process may train more often
        method = type(objective).loss
        defaults, closure = method.__defaults__, method.__closure__
        own = FunctionType(method.__code__.replace(), method.__globals__, method.__name__, defaults, closure)
        loss = partial(torch.compile(own, dynamic=False, options={**options}), objective)
    if offload:
        loss = partial(_offloaded, loss)
    graphs = (options or {}).get("triton.cudagraphs", False)
    draw = partial(objective.draw, data)
    return Training(strategy, field, wrapped, ema, powers, optimizer, objective, draw, recipe, loss, graphs)


def _offloaded(loss: Callable[[nn.Module, Draw], Tensor], field: nn.Module, draw: Draw) -> Tensor:
    """The loss, whose graph keeps its tensors on the host."""
    with torch.autograd.graph.save_on_cpu(pin_memory=draw.x_1.device.type == "cuda"):
        return loss(field, draw)


def _names(state: Training) -> list[str]:
    """The names of everything that the optimiser moves, in its order."""
    own = range(len(state.moved) - len(state.parameters))
    return [*(name for name, _ in state.field.named_parameters()), *(f"objective.{number}" for number in own)]


class Piece(NamedTuple):
    """What a process has of a tensor, and the shape of the whole; None where it has the whole."""

    here: Tensor
    shape: torch.Size | None = None


Pieces = dict[str, dict[str, Piece]]
"""Everything a run needs to continue, by kind and name: weights, ema, optimizer and, where there are any, parameters
of the objective and the power averages."""


def _pieces(state: Training) -> Pieces:
    """Everything a run needs to continue."""
    shapes = {name: p.shape for name, p in state.strategy.template.named_parameters()}
    names = _names(state)
    slots = state.optimizer.state_dict()["state"].items()
    optimizer = {
        f"{kind}.{names[index]}": Piece(value, shapes.get(names[index]) if value.ndim else None)
        for index, slot in slots
        for kind, value in slot.items()
    }
    if state.strategy.scaler is not None:
        scaler = state.strategy.scaler.state_dict()
        optimizer |= {f"scaler.{name}": Piece(torch.tensor(v, dtype=torch.float64)) for name, v in scaler.items()}
    weights = dict(zip(shapes, map(Piece, state.parameters, shapes.values()), strict=True))
    averages = dict(zip(shapes, map(Piece, state.ema_parameters, shapes.values()), strict=True))
    pieces = {"weights": weights, "ema": averages, "optimizer": optimizer}
    if own := state.moved[len(state.parameters) :]:
        pieces["objective"] = {str(number): Piece(p) for number, p in enumerate(own)}
    return {**pieces, **_power_pieces(state)}


def _power_pieces(state: Training) -> Pieces:
    """The power averages, where the run keeps any, by length and name: 0.05/NAME."""
    shapes = [p.shape for p in state.strategy.template.parameters()]
    pieces = {
        f"{length:g}/{name}": Piece(p, shape)
        for length, average in state.powers.items()
        for (name, p), shape in zip(average.named_parameters(), shapes, strict=True)
    }
    return {"averages": pieces} if pieces else {}


def saved(state: Training, averages_only: bool = False) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """What this process saves of a run: copies of whole tensors on its host, by file and name. All call it together.

    Args:
        state: The run.
        averages_only: Only the power averages, in one file.
    Returns:
        The files of this process, and the names of all files; file n is of process n mod `shard`.
    """
    strategy, pieces = state.strategy, _power_pieces(state) if averages_only else _pieces(state)
    sizes = {kind: {name: _bytes(piece) for name, piece in held.items()} for kind, held in pieces.items()}
    files: dict[str, dict[str, Tensor]] = {}
    parts = [(kind, kind, list(held)) for kind, held in sizes.items()] if averages_only else parts_of(sizes)
    for number, (file, kind, names) in enumerate(parts):
        whole = {name: strategy.collect(*pieces[kind][name], number) for name in names}
        if strategy.owns(number):
            files[file] = {name: value for name, value in whole.items() if value is not None}
    return files, [file for file, _, _ in parts]


def _bytes(piece: Piece) -> int:
    """Bytes of the whole tensor."""
    return (piece.here.numel() if piece.shape is None else piece.shape.numel()) * piece.here.element_size()


@torch.no_grad()
def restore(
    state: Training, step: int, tensors: Mapping[str, dict[str, Tensor]], in_row: int = 0, skipped: int = 0
) -> None:
    """Set a fresh run to whole tensors, as `saved` gives them, after `in_row` skips in a row and `skipped` in all."""
    state.step = step
    state.flags.start_at(in_row, skipped)
    state.seen = Reading(in_row, skipped)
    state.strategy.load(state.field, tensors["weights"])
    state.strategy.load(state.ema, tensors["ema"])
    for length, average in state.powers.items():
        start = f"{length:g}/"
        held = {name.removeprefix(start): p for name, p in tensors["averages"].items() if name.startswith(start)}
        state.strategy.load(average, held)
    for number, p in enumerate(state.moved[len(state.parameters) :]):
        p.copy_(tensors["objective"][str(number)])
    index_of = {name: index for index, name in enumerate(_names(state))}
    slots: dict[int, dict[str, Tensor]] = {}
    scaler = {}
    for entry, value in tensors["optimizer"].items():
        kind, name = entry.split(".", 1)
        if kind == "scaler":
            scaler[name] = value.item() if name in ("scale", "growth_factor", "backoff_factor") else int(value)
        else:
            part = value.ndim > 0 and index_of[name] < len(state.parameters)
            slots.setdefault(index_of[name], {})[kind] = state.strategy.rows(value) if part else value
    # Muon keeps no squares of matrices: AdamW begins anew with them after it, and does not find old ones later
    matrices = set() if state.recipe.momentum is None else hidden_matrices(state.field)
    for name, index in index_of.items():
        if name in matrices:
            slots.get(index, {}).pop("exp_avg_sq", None)
        elif "exp_avg_sq" not in slots.get(index, {}):
            slots.pop(index, None)
    state.optimizer.load_state_dict({"state": slots, "param_groups": state.optimizer.state_dict()["param_groups"]})
    if scaler and state.strategy.scaler is not None:
        state.strategy.scaler.load_state_dict(scaler)
