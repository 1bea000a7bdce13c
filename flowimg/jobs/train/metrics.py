"""A line of metrics.jsonl every `log_every` steps, and progress on the terminal."""

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.flow.irreducible import means_by_time
from flowimg.flow.objectives import Draw
from flowimg.jobs.train.session import Session
from flowimg.jobs.train.trackers import track_numbers
from flowimg.machine.throughput import peak_memory, samples_at_peak
from flowimg.runs.metrics import append
from flowimg.runs.status import Status
from flowimg.sampling.fitting import in_parts
from flowimg.settings.run import Config
from flowimg.training.loop import Callback
from flowimg.training.state import Training, Window

LOOK = 0.02
"""Share of the time of the steps that evaluation on held-out data may take."""
AT_ONCE = 256
"""Held-out samples in one evaluation of the field at least."""
QUIET_SECONDS = 10.0
"""Without a terminal: seconds between lines of progress at least."""
DAY = 86400.0
"""Seconds."""
SMALLER = ", or the network and image size of configs/folder_cpu.yaml, which fit one"
"""The further advice for a run on images that will take days on a CPU."""
NO_PEAK = {"cpu"}
"""Devices whose utilisation is not reported: no product measures the peak of cores that others use, at any clock."""
TRIED_SECONDS = 0.5
"""Minimum time measured before printing an ETA; warm-up steps are excluded."""


def write_metrics(session: Session) -> Callback:
    """Write a line of metrics.jsonl every `log_every` steps, and show progress."""
    config, span, strategy = session.config, session.span, session.strategy
    held_out: list[Draw] = []
    progress = _progress(session)
    waiting: list[str] = []
    full_speed: float | None = None  # samples a second, if the network were matrix products only
    apart = config.data.held_out
    kept = [part.held_out(apart) for part in session.batches.parts] if apart else []
    often = looks_every(config, sum(len(x_1) for x_1, _ in kept))

    def callback(state: Training) -> None:
        nonlocal full_speed, held_out
        record = None
        if span.due(state, config.train.log_every):
            step, every = state.step, config.train.log_every
            looks = apart > 0 and (step // often > (step - every) // often or span.is_last(state))
            if looks:
                held_out = held_out or [state.objective.fixed_draw(*batch) for batch in kept if len(batch[0])]
            record = _record(state, held_out if looks else [], session.status)
            state.window = Window()
            if strategy.is_first:
                # points are too small for it to say anything; known after the first steps, which wait for nothing
                if config.field.has_utilisation and strategy.device.type not in NO_PEAK:
                    full_speed = full_speed or samples_at_peak(
                        strategy.accelerator, strategy.template, session.space.shape
                    )
                    record["utilisation"] = record["samples_per_second"] / full_speed
                session.last = record
                waiting.append(json.dumps(record, allow_nan=False) + "\n")
                try:
                    append(session.folder, "".join(waiting))
                    waiting.clear()
                except OSError as error:  # they are written when there is room again
                    print(f"warning   no metrics at step {state.step} for now ({error})")
                track_numbers(strategy.accelerator, record)
        progress(state, record)

    return callback


def looks_every(config: Config, count: int) -> int:
    """Steps between evaluations on `count` held-out samples, 0 if there are none.

    Two fields go forward, each in a third of a step's time.
    """
    train = config.train
    if train.keep_best and train.keep_best != "loss":  # at every checkpoint it must be known
        return train.log_every
    return train.held_out_every or math.ceil(2 * count / 3 / (LOOK * train.batch_size))


@torch.no_grad()
def _held_out_loss(state: Training, field: nn.Module, draws: Sequence[Draw], status: Status) -> float:
    """The mean over the held-out data of each shape, of which each process has its share."""
    strategy = state.strategy
    micro = len(state.micro_batches()[0])
    least = 1 if state.graphs else micro  # what fits with gradients fits without, unless graphs hold the memory

    def look(draw: Draw, mine: Tensor, part: slice) -> Tensor:
        return state.objective.loss(field, draw.rows(mine[part])).float().sum()

    total = torch.zeros((), device=strategy.device)
    with status.during("evaluating on held-out data"), strategy.autocast():
        for draw in draws:
            mine = torch.arange(len(draw.t))[strategy.process :: strategy.processes]
            for part in in_parts(partial(look, draw, mine), len(mine), max(AT_ONCE, micro), least):
                total += part
        total = total.cpu().to(strategy.device)  # here, where no other process is waited for
    return float(strategy.sum(total)) / sum(len(draw.t) for draw in draws)


def _record(state: Training, held_out: Sequence[Draw], status: Status) -> dict[str, Any]:
    """One line of metrics; the one place where the host waits for the device, and all processes for each other."""
    window, strategy = state.window, state.strategy
    record: dict[str, Any] = {"step": state.step, "samples": state.samples}
    if (memory := peak_memory(strategy.device)) is not None:
        record["peak_memory_mib"] = memory
    if strategy.device.type == "cuda":  # the steps are queued: their time is up when the device is done
        began = time.perf_counter()
        torch.cuda.synchronize(strategy.device)
        window.seconds += time.perf_counter() - began
    if window.steps:
        times, losses = (strategy.gather_rows(torch.cat(some)).cpu() for some in (window.times, window.losses))
        norms = torch.stack(window.grad_norms)
        good = torch.isfinite(losses)  # of a skipped step, which is counted, some are not
        record |= {
            "loss": _finite(losses[good].mean().item()),
            "loss_by_t": [_finite(loss) for loss in means_by_time(losses, times)],
            "grad_norm": _finite(norms[torch.isfinite(norms)].mean().item()),
            "skipped": state.flags.counted()["skipped"],
            "lr": state.optimizer.param_groups[0]["lr"],
            "samples_per_second": window.steps * state.objective.batch_size / window.seconds,
            "data_wait": window.data_seconds / window.seconds,
        }
    if held_out:
        for name, module in (("held_out_loss", state.field), ("held_out_loss_ema", state.ema)):
            with strategy.whole(module) as field:
                record[name] = _finite(_held_out_loss(state, field, held_out, status))
    return record


def _finite(value: float) -> float | None:
    """JSON has no NaN: an empty bin and a loss that blew up are null."""
    return value if math.isfinite(value) else None


def _progress(session: Session) -> Callable[[Training, dict[str, Any] | None], None]:
    """A bar on a terminal; elsewhere a plain line now and then. Called with None as record between log steps."""
    steps, is_first = session.span, session.strategy.is_first
    first, until = steps.began or 0, steps.until
    bar = tqdm(total=until, initial=first, unit="step", disable=None if is_first else True)
    plain = bar.disable and is_first
    last = -math.inf
    warm: tuple[int, float] | None = None  # the step after which the slow ones are done, and the seconds they took
    told = not is_first

    def update(state: Training, record: dict[str, Any] | None) -> None:
        nonlocal last, warm, told
        bar.update(state.step - bar.n if not bar.disable else 0)
        if not told and warm is None and state.step > first + state.graphs:
            warm = state.step, state.seconds
        elif not told and warm and (taken := state.seconds - warm[1]) > TRIED_SECONDS:
            each = taken / (state.step - warm[0])
            left = (until - state.step) * each
            if plain:
                print(f"left      about {duration(left)} ({1000 * each:.3g} ms per step)", flush=True)
            if left > DAY and session.strategy.device.type == "cpu":
                smaller = SMALLER if session.config.data.holds_pictures else ""
                bar.write(f"warning   about {duration(left)} left on this CPU: give fewer train.steps{smaller}")
            told = True
        if record and "loss" in record:
            speed = f"{record['samples_per_second']:,.0f} samples/s"
            if "utilisation" in record:
                speed += f" ({100 * record['utilisation']:.0f} % of peak)"
            loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
            bar.set_postfix_str(f"loss {loss}, {speed}", refresh=False)
            now = time.perf_counter()
            if plain and (now - last >= QUIET_SECONDS or steps.is_last(state)):
                # from the steps only: else the grid at the start would count as if every step drew one
                left = (until - state.step) * state.objective.batch_size / record["samples_per_second"]
                print(f"step {state.step}/{until}  loss {loss}  {speed}  {duration(left)} left", flush=True)
                last = now
        if steps.is_last(state):
            bar.close()

    return update


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h, 4.2 days."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * DAY else f"{seconds / DAY:.1f} days"
