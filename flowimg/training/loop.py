"""The one training loop, for points and pictures, on one process or many.

A step, on every process:

    draw (x_0, x_1, t, labels) of my places -> loss -> backward, a micro-batch at a time
    -> clip -> AdamW at learning_rate(step) -> EMA at ema_decay(step)

The loop knows neither grids nor files: whoever starts it hands it callables over the state, called at the start of a
run and after every step. Progress is the step, and nothing else: all randomness, the learning rate, the EMA's decay
and the place in the data follow from it.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowimg.flow.objective import Data, Objective, flow_matching_loss
from flowimg.flow.randomness import key
from flowimg.training.ema import make_ema, update_ema
from flowimg.training.schedule import ema_decay, learning_rate


@dataclass(frozen=True)
class Recipe:
    """How the optimiser moves; see the settings of the same names."""

    steps: int
    accumulation: int = 1
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "constant"
    clip: float | None = 1.0
    ema: float = 0.999


@dataclass
class Window:
    """What happened since the last look: kept on the device, read only by whoever looks."""

    times: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


@dataclass
class Training:
    """The state of a run: the field, its average, the optimiser, and the steps done."""

    accelerator: Accelerator
    field: nn.Module
    wrapped: nn.Module
    ema: nn.Module
    optimizer: Any
    objective: Objective
    data: Data
    recipe: Recipe
    step: int = 0
    window: Window = field(default_factory=Window)

    def micro_batches(self) -> list[range]:
        """This process's places of the global batch, a range for each micro-batch."""
        size = self.objective.batch_size // (self.accelerator.num_processes * self.recipe.accumulation)
        start = self.accelerator.process_index * size * self.recipe.accumulation
        return [range(start + m * size, start + (m + 1) * size) for m in range(self.recipe.accumulation)]


Callback = Callable[[Training], None]


def start(accelerator: Accelerator, field: nn.Module, objective: Objective, data: Data, recipe: Recipe) -> Training:
    """A run at step 0: the field wrapped for its processes, the optimiser, the average."""
    field = field.to(accelerator.device)
    ema = make_ema(field)
    optimizer = torch.optim.AdamW(
        field.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    wrapped, prepared = accelerator.prepare(field, optimizer)
    return Training(accelerator, field, wrapped, ema, prepared, objective, data, recipe)


def state_tensors(state: Training) -> dict[str, dict[str, Tensor]]:
    """Everything a run needs to go on, as tensors by file: weights, ema, optimizer."""
    names = [name for name, _ in state.field.named_parameters()]
    optimizer = {
        f"{kind}.{names[index]}": value
        for index, slots in state.optimizer.optimizer.state_dict()["state"].items()
        for kind, value in slots.items()
    }
    if state.accelerator.scaler is not None:
        scaler = state.accelerator.scaler.state_dict()
        optimizer |= {f"scaler.{name}": torch.tensor(value, dtype=torch.float64) for name, value in scaler.items()}
    return {"weights": state.field.state_dict(), "ema": state.ema.state_dict(), "optimizer": optimizer}


def restore(state: Training, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Set a fresh run to where `state_tensors` left one."""
    state.step = step
    state.field.load_state_dict(tensors["weights"])
    state.ema.load_state_dict(tensors["ema"])
    names = {name: index for index, (name, _) in enumerate(state.field.named_parameters())}
    slots: dict[int, dict[str, Tensor]] = {}
    scaler = {}
    for entry, value in tensors["optimizer"].items():
        kind, name = entry.split(".", 1)
        if kind == "scaler":
            scaler[name] = value.item() if name in ("scale", "growth_factor", "backoff_factor") else int(value)
        else:
            slots.setdefault(names[name], {})[kind] = value
    optimizer = state.optimizer.optimizer
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler and state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(scaler)


def train(state: Training, until: int, callbacks: Iterable[Callback]) -> None:
    """Train to step `until`.

    Args:
        state: The run; its step rises.
        until: Steps done when this returns.
        callbacks: Called in order before the first step and after every step; each decides whether it is due.
    """
    callbacks = list(callbacks)
    if state.accelerator.num_processes > 1:
        _settle_buckets(state)
    for callback in callbacks:
        callback(state)
    while state.step < until:
        began = time.perf_counter()
        train_step(state)
        state.window.seconds += time.perf_counter() - began
        for callback in callbacks:
            callback(state)


def train_step(state: Training) -> None:
    """One optimiser step over the global batch; waits for nothing."""
    recipe, window, accelerator = state.recipe, state.window, state.accelerator
    places = state.micro_batches()
    state.wrapped.train()
    for number, mine in enumerate(places):
        began = time.perf_counter()
        draw = state.objective.draw(state.data, state.step, mine)
        window.data_seconds += time.perf_counter() - began
        # dropout has no places: it is seeded by the micro-batch, exact on resume
        torch.manual_seed(key(state.objective.seed, "dropout", state.step, mine.start))
        last = number == len(places) - 1
        with nullcontext() if last else accelerator.no_sync(state.wrapped):
            losses = flow_matching_loss(state.wrapped, state.objective.path, draw)
            # a mean over the micro-batch, over all micro-batches here, and (by DDP) over processes: all of one size
            accelerator.backward(losses.mean() / len(places))
        window.times.append(draw.t)
        window.losses.append(losses.detach())

    rate = learning_rate(state.step, recipe.lr, recipe.steps, recipe.warmup, recipe.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    limit = float("inf") if recipe.clip is None else recipe.clip
    norm = accelerator.clip_grad_norm_(state.field.parameters(), limit)
    if norm is not None:
        window.grad_norms.append(norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    update_ema(state.ema, state.field, ema_decay(state.step, recipe.ema))
    state.step += 1
    window.steps += 1


def _settle_buckets(state: Training) -> None:
    """One backward thrown away: DDP sums gradients in another order before it has rebuilt its buckets."""
    draw = state.objective.draw(state.data, state.step, state.micro_batches()[0])
    state.accelerator.backward(flow_matching_loss(state.wrapped, state.objective.path, draw).mean())
    state.optimizer.zero_grad()
