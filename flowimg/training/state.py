"""The state of a run, from step 0 or from what a checkpoint holds, as tensors by file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from flowimg.flow.objectives import Data, Draw, Objective
from flowimg.training.averages import gamma_of, make_ema
from flowimg.training.flags import Reading, StepFlags
from flowimg.training.optimisers.adamw import AdamW
from flowimg.training.optimisers.muon import Muon, hidden_matrices
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
        self.moved: list[Tensor] = [*self.field.parameters(), *self.objective.parameters()]
        self.parameters: list[Tensor] = list(self.field.parameters())
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
) -> Training:
    """A run at step 0: the field wrapped for its processes, the optimiser, the averages.

    Given options of torch.compile, even an empty dict, the loss is compiled with them; with None it is not.
    """
    field = field.to(strategy.device)
    ema, powers = make_ema(field), {length: make_ema(field) for length in recipe.lengths}
    how: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": recipe.weight_decay}
    moved = [*field.parameters(), *objective.parameters()]
    if recipe.momentum is None:
        optimizer = AdamW(moved, **how)
    else:
        dtype = torch.bfloat16 if strategy.accelerator.mixed_precision == "bf16" else torch.float32
        optimizer = Muon(moved, hidden_matrices(field), recipe.momentum, dtype, **how)
    # the optimiser is not prepared: accelerate's wrapper would look for a dozen libraries at every step
    wrapped = strategy.wrap(field)
    loss: Callable[[nn.Module, Draw], Tensor] = objective.loss
    if options is not None:
        # torch compiles eight versions of a function and then stops silently; a process may train more often
        method = type(objective).loss
        defaults, closure = method.__defaults__, method.__closure__
        own = FunctionType(method.__code__.replace(), method.__globals__, method.__name__, defaults, closure)
        loss = partial(torch.compile(own, dynamic=False, options={**options}), objective)
    graphs = (options or {}).get("triton.cudagraphs", False)
    draw = partial(objective.draw, data)
    return Training(strategy, field, wrapped, ema, powers, optimizer, objective, draw, recipe, loss, graphs)


def _names(state: Training) -> list[str]:
    """The names of everything that the optimiser moves, in its order."""
    own = range(len(state.moved) - len(state.parameters))
    return [*(name for name, _ in state.field.named_parameters()), *(f"objective.{number}" for number in own)]


def state_tensors(state: Training) -> dict[str, dict[str, Tensor]]:
    """Everything a run needs to continue, as tensors by file: weights, ema, optimizer and, where kept, averages.

    An objective with parameters of its own has a file of them, too.
    """
    names = _names(state)
    slots = state.optimizer.state_dict()["state"].items()
    optimizer = {f"{kind}.{names[index]}": value for index, slot in slots for kind, value in slot.items()}
    if state.strategy.scaler is not None:
        scaler = state.strategy.scaler.state_dict()
        optimizer |= {f"scaler.{name}": torch.tensor(value, dtype=torch.float64) for name, value in scaler.items()}
    tensors = {"weights": state.field.state_dict(), "ema": state.ema.state_dict(), "optimizer": optimizer}
    if own := state.moved[len(state.parameters) :]:
        tensors["objective"] = {str(number): p.detach() for number, p in enumerate(own)}
    return {**tensors, "averages": average_tensors(state)} if state.powers else tensors


def average_tensors(state: Training) -> dict[str, Tensor]:
    """The power averages, by length and name: 0.05/NAME."""
    averages = ((f"{length:g}", average.state_dict()) for length, average in state.powers.items())
    return {f"{length}/{name}": value for length, held in averages for name, value in held.items()}


@torch.no_grad()
def restore(
    state: Training, step: int, tensors: Mapping[str, dict[str, Tensor]], in_row: int = 0, skipped: int = 0
) -> None:
    """Set a fresh run to what `state_tensors` gave, after `in_row` skipped steps in a row and `skipped` in all."""
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
            slots.setdefault(index_of[name], {})[kind] = value
    # Muon keeps no squares of matrices: AdamW begins anew with them after it, and does not find old ones later
    matrices = set() if state.recipe.momentum is None else {id(p) for p in hidden_matrices(state.field)}
    for index, p in enumerate(state.moved):
        if id(p) in matrices:
            slots.get(index, {}).pop("exp_avg_sq", None)
        elif "exp_avg_sq" not in slots.get(index, {}):
            slots.pop(index, None)
    state.optimizer.load_state_dict({"state": slots, "param_groups": state.optimizer.state_dict()["param_groups"]})
    if scaler and state.strategy.scaler is not None:
        state.strategy.scaler.load_state_dict(scaler)
