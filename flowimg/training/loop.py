"""The one training loop, for points and pictures, on one process or many.

A step, on every process:

    draw (x_0, x_1, t, labels) of my places -> loss -> backward, a micro-batch at a time
    -> clip -> finite on all processes? -> AdamW or Muon at learning_rate(step) -> EMA at ema_decay(step)

A step that is not finite moves neither weights nor optimiser nor average, and counts: data, learning rate and step go
on. So many of them in a row end the run.

The loop knows neither grids nor files: whoever starts it hands it callables over the state, called at the start of a
run and after every step. Progress is the step, and nothing else: all randomness, the learning rate, the EMA's decay
and the place in the data follow from it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowimg.flow.objective import Data, Draw, Objective, flow_matching_loss
from flowimg.flow.randomness import key
from flowimg.training.adamw import AdamW
from flowimg.training.ema import gamma_of, make_ema, power_decay, update_ema
from flowimg.training.muon import Muon, hidden_matrices
from flowimg.training.schedule import ema_decay, learning_rate
from flowimg.training.verdict import Reading, Verdict

SEARCH = 24
"""Steps more that fp16 may skip in a row, while it halves its scale from 2^16 to what fits."""


class NotFiniteError(Exception):
    """So many steps in a row were not finite; `step` is the last of them."""

    exit_status = 3

    def __init__(self, step: int, in_row: int) -> None:
        super().__init__(f"loss or gradient was not finite at {in_row} steps in a row, the last of them step {step}")
        self.step = step


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
    schedule: str = "constant"
    clip: float | None = 1.0
    ema: float = 0.999
    max_skips: int = 10
    lengths: tuple[float, ...] = ()


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
    """The state of a run: the field, its average, the optimiser, and the steps done.

    `draw` gives what a step sees at some places, as `objective.draw`, made when it is asked for or ahead of that.
    `loss` is `flow_matching_loss`, or that compiled: of training alone, whose shapes are always the same. `powers` are
    the power averages by their lengths, where the recipe asks for any. With `graphs` what the loss gives and its
    gradients lie in memory that the next step writes over. `seconds` are those that the steps of this start took.
    `offset` is what samples seen differ from step times batch by, in a run whose batch was changed on the way; `seen`
    is what the processes last agreed on.
    """

    accelerator: Accelerator
    field: nn.Module
    wrapped: nn.Module
    ema: nn.Module
    powers: dict[float, nn.Module]
    optimizer: AdamW
    objective: Objective
    draw: Callable[[int, range], Draw]
    recipe: Recipe
    loss: Callable[..., Tensor] = flow_matching_loss
    graphs: bool = False
    step: int = 0
    seconds: float = 0.0
    offset: int = 0
    window: Window = field(default_factory=Window)
    seen: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        # walking the modules for these at every step would cost a small network more than its arithmetic
        self.parameters: list[Tensor] = list(self.field.parameters())
        self.ema_parameters: list[Tensor] = list(self.ema.parameters())
        self.power_parameters: list[tuple[float, list[Tensor]]] = [
            (gamma_of(length), list(average.parameters())) for length, average in self.powers.items()
        ]
        self.verdict = Verdict(self.accelerator)

    @property
    def samples(self) -> int:
        """Samples seen."""
        return self.step * self.objective.batch_size + self.offset

    def micro_batches(self) -> list[range]:
        """This process's places of the global batch, a range for each micro-batch."""
        size = self.objective.batch_size // (self.accelerator.num_processes * self.recipe.accumulation)
        start = self.accelerator.process_index * size * self.recipe.accumulation
        return [range(start + m * size, start + (m + 1) * size) for m in range(self.recipe.accumulation)]


Callback = Callable[[Training], None]


def start(
    accelerator: Accelerator,
    field: nn.Module,
    objective: Objective,
    data: Data,
    recipe: Recipe,
    options: dict[str, bool] | None = None,
) -> Training:
    """A run at step 0: the field wrapped for its processes, the optimiser, the averages.

    Given options of torch.compile, an empty dict too, the loss is compiled in that way; with None it is not.
    """
    field = field.to(accelerator.device)
    ema = make_ema(field)
    powers = {length: make_ema(field) for length in recipe.lengths}
    how: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": recipe.weight_decay}
    optimizer: AdamW
    if recipe.momentum is None:
        optimizer = AdamW(field.parameters(), **how)
    else:
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        optimizer = Muon(field.parameters(), hidden_matrices(field), recipe.momentum, dtype, **how)
    # the optimiser is not prepared: accelerate's wrapper would look for a dozen libraries at every step
    # alone in fp32 a field needs no wrapping, and accelerate would import torch's sharded tensors to find that out
    plain = accelerator.num_processes == 1 and accelerator.mixed_precision == "no"
    wrapped = field if plain else accelerator.prepare(field)
    loss, graphs = flow_matching_loss, False
    if options is not None:
        # torch keeps eight versions of a function and calls it as it is after that; a process may train more often
        own = FunctionType(flow_matching_loss.__code__.replace(), flow_matching_loss.__globals__)
        loss = torch.compile(own, dynamic=False, options={**options})
        graphs = options.get("triton.cudagraphs", False)
    draw = partial(objective.draw, data)
    return Training(accelerator, field, wrapped, ema, powers, optimizer, objective, draw, recipe, loss, graphs)


def state_tensors(state: Training) -> dict[str, dict[str, Tensor]]:
    """Everything a run needs to go on, as tensors by file: weights, ema, optimizer and, where kept, averages."""
    names = [name for name, _ in state.field.named_parameters()]
    optimizer = {
        f"{kind}.{names[index]}": value
        for index, slots in state.optimizer.state_dict()["state"].items()
        for kind, value in slots.items()
    }
    if state.accelerator.scaler is not None:
        scaler = state.accelerator.scaler.state_dict()
        optimizer |= {f"scaler.{name}": torch.tensor(value, dtype=torch.float64) for name, value in scaler.items()}
    tensors = {"weights": state.field.state_dict(), "ema": state.ema.state_dict(), "optimizer": optimizer}
    return {**tensors, "averages": average_tensors(state)} if state.powers else tensors


def average_tensors(state: Training) -> dict[str, Tensor]:
    """The power averages, by length and name: 0.05/NAME."""
    return {
        f"{length:g}/{name}": value
        for length, average in state.powers.items()
        for name, value in average.state_dict().items()
    }


def restore(
    state: Training, step: int, tensors: Mapping[str, dict[str, Tensor]], in_row: int = 0, skipped: int = 0
) -> None:
    """Set a fresh run to where `state_tensors` left one, after so many skipped steps in a row and in all."""
    state.step = step
    state.verdict.start_at(in_row, skipped)
    state.seen = Reading(in_row, skipped)
    state.field.load_state_dict(tensors["weights"])
    state.ema.load_state_dict(tensors["ema"])
    for length, average in state.powers.items():
        start = f"{length:g}/"
        held = {name: value for name, value in tensors["averages"].items() if name.startswith(start)}
        average.load_state_dict({name.removeprefix(start): value for name, value in held.items()})
    names = {name: index for index, (name, _) in enumerate(state.field.named_parameters())}
    slots: dict[int, dict[str, Tensor]] = {}
    scaler = {}
    for entry, value in tensors["optimizer"].items():
        kind, name = entry.split(".", 1)
        if kind == "scaler":
            scaler[name] = value.item() if name in ("scale", "growth_factor", "backoff_factor") else int(value)
        else:
            slots.setdefault(names[name], {})[kind] = value
    # Muon keeps no squares of matrices: AdamW begins anew with them after it, and does not find old ones later
    matrices = set() if state.recipe.momentum is None else {id(p) for p in hidden_matrices(state.field)}
    for index, p in enumerate(state.parameters):
        if id(p) in matrices:
            slots.get(index, {}).pop("exp_avg_sq", None)
        elif "exp_avg_sq" not in slots.get(index, {}):
            slots.pop(index, None)
    state.optimizer.load_state_dict({"state": slots, "param_groups": state.optimizer.state_dict()["param_groups"]})
    if scaler and state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(scaler)


def train(state: Training, until: int, callbacks: Iterable[Callback], wanted: Callable[[], int] = lambda: 0) -> None:
    """Train to step `until`, or to where all processes agree to stop; on several processes, after `rehearse`.

    Args:
        state: The run; its step rises.
        until: Steps done when this returns.
        callbacks: Called in order before the first step and after every step; each decides whether it is due, and may
            see in `state.seen.stop` that this step is the last.
        wanted: What this process is asked for, looked at in every step: above 0, all of them stop soon.
    Raises:
        NotFiniteError: If `recipe.max_skips` steps in a row were not finite.
    """
    callbacks = list(callbacks)
    state.wrapped.train()
    for callback in callbacks:
        callback(state)
    while state.step < until and not state.seen.stop:
        began = time.perf_counter()
        train_step(state, wanted())
        taken = time.perf_counter() - began
        state.window.seconds += taken
        state.seconds += taken
        for callback in callbacks:
            callback(state)


def train_step(state: Training, wanted: int = 0) -> None:
    """One optimiser step over the global batch; waits for nothing that the device still computes."""
    recipe, window, scaler = state.recipe, state.window, state.accelerator.scaler
    totals: list[Tensor] = []
    places = state.micro_batches()
    if state.graphs:
        torch.compiler.cudagraph_mark_step_begin()
    for number, mine in enumerate(places):
        began = time.perf_counter()
        draw = state.draw(state.step, mine)
        window.data_seconds += time.perf_counter() - began
        _seed_dropout(key(state.objective.seed, "dropout", state.step, mine.start), draw.x_1.device)
        last = number == len(places) - 1
        with nullcontext() if last else state.accelerator.no_sync(state.wrapped):
            losses = state.loss(state.wrapped, state.objective.path, draw)
            # the gradient is weighted; what is told is the plain loss, which compares between runs.
            # a mean over the micro-batch, over all micro-batches here, and (by DDP) over processes: all of one size
            loss = state.objective.weighted(losses, draw.t).mean()
            loss = loss if len(places) == 1 else loss / len(places)
            (loss if scaler is None else scaler.scale(loss)).backward()
        window.times.append(draw.t)
        window.losses.append(losses.detach().clone() if state.graphs else losses.detach())
        totals.append(loss.detach())

    rate = learning_rate(state.step, recipe.lr, recipe.steps, recipe.warmup, recipe.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    if scaler is not None:
        scaler.unscale_(state.optimizer)
    norm = clip(state.parameters, recipe.clip)
    window.grad_norms.append(norm)
    hold = state.verdict.share(sum(totals, norm), wanted)
    # the fused step looks at this on the device; `scaler.step`, which would, knows gradients alone
    state.optimizer.found_inf = hold
    state.optimizer.step()
    if scaler is not None:
        scaler.update()
    state.optimizer.zero_grad()
    update_ema(state.ema_parameters, state.parameters, ema_decay(state.step, recipe.ema), hold)
    for gamma, average in state.power_parameters:
        update_ema(average, state.parameters, power_decay(state.step + 1, gamma), hold)
    state.step += 1
    window.steps += 1
    state.seen = state.verdict.read()
    if state.seen.in_row >= recipe.max_skips + (0 if scaler is None else SEARCH):
        raise NotFiniteError(state.step - 1 - state.verdict.late, state.seen.in_row)  # the newest that was read


@torch.no_grad()
def clip(parameters: Sequence[Tensor], limit: float | None) -> Tensor:
    """Scale all gradients g by min(1, limit / (|g| + 1e-6)), where there is a limit.

    What torch.nn.utils.clip_grad_norm_ does to the bit, without sorting them by device and dtype at every step.

    Returns:
        Their norm before, |g|, shape ().
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if limit is None:
        return norm
    if norm.device.type != "cpu":
        torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1))
    elif not (scale := 1 / (norm.numpy() + 1e-6) * limit) >= 1:  # the host can look; what is multiplied by 1 stays
        torch._foreach_mul_(grads, float(scale))
    return norm


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Dropout has no places: it is seeded by step and micro-batch, so that a continued run drops the same units.

    Only the generators in use: `torch.manual_seed` also looks for every other kind of device, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def rehearse(state: Training) -> None:
    """On several processes, a backward pass thrown away.

    It must come before the first step: DDP sums gradients in another order before it has rebuilt
    its buckets, and a run that goes on would not be the run that never stopped.
    """
    if state.accelerator.num_processes == 1:
        return
    state.wrapped.train()
    if state.graphs:
        torch.compiler.cudagraph_mark_step_begin()
    for places in state.micro_batches():
        draw = state.draw(state.step, places)
        state.loss(state.wrapped, state.objective.path, draw).mean().backward()
    state.optimizer.zero_grad()
