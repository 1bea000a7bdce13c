"""`flowimg train`: from settings to a trained field, its checkpoints, metrics and pictures in the run's folder."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from flowimg.config import Config, SettingsError, dump, flatten, load
from flowimg.flow.objective import Draw, flow_matching_loss
from flowimg.flow.randomness import normal
from flowimg.flow.times import stratify
from flowimg.jobs.build import Source, build_field, build_objective, build_source
from flowimg.jobs.draw import show, stream, turns
from flowimg.jobs.folder import RunFolder
from flowimg.jobs.machine import MachineError, environment
from flowimg.training.checkpoint import Checkpoint, newest_whole, read_checkpoint, write_checkpoint
from flowimg.training.loop import Callback, Recipe, Training, Window, restore, start, state_tensors
from flowimg.training.loop import train as run_loop

FREE = ("run", "grid.", "train.steps", "train.stop_at", "train.accumulation", "train.keep")
FREE_ENDINGS = ("_every",)
"""Settings that may change when a run is continued; the others would make it another run."""
BINS = 10
"""Bins of t in which the loss is logged."""
QUIET_SECONDS = 10.0
"""Without a terminal: seconds between lines of progress at least."""


def train(config: Config) -> None:
    """Train, or continue, the run that these settings describe."""
    assert config.run is not None
    folder = RunFolder(Path(config.run))
    _check_folder(folder, config)
    accelerator = _accelerator(config)
    say: Callable[[str], None] = print if accelerator.is_main_process else lambda line: None

    source = build_source(config, accelerator.device)
    field = build_field(config, source.facts)
    state = start(accelerator, field, build_objective(config), source.batches, _recipe(config))
    began = _resume(state, folder, say)
    until = min(config.train.steps, config.train.stop_at or config.train.steps)
    if accelerator.is_main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(dump(config))
        machine = environment(accelerator.device, accelerator.num_processes)
        folder.environment.write_text(json.dumps(machine, indent=1) + "\n")
        folder.cut_metrics(began)
    _banner(say, config, source, state, until)
    if began >= until:
        say(f"already trained to step {began}: nothing to do (train longer with --train.steps)")
        return _farewell(say, folder, config, state)

    progress = _progress(config, accelerator, began, until)
    callbacks: list[Callback] = [
        _metrics(config, folder, source, began, until, progress),
        _grids(config, folder, source, began, until),
        _checkpoints(config, folder, source, began, until),
    ]
    run_loop(state, until, callbacks)
    progress(state, None)
    _farewell(say, folder, config, state)
    accelerator.end_training()


# --- before the first step -------------------------------------------------------------------------------------------


def _check_folder(folder: RunFolder, config: Config) -> None:
    """Refuse a folder that holds another run, or something that is no run at all."""
    if not folder.path.exists() or (folder.path.is_dir() and not any(folder.path.iterdir())):
        return
    if not folder.config.exists():
        raise SettingsError(f"--run {folder.path} exists and holds no run of flowimg: name a new folder")
    before, now = flatten(load(str(folder.config))), flatten(config)
    changed = [
        f"{key}: {before.get(key, 'not there')} before, {now.get(key, 'not there')} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not key.startswith(FREE) and not key.endswith(FREE_ENDINGS)
    ]
    if changed:
        raise SettingsError(
            f"{folder.path} holds another run: {'; '.join(changed)}. Name another folder with --run, "
            "or give the settings it was started with to continue it"
        )


def _accelerator(config: Config) -> Accelerator:
    """The processes and their devices, checked against the launch and the settings."""
    gpu = torch.cuda.is_available()
    if config.train.precision == "fp16" and not gpu:
        raise MachineError("train.precision fp16 needs a GPU: use bf16 or fp32 on this machine")
    # accelerate holds on to the first precision asked for in a process; a notebook may train twice
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        # the buffers of our fields are constants; sending them every step would be waste
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    launched, processes = int(os.environ.get("WORLD_SIZE", "1")), accelerator.num_processes
    if launched > processes:
        raise MachineError(
            f"{launched} processes were launched, but each sees only itself and would write the same run: on a CPU "
            "launch with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N`"
        )
    share = processes * config.train.accumulation
    if config.train.batch_size % share:
        raise SettingsError(
            f"train.batch_size {config.train.batch_size} does not divide over {processes} processes times "
            f"{config.train.accumulation} micro-batches: use a multiple of {share}"
        )
    return accelerator


def _recipe(config: Config) -> Recipe:
    return Recipe(
        steps=config.train.steps,
        accumulation=config.train.accumulation,
        lr=config.optim.lr,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
        warmup=config.optim.warmup,
        schedule=config.optim.schedule,
        clip=config.optim.clip,
        ema=config.optim.ema,
    )


def _resume(state: Training, folder: RunFolder, say: Callable[[str], None]) -> int:
    """Continue from the newest whole checkpoint, if there is one; the step this start begins at."""
    path, passed = newest_whole(folder.checkpoints)
    for line in passed:
        say(line)
    if path is not None:
        checkpoint = read_checkpoint(path)
        restore(state, checkpoint.state["step"], dict(checkpoint.tensors))
    return state.step


def _banner(say: Callable[[str], None], config: Config, source: Source, state: Training, until: int) -> None:
    """What was found, and what it will take."""
    accelerator, train = state.accelerator, config.train
    shape = " x ".join(str(n) for n in source.facts.shape)
    classes = f", {len(source.facts.classes)} classes" if source.facts.classes else ""
    parameters = sum(p.numel() for p in state.field.parameters())
    seen = train.steps * train.batch_size
    processes = accelerator.num_processes
    micro = len(state.micro_batches()[0])
    if source.size:
        data = f"{config.data.source}: {source.size:,} images {shape}{classes}; {config.data.held_out} held out"
        seen_as = f"{seen:,} images, {seen / source.size:.1f} epochs"
    else:
        data = f"{config.data.source}: points drawn afresh{classes}"
        seen_as = f"{seen:,} points"
    say(f"run       {config.run} ({f'continued from step {state.step}' if state.step else 'new'}), seed {config.seed}")
    say(
        f"machine   {accelerator.device}, {processes} process{'es' if processes > 1 else ''}, "
        f"{torch.get_num_threads()} threads each, {train.precision}"
    )
    say(f"data      {data}")
    say(f"field     {config.field.kind}, {parameters:,} parameters, {parameters * 16 / 2**20:.1f} MiB a checkpoint")
    say(f"flow      {config.path.kind} path, {config.coupling.kind} coupling, {config.times.kind} times")
    say(
        f"training  steps {state.step} to {until} of {train.steps}, batch {train.batch_size}"
        f" = {processes} x {train.accumulation} micro-batches of {micro}; {seen_as}"
    )
    say(f"pictures  {config.run}/samples, every {train.sample_every} steps")


def _farewell(say: Callable[[str], None], folder: RunFolder, config: Config, state: Training) -> None:
    """Where everything is, and what to do next."""
    grid = folder.grid(state.step)
    if grid.exists():
        say(f"pictures  {grid}")
    say(f"weights   {folder.checkpoints}/step_{state.step:08d}")
    if state.step < config.train.steps:
        say(f"next      the same command without --train.stop-at goes on to step {config.train.steps}")
    say(f"next      flowimg sample {folder.path}; flowimg evaluate {folder.path}")


# --- every N steps ---------------------------------------------------------------------------------------------------


def _due(state: Training, every: int, began: int, until: int) -> bool:
    """Every N steps, at step 0 and at the end; not again at the step a run was continued from."""
    return (state.step % every == 0 or state.step == until) and (state.step == 0 or state.step != began)


def _metrics(
    config: Config,
    folder: RunFolder,
    source: Source,
    began: int,
    until: int,
    progress: Callable[[Training, dict[str, Any] | None], None],
) -> Callback:
    """Write a line of metrics.jsonl every `log_every` steps, and show progress."""
    held_out = _held_out_draw(config, source)

    def callback(state: Training) -> None:
        record = None
        if _due(state, config.train.log_every, began, until):
            record = _record(state, held_out)
            state.window = Window()
            if state.accelerator.is_main_process:
                with folder.metrics.open("a") as file:
                    file.write(json.dumps(record, allow_nan=False) + "\n")
        progress(state, record)

    return callback


def _held_out_draw(config: Config, source: Source) -> Draw:
    """The held-out data with noise and times that never change, so that losses compare across steps and runs."""
    x_1, cond = source.batches.held_out(config.data.held_out)
    places = range(len(x_1))
    x_0 = normal(0, "held out noise", 0, places, tuple(x_1.shape[1:])).to(x_1.device)
    t = stratify(torch.full((len(x_1),), 0.5), places, len(x_1)).to(x_1.device)
    return Draw(x_0, x_1, t, cond)


@torch.no_grad()
def _held_out_loss(state: Training, field: nn.Module, draw: Draw) -> float:
    training = field.training
    field.eval()
    losses = []
    with state.accelerator.autocast():
        for rows in torch.arange(len(draw.t)).split(256):
            part = Draw(*(None if value is None else value[rows.to(value.device)] for value in draw))  # type: ignore[arg-type]
            losses.append(flow_matching_loss(field, state.objective.path, part).float())
    field.train(training)
    return float(torch.cat(losses).mean())


def _record(state: Training, held_out: Draw) -> dict[str, Any]:
    """One line of metrics; the one place where the host waits for the device, and all processes for each other."""
    window, accelerator = state.window, state.accelerator
    record: dict[str, Any] = {"step": state.step, "samples": state.step * state.objective.batch_size}
    if window.steps:
        times: Tensor = accelerator.gather(torch.cat(window.times))
        losses: Tensor = accelerator.gather(torch.cat(window.losses))
        bins = (times * BINS).long().clamp(max=BINS - 1)
        by_t = [losses[bins == b].mean().item() for b in range(BINS)]
        norms = torch.stack(window.grad_norms) if window.grad_norms else losses.new_zeros(1)
        record |= {
            "loss": _finite(losses.mean().item()),
            "loss_by_t": [_finite(loss) for loss in by_t],
            "grad_norm": _finite(norms.mean().item()),
            "lr": state.optimizer.param_groups[0]["lr"],
            "samples_per_second": window.steps * state.objective.batch_size / window.seconds,
            "data_wait": window.data_seconds / window.seconds,
        }
    record["held_out_loss"] = _finite(_held_out_loss(state, state.field, held_out))
    record["held_out_loss_ema"] = _finite(_held_out_loss(state, state.ema, held_out))
    return record


def _finite(value: float) -> float | None:
    """JSON has no NaN: an empty bin and a loss that blew up are null."""
    return value if math.isfinite(value) else None


def _grids(config: Config, folder: RunFolder, source: Source, began: int, until: int) -> Callback:
    """Draw the same noise through the average and through the raw weights every `sample_every` steps."""
    seeds = range(config.grid.count)
    labels = turns(seeds, source.facts.classes)

    def callback(state: Training) -> None:
        if not _due(state, config.train.sample_every, began, until):
            return
        if state.accelerator.is_main_process:
            training = state.field.training
            state.field.eval()
            for weights, field in (("ema", state.ema), ("raw", state.field)):
                with state.accelerator.autocast():
                    batches = list(stream(field, config, source.facts, config.grid, seeds, labels))
                samples = torch.cat([batch.x_1 for batch in batches]).float()
                show(samples, labels, config, folder.grid(state.step, weights), f"{weights} at step {state.step}")
            state.field.train(training)
        state.accelerator.wait_for_everyone()

    return callback


def _checkpoints(config: Config, folder: RunFolder, source: Source, began: int, until: int) -> Callback:
    """Save every `checkpoint_every` steps, at the start (a full disk is found at once) and at the end."""

    def callback(state: Training) -> None:
        if not _due(state, config.train.checkpoint_every, began, until):
            return
        if state.accelerator.is_main_process:
            facts = {"shape": source.facts.shape, "classes": source.facts.classes, "seed": config.seed}
            checkpoint = Checkpoint(state_tensors(state), facts)
            write_checkpoint(folder.checkpoints, state.step, checkpoint, config.train.keep)
        state.accelerator.wait_for_everyone()

    return callback


def _progress(
    config: Config, accelerator: Accelerator, began: int, until: int
) -> Callable[[Training, dict[str, Any] | None], None]:
    """A bar on a terminal; elsewhere a plain line now and then. Called with None as record between log steps."""
    bar = tqdm(total=until, initial=began, unit="step", disable=None if accelerator.is_main_process else True)
    plain = bar.disable and accelerator.is_main_process
    started = last = time.perf_counter()

    def update(state: Training, record: dict[str, Any] | None) -> None:
        nonlocal last
        bar.update(state.step - bar.n if not bar.disable else 0)
        if record and "loss" in record:
            speed = f"{record['samples_per_second']:,.0f} samples/s"
            loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
            bar.set_postfix_str(f"loss {loss}, {speed}", refresh=False)
            now = time.perf_counter()
            if plain and (now - last >= QUIET_SECONDS or state.step == until or last == started):
                left = (now - started) / (state.step - began) * (until - state.step)
                print(f"step {state.step}/{until}  loss {loss}  {speed}  {_clock(left)} left", flush=True)
                last = now
        if state.step == until:
            bar.close()

    return update


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
