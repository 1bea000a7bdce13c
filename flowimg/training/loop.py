"""The one training loop, for points and pictures, on one process or many.

A step, on every process:

    draw (x_0, x_1, t, cond) at my positions -> loss -> backward, a micro-batch at a time
    -> clip -> finite on all processes? -> AdamW or Muon at learning_rate(step) -> EMA at ema_decay(step)

A step that is not finite moves neither weights nor optimiser nor average, and counts: data and learning rate move on.
`max_skips` of them in a row end the run.

The loop knows neither grids nor files: whoever starts it passes callbacks that take the state, called at the start of
a run and after every step. Progress is the step, and nothing else: all randomness, the learning rate, the EMA's decay
and the position in the data follow from it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from flowimg.errors import NotFiniteError
from flowimg.flow.randomness import key
from flowimg.training.averages import power_decay, update_ema
from flowimg.training.schedules import ema_decay, learning_rate
from flowimg.training.state import Training
from flowimg.training.strategies import Strategy

SEARCH = 24
"""Further steps that fp16 may skip in a row, while it halves its scale from 2^16 to what fits."""

Callback = Callable[[Training], None]


def train(state: Training, until: int, callbacks: Iterable[Callback], wanted: Callable[[], int] = lambda: 0) -> None:
    """Train to step `until`, or to where all processes agree to stop; after `warm_up`.

    Args:
        state: The run; its step rises.
        until: Steps done when this returns.
        callbacks: Called in order before the first step and after every step; each decides whether it is due, and may
            see in `state.seen.stop` that this step is the last.
        wanted: Gives the stop request of this process, at every step: above 0, all processes stop soon.
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
    recipe, window, strategy = state.recipe, state.window, state.strategy
    scaler = strategy.scaler
    totals: list[Tensor] = []
    positions = state.micro_batches()
    if state.graphs:
        torch.compiler.cudagraph_mark_step_begin()
    for number, mine in enumerate(positions):
        began = time.perf_counter()
        draw = state.draw(state.step, mine)
        window.data_seconds += time.perf_counter() - began
        _seed_dropout(key(state.objective.seed, "dropout", state.step, mine.start), draw.x_1.device)
        last = number == len(positions) - 1
        with nullcontext() if last else strategy.no_sync(state.wrapped):
            losses = state.loss(state.wrapped, draw)
            # the gradient is of the weighted loss; the plain one is reported, as it compares between runs.
            # a mean over the micro-batch, over all micro-batches here, and (by DDP) over processes: all of one size
            loss = state.objective.weighted(losses, draw).mean()
            loss = loss if len(positions) == 1 else loss / len(positions)
            (loss if scaler is None else scaler.scale(loss)).backward()
        window.times.append(draw.t)
        window.losses.append(losses.detach().clone() if state.graphs else losses.detach())
        totals.append(loss.detach())

    strategy.hand_over(state.field, state.parameters)
    rate = learning_rate(state.step, recipe.lr, recipe.steps, recipe.warmup, recipe.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    if scaler is not None:
        scaler.unscale_(state.optimizer)
    norm = clip(state.moved, recipe.clip, strategy)
    window.grad_norms.append(norm)
    hold = state.flags.share(sum(totals, norm), wanted)
    # the fused step reads this on the device; `scaler.step`, which would too, knows only gradients
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
    state.seen = state.flags.read()
    if state.seen.in_row >= recipe.max_skips + (0 if scaler is None else SEARCH):
        raise NotFiniteError(state.step - 1 - state.flags.late, state.seen.in_row)  # the newest that was read


@torch.no_grad()
def clip(parameters: Sequence[Tensor], limit: float | None, strategy: Strategy) -> Tensor:
    """Scale all gradients g by min(1, limit / (|g| + 1e-6)), where there is a limit.

    Equals torch.nn.utils.clip_grad_norm_ to the bit, without sorting them by device and dtype at every step.

    Returns:
        Their norm before, |g|, shape ().
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = strategy.norm(grads)
    if limit is None:
        return norm
    if norm.device.type != "cpu":
        torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1))
    elif not (scale := 1 / (norm.numpy() + 1e-6) * limit) >= 1:  # the host can look; what is multiplied by 1 stays
        torch._foreach_mul_(grads, float(scale))
    return norm


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Dropout has no positions: it is seeded by step and micro-batch, so that a continued run drops the same units.

    Only the generators in use: `torch.manual_seed` also looks for every other kind of device, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def warm_up(state: Training) -> None:
    """Where the strategy needs it, a backward pass whose gradients are thrown away.

    It must come before the first step: DDP sums gradients in another order before it has rebuilt its buckets, and a
    continued run would differ from one that never stopped.
    """
    if not state.strategy.warms_up:
        return
    state.wrapped.train()
    if state.graphs:
        torch.compiler.cudagraph_mark_step_begin()
    for positions in state.micro_batches():
        state.loss(state.wrapped, state.draw(state.step, positions)).mean().backward()
    state.optimizer.zero_grad()
