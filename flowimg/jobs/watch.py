"""What happens every N steps of a run: metrics, pictures, evaluations, progress. The loop only calls back."""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.config import Config
from flowimg.flow.floor import means_by_time
from flowimg.flow.objective import Draw, flow_matching_loss
from flowimg.flow.randomness import normal
from flowimg.flow.times import stratify
from flowimg.jobs.build import Batches, DataFacts
from flowimg.jobs.draw import draw, show, turns
from flowimg.jobs.evaluate import find_yard, measure_points
from flowimg.jobs.figures import draw_curves
from flowimg.jobs.folder import RunFolder
from flowimg.jobs.meter import peak_memory, samples_at_peak
from flowimg.jobs.report import write_report
from flowimg.jobs.save import keep_averages, keep_checkpoints
from flowimg.jobs.scores import distance_in, figures_of, keep, made_how
from flowimg.jobs.signals import Stopped, Wishes
from flowimg.jobs.status import Status
from flowimg.jobs.stretch import Stretch
from flowimg.jobs.track import track_numbers, track_picture
from flowimg.sampling.fitting import in_parts
from flowimg.training.loop import Callback, Training, Window

LOOK = 0.02
"""Share of the time of the steps that looks at the held-out data may take."""
AT_ONCE = 256
"""Held-out samples in one call of the field at least."""
REPORT_SECONDS = 15.0
"""Seconds between two reports of a run at least."""
QUIET_SECONDS = 10.0
"""Without a terminal: seconds between lines of progress at least."""
TRIED_SECONDS = 0.5
"""How long the steps take at least that tell what a run will take; the first, in graphs the second too, are slow."""


def callbacks(
    config: Config,
    folder: RunFolder,
    facts: DataFacts,
    batches: Batches,
    accelerator: Accelerator,
    stretch: Stretch,
    wishes: Wishes,
    status: Status,
    thread: Executor,
) -> list[Callback]:
    """Everything a run does between its steps.

    `thread` is one beside the loop, which writes averages and checkpoints in their order.
    """
    last: dict[str, Any] = {}  # the newest line of metrics

    def tell(state: Training) -> None:
        status.step = state.step

    return [
        tell,
        _metrics(config, folder, batches, stretch, last, _progress(accelerator, stretch)),
        _grids(config, folder, facts, stretch, wishes, status),
        *([_evaluations(config, folder, facts, stretch, wishes, status)] if config.train.evaluate_every else []),
        *([keep_averages(config, folder, stretch, thread)] if config.train.snapshots else []),
        keep_checkpoints(config, folder, facts, batches.fingerprint, stretch, last, wishes, status, thread),
        *([_report(config, folder, batches, stretch)] if config.figures and accelerator.is_main_process else []),
    ]


def _metrics(
    config: Config,
    folder: RunFolder,
    batches: Batches,
    stretch: Stretch,
    last: dict[str, Any],
    progress: Callable[[Training, dict[str, Any] | None], None],
) -> Callback:
    """Write a line of metrics.jsonl every `log_every` steps, and show progress."""
    held_out = _held_out_draw(config, batches)
    often = looks_every(config, len(held_out.t))
    waiting: list[str] = []
    full_speed: float | None = None  # samples a second, if the network were matrix products alone

    def callback(state: Training) -> None:
        nonlocal full_speed
        record = None
        if stretch.due(state, config.train.log_every):
            step, every = state.step, config.train.log_every
            looks = step // often > (step - every) // often or stretch.is_last(state)
            record = _record(state, held_out if looks else None)
            state.window = Window()
            # points are too small for it to say anything; known after the first steps, which wait for nothing
            if config.data.kind == "images" and state.accelerator.is_main_process:
                full_speed = full_speed or samples_at_peak(state.accelerator, state.ema, held_out.x_1.shape[1:])
                record["utilisation"] = record["samples_per_second"] / full_speed
            if state.accelerator.is_main_process:
                last.clear()
                last.update(record)
                waiting.append(json.dumps(record, allow_nan=False) + "\n")
                try:
                    append(folder, "".join(waiting))
                    waiting.clear()
                except OSError as error:  # they are written when there is room again
                    print(f"warning   no metrics at step {state.step} for now ({error})")
                track_numbers(state.accelerator, record)
        progress(state, record)

    return callback


def append(folder: RunFolder, lines: str) -> None:
    """Add lines to metrics.jsonl, all of them or none.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    try:
        with folder.metrics.open("a") as file:
            file.write(lines)
    except OSError:
        with folder.metrics.open("r+") as file:
            file.truncate(size)
        raise


def looks_every(config: Config, count: int) -> int:
    """Steps between looks at so many held-out samples: two fields go forward, which is a third of a step of each."""
    train = config.train
    if train.keep_best and train.keep_best != "loss":  # at every checkpoint it must be known
        return train.log_every
    return train.held_out_every or math.ceil(2 * count / 3 / (LOOK * train.batch_size))


def _held_out_draw(config: Config, batches: Batches) -> Draw:
    """The held-out data with noise and times that never change, so that losses compare across steps and runs."""
    x_1, cond = batches.held_out(config.data.held_out)
    places = range(len(x_1))
    x_0 = normal(0, "held out noise", 0, places, tuple(x_1.shape[1:])).to(x_1.device)
    t = stratify(torch.full((len(x_1),), 0.5), places, len(x_1)).to(x_1.device)
    return Draw(x_0, x_1, t, cond)


@torch.no_grad()
def _held_out_loss(state: Training, field: nn.Module, draw: Draw) -> float:
    """The mean over the held-out data, of which each process has its share."""
    accelerator, training = state.accelerator, field.training
    if training:  # walking the modules of a small field costs as much as its arithmetic
        field.eval()
    mine = torch.arange(len(draw.t))[accelerator.process_index :: accelerator.num_processes]
    micro = len(state.micro_batches()[0])
    least = 1 if state.graphs else micro  # what fits with gradients fits without, where graphs do not hold it for good

    def look(part: slice) -> Tensor:
        rows = mine[part]
        few = Draw(*(None if value is None else value[rows.to(value.device)] for value in draw))  # type: ignore[arg-type,union-attr,index]
        return flow_matching_loss(field, state.objective.path, few).float().sum()

    total = torch.zeros((), device=accelerator.device)
    with accelerator.autocast():
        for part in in_parts(look, len(mine), max(AT_ONCE, micro), least):
            total += part
    if training:
        field.train()
    return float(accelerator.reduce(total, "sum")) / len(draw.t)


def _record(state: Training, held_out: Draw | None) -> dict[str, Any]:
    """One line of metrics; the one place where the host waits for the device, and all processes for each other."""
    window, accelerator = state.window, state.accelerator
    record: dict[str, Any] = {"step": state.step, "samples": state.samples}
    if (memory := peak_memory(accelerator.device)) is not None:
        record["peak_memory_mib"] = memory
    if accelerator.device.type == "cuda":  # the steps are queued: their time is up when the device is done
        began = time.perf_counter()
        torch.cuda.synchronize(accelerator.device)
        window.seconds += time.perf_counter() - began
    if window.steps:
        times, losses = (accelerator.gather(torch.cat(some)).cpu() for some in (window.times, window.losses))
        norms = torch.stack(window.grad_norms)
        good = torch.isfinite(losses)  # of a skipped step, which is counted, some are not
        record |= {
            "loss": _finite(losses[good].mean().item()),
            "loss_by_t": [_finite(loss) for loss in means_by_time(losses, times)],
            "grad_norm": _finite(norms[torch.isfinite(norms)].mean().item()),
            "skipped": state.verdict.counted()["skipped"],
            "lr": state.optimizer.param_groups[0]["lr"],
            "samples_per_second": window.steps * state.objective.batch_size / window.seconds,
            "data_wait": window.data_seconds / window.seconds,
        }
    if held_out is not None:
        record["held_out_loss"] = _finite(_held_out_loss(state, state.field, held_out))
        record["held_out_loss_ema"] = _finite(_held_out_loss(state, state.ema, held_out))
    return record


def _finite(value: float) -> float | None:
    """JSON has no NaN: an empty bin and a loss that blew up are null."""
    return value if math.isfinite(value) else None


def _grids(
    config: Config,
    folder: RunFolder,
    facts: DataFacts,
    stretch: Stretch,
    wishes: Wishes,
    status: Status,
) -> Callback:
    """Draw the same noise through the average and through the raw weights every `sample_every` steps."""
    seeds = range(config.grid.count)
    labels = turns(seeds, facts.classes)

    def callback(state: Training) -> None:
        # a run that was asked to end draws no more
        if state.seen.stop or not stretch.due(state, config.train.sample_every):
            return
        accelerator = state.accelerator
        status.at("drawing samples")
        training = state.field.training
        state.field.eval()
        for weights, field in (("ema", state.ema), ("raw", state.field)):
            with accelerator.autocast():
                x_1 = _draw_together(accelerator, field, config, facts, seeds, labels, wishes)
            if accelerator.is_main_process and x_1 is not None:
                path = folder.grid(state.step, weights)
                try:
                    show(x_1, labels, config, path, f"{weights} at step {state.step}")
                    track_picture(accelerator, f"samples/{weights}", path, state.step)
                except OSError as error:
                    print(f"warning   no grid at step {state.step} ({error})")
        state.field.train(training)
        accelerator.wait_for_everyone()
        status.at("training")

    return callback


def _evaluations(
    config: Config, folder: RunFolder, facts: DataFacts, stretch: Stretch, wishes: Wishes, status: Status
) -> Callback:
    """Measure the averaged field every `evaluate_every` steps, drawn as the grid is, into RUN/evaluations.jsonl."""
    every, seeds = config.train.evaluate_every or 1, range(config.train.evaluate_count)
    yard: Any = None
    if config.data.kind == "images":  # before the first step: network or data may not be there, or not any more later
        from flowimg.evaluation.extractors import ExtractorError

        try:
            yard = find_yard(config.train.evaluate_features, config, facts, PartialState())
        except ExtractorError as error:
            how = "what flowimg evaluate fetched once is found here"
            raise ExtractorError(f"train.evaluate_features {config.train.evaluate_features}: {error} ({how})") from None

    def pictures(state: Training) -> dict[str, Any] | None:
        from flowimg.jobs import measure

        processes = PartialState()
        inside = [_interruptible(state.ema, wishes), state.accelerator.autocast()]
        drawn = measure.draw_all(state.ema, config, facts, config.grid, seeds, yard.extractor, processes, inside)
        if drawn is None:
            return None
        return {**measure.score(drawn, yard)[0], **made_how(config.grid, seeds, drawn.nfe), **measure.told(yard, drawn)}

    def callback(state: Training) -> None:
        if state.seen.stop or not stretch.due(state, every):
            return
        status.at("evaluating")
        found = None
        if config.data.kind == "images":
            found = pictures(state)
        elif state.accelerator.is_main_process:
            with state.accelerator.autocast(), _interruptible(state.ema, wishes):
                found = measure_points(state.ema, config, facts, config.grid, seeds)
        if found is not None:
            how = {"step": state.step, "weights": "ema", "arithmetic": config.train.precision, "during": True}
            try:
                keep(folder, {**found, **how})
            except OSError as error:  # of a run that goes on
                print(f"warning   the evaluation of step {state.step} is not kept ({error})", flush=True)
            figures = figures_of(found)
            name, words = ("frechet", distance_in(found)) if "frechet" in found else ("off", "off")
            print(f"evaluated step {state.step}: {words} {found[name]:.4g}", flush=True)
            track_numbers(state.accelerator, {"step": state.step, **{f"evaluation/{k}": v for k, v in figures.items()}})
        state.accelerator.wait_for_everyone()
        status.at("training")

    return callback


def _draw_together(
    accelerator: Accelerator,
    field: nn.Module,
    config: Config,
    facts: DataFacts,
    seeds: range,
    labels: Tensor | None,
    wishes: Wishes,
) -> Tensor | None:
    """Samples of these seeds, each process drawing its share; None if one of them was asked to end meanwhile."""
    each = math.ceil(len(seeds) / accelerator.num_processes)
    # equal shares, which is what can be gathered: the last sample again where there are too few
    mine = [min(accelerator.process_index * each + row, len(seeds) - 1) for row in range(each)]
    wanted = None if labels is None else labels[mine]
    drawn = None
    with _interruptible(field, wishes):
        drawn = draw(field, config, facts, config.grid, [seeds[row] for row in mine], wanted)
    whole: Tensor = accelerator.gather(torch.tensor([drawn is not None], device=accelerator.device))
    if drawn is None or not bool(whole.all()):
        return None
    gathered: Tensor = accelerator.gather(drawn.x_1.to(accelerator.device))
    return gathered[: len(seeds)].cpu()


@contextmanager
def _interruptible(field: nn.Module, wishes: Wishes) -> Iterator[None]:
    """Give up what is inside at the next evaluation of the field, once this process is asked to end."""
    hook = field.register_forward_pre_hook(lambda *_: wishes.check())
    try:
        yield
    except Stopped:  # the loop ends the run, with a checkpoint
        pass
    finally:
        hook.remove()


def _report(config: Config, folder: RunFolder, batches: Batches, stretch: Stretch) -> Callback:
    """Rewrite RUN/report.html with the grids of a run, but not all the time; its end writes the last one."""
    last = -math.inf

    def callback(state: Training) -> None:
        nonlocal last
        now = time.monotonic()
        first = state.step == (stretch.began or 0) + 1  # one that can be opened early, but no step waits for
        due = first or stretch.due(state, config.train.sample_every)
        if stretch.is_last(state) or not due or now - last < REPORT_SECONDS:
            return
        try:
            if not first:  # at its start a run has no curves
                draw_curves(folder, config, batches)
            write_report(folder, running=True)
        except Exception as error:  # a page is no reason to stop training
            print(f"warning   no report at step {state.step} ({type(error).__name__}: {error})")
        last = time.monotonic()

    return callback


def _progress(accelerator: Accelerator, stretch: Stretch) -> Callable[[Training, dict[str, Any] | None], None]:
    """A bar on a terminal; elsewhere a plain line now and then. Called with None as record between log steps."""
    first, until = stretch.began or 0, stretch.until
    bar = tqdm(total=until, initial=first, unit="step", disable=None if accelerator.is_main_process else True)
    plain = bar.disable and accelerator.is_main_process
    last = -math.inf
    warm: tuple[int, float] | None = None  # the step after which the slow ones are done, and the seconds they took
    told = not plain

    def update(state: Training, record: dict[str, Any] | None) -> None:
        nonlocal last, warm, told
        bar.update(state.step - bar.n if not bar.disable else 0)
        if not told and warm is None and state.step > first + state.graphs:
            warm = state.step, state.seconds
        elif not told and warm and (taken := state.seconds - warm[1]) > TRIED_SECONDS:
            each = taken / (state.step - warm[0])
            print(f"expected  {span((until - state.step) * each)} more, at {1000 * each:.3g} ms a step", flush=True)
            told = True
        if record and "loss" in record:
            speed = f"{record['samples_per_second']:,.0f} samples/s"
            if "utilisation" in record:
                speed += f" ({100 * record['utilisation']:.0f} % of peak)"
            loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
            bar.set_postfix_str(f"loss {loss}, {speed}", refresh=False)
            now = time.perf_counter()
            if plain and (now - last >= QUIET_SECONDS or stretch.is_last(state)):
                # by the steps alone: the grid at the start would be counted as if every step drew one
                left = (until - state.step) * state.objective.batch_size / record["samples_per_second"]
                print(f"step {state.step}/{until}  loss {loss}  {speed}  {span(left)} left", flush=True)
                last = now
        if stretch.is_last(state):
            bar.close()

    return update


def span(seconds: float) -> str:
    """A stretch of time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
