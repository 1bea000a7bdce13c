"""`flowimg train`: from settings to a trained field, its checkpoints, metrics and pictures in the run's folder."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from flowimg.config import Config, SettingsError, UNet, dump, flatten, load
from flowimg.jobs.build import DataFacts, Source, build_field, build_objective, build_source
from flowimg.jobs.figures import Batches, draw_figures
from flowimg.jobs.folder import RunFolder, Trained, check_guidance, write_text
from flowimg.jobs.machine import PATIENCE, MachineError, check_launch, environment, leave_together, pick_device
from flowimg.jobs.report import write_report
from flowimg.jobs.track import check_tracker, start_tracker
from flowimg.jobs.watch import callbacks, keep_model, span
from flowimg.training.checkpoint import Checkpoint, CheckpointError, newest_whole, read_checkpoint, step_folder
from flowimg.training.loop import Recipe, Training, rehearse, restore, start
from flowimg.training.loop import train as run_loop

FREE = ("run", "grid.", "figures", "track", "train.steps", "train.stop_at", "train.accumulation", "train.keep")
FREE_ENDINGS = ("_every",)
"""Settings that may change when a run is continued; the others would make it another run."""
STRATEGIES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What a launcher may ask for, by its variable, that this loop does not do."""


def train(config: Config) -> dict[str, Any] | None:
    """Train, or continue, the run that these settings describe; on the main process, tell what came of it."""
    assert config.run is not None
    folder = RunFolder(Path(config.run))
    _check_folder(folder, config)
    accelerator = _accelerator(config)
    say: Callable[[str], None] = print if accelerator.is_main_process else lambda line: None

    with accelerator.local_main_process_first():  # one process fills datasets' cache, the others read it
        source = build_source(config)
    checkpoint = _newest(folder, say)
    facts = source.facts
    if checkpoint:
        facts = facts._replace(architecture=checkpoint.state.get("architecture"))
    with accelerator.local_main_process_first():
        field = build_field(config, facts)
    check_guidance(config.grid.guidance, facts, config)
    batches = source.load(accelerator.device)
    state = start(accelerator, field, build_objective(config), batches, _recipe(config))
    if checkpoint:
        restore(state, checkpoint.state["step"], dict(checkpoint.tensors))
    _agree(state, folder)
    began = state.step
    resumed = began if checkpoint else None
    until = min(config.train.steps, config.train.stop_at or config.train.steps)
    if accelerator.is_main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.config, dump(config))
        machine = environment(accelerator.device, accelerator.num_processes)
        machine |= {"data": source.story, "parameters": sum(p.numel() for p in state.field.parameters())}
        write_text(folder.environment, json.dumps(machine, indent=1) + "\n")
        folder.cut_metrics(-1 if resumed is None else resumed)
    for line in _launcher_differs(config):
        say(f"warning   {line}")
    seconds = rehearse(state) if began < until else 0.0
    _banner(say, config, source, state, until, seconds)
    if began >= until:
        longer = "--train.stop-at" if until < config.train.steps else "--train.steps"
        say(f"already trained to step {began}: nothing to do (for more, give a larger {longer})")
        if accelerator.is_main_process:  # the last start may have ended between the checkpoint and this
            keep_model(config, folder, facts, state)
    else:
        start_tracker(accelerator, config, began)
        run_loop(state, until, callbacks(config, folder, facts, batches, accelerator, resumed, until))
    if config.figures and accelerator.is_main_process and state.step > began:
        _show(folder, config, facts, batches, state)
    _farewell(say, folder, config, state)
    for tracker in accelerator.trackers:
        tracker.finish()
    leave_together()
    return _result(folder, config, state) if accelerator.is_main_process else None


# --- before the first step -------------------------------------------------------------------------------------------


def _check_folder(folder: RunFolder, config: Config) -> None:
    """Refuse a folder that holds another run, or something that is no run at all."""
    standing = next(path for path in [folder.path, *folder.path.absolute().parents] if path.exists())
    if not os.access(standing, os.W_OK):
        raise MachineError(f"--run {folder.path} cannot be written: {standing} is read-only for you")
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
    if config.train.precision == "fp16" and pick_device().type != "cuda":
        raise MachineError("train.precision fp16 needs a GPU: use bf16 or fp32 on this machine")
    if strategy := next((name for name in STRATEGIES if os.environ.get(name, "").lower() in ("1", "true")), None):
        raise MachineError(
            f"the launcher asks for {STRATEGIES[strategy]}, and flowimg trains with data parallelism alone: "
            "launch with --multi_gpu, or answer no to it in `accelerate config`"
        )
    check_tracker(config)
    # torch 2.15 has a new name for broadcast_buffers; the older ones that we run on do not know it
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # accelerate holds on to the first precision asked for in a process; a notebook may train twice
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        dynamo_backend="no",
        log_with=config.track,
        project_dir=f"{config.run}/tracking" if config.track else None,
        # the buffers of our fields are constants; sending them every step would be waste
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    processes = accelerator.num_processes
    check_launch(processes, "train")
    share = processes * config.train.accumulation
    if config.train.batch_size % share:
        raise SettingsError(
            f"train.batch_size {config.train.batch_size} does not divide over {processes} processes times "
            f"{config.train.accumulation} micro-batches: use a multiple of {share}"
        )
    return accelerator


def _launcher_differs(config: Config) -> list[str]:
    """What the launcher was told that the run's settings say otherwise: they win, so that a run is its folder."""
    asked = {
        "mixed precision": (
            os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
            "train.precision",
            config.train.precision,
        ),
        "gradient accumulation": (
            os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
            "train.accumulation",
            str(config.train.accumulation),
        ),
        "torch.compile by": (os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower(), "none", "no"),
    }
    # what the launcher says by itself, when nobody asked for anything
    silent = ("no", "1", "")
    return [
        f"the launcher asks for {what} {there}; the run's settings win: {name} {here}"
        for what, (there, name, here) in asked.items()
        if there not in silent and there != here
    ]


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


def _newest(folder: RunFolder, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint to continue from; None for a new run.

    Raises:
        CheckpointError: If checkpoints were made and none is whole: starting over would write over the run.
    """
    path, passed = newest_whole(folder.checkpoints)
    for line in passed:
        say(line)
    if path is None and (passed or _last_step(folder) > 0):
        raise CheckpointError(
            f"{folder.path} was trained to step {_last_step(folder)} but has no whole checkpoint to go on from: "
            "name another folder with --run, or delete this one to start over"
        )
    return None if path is None else read_checkpoint(path)


def _agree(state: Training, folder: RunFolder) -> None:
    """All processes must have found the same checkpoint.

    Raises:
        MachineError: If they did not.
    """
    found = state.accelerator.gather(torch.tensor([state.step], device=state.accelerator.device))
    if len(found.unique()) > 1:
        raise MachineError(f"the processes found checkpoints of steps {found.tolist()}: {folder.path} must be shared")


def _last_step(folder: RunFolder) -> int:
    """The last step that a run wrote metrics of; 0 if there is none."""
    text = folder.metrics.read_text(errors="replace") if folder.metrics.exists() else ""
    return max((int(step) for step in re.findall(r'"step": (\d+)', text)), default=0)


def _banner(
    say: Callable[[str], None], config: Config, source: Source, state: Training, until: int, seconds: float
) -> None:
    """What was found, and what it will take."""
    accelerator, train = state.accelerator, config.train
    shape = " x ".join(str(n) for n in source.facts.shape)
    parameters = sum(p.numel() for p in state.field.parameters())
    seen = train.steps * train.batch_size
    processes = accelerator.num_processes
    micro = len(state.micro_batches()[0])
    seen_as = f"{seen:,} images, {seen / source.size:.1f} epochs" if source.size else f"{seen:,} points"
    say(f"run       {config.run} ({f'continued from step {state.step}' if state.step else 'new'}), seed {config.seed}")
    say(
        f"machine   {accelerator.device}, {processes} process{'es' if processes > 1 else ''}, "
        f"{torch.get_num_threads()} threads each, {train.precision}"
    )
    say(f"data      {source.story}; trained on as {shape}")
    kind: str = config.field.kind
    if isinstance(config.field, UNet) and config.field.pretrained:
        kind += f" of {config.field.pretrained} (its channels, layers and attention)"
    say(f"field     {kind}, {parameters:,} parameters, {parameters * 16 / 2**20:.1f} MiB a checkpoint")
    say(f"flow      {config.path.kind} path, {config.coupling.kind} coupling, {config.times.kind} times")
    say(
        f"training  steps {state.step} to {until} of {train.steps}, batch {train.batch_size}"
        f" = {processes} x {train.accumulation} micro-batches of {micro}; {seen_as}"
    )
    if seconds:
        expected = span((until - state.step) * seconds)
        say(
            f"expected  {expected} or a little more, at {1000 * seconds:.3g} ms a step as just tried; then its pictures"
        )
    say(f"pictures  {config.run}/samples, every {train.sample_every} steps")


def _show(folder: RunFolder, config: Config, facts: DataFacts, batches: Batches, state: Training) -> None:
    """The run's figures, by the averaged weights, and its report; the other processes wait at the end."""
    run = Trained(folder, config, facts, state.ema.eval(), state.step, "")
    try:
        with state.accelerator.autocast():
            draw_figures(run, config.grid, 0, batches)
        write_report(folder, running=False)
    except Exception as error:  # the run is trained and saved: a picture less does not make it a failure
        print(f"warning   no figures ({type(error).__name__}: {error}); flowimg figures {folder.path} tries again")


def _farewell(say: Callable[[str], None], folder: RunFolder, config: Config, state: Training) -> None:
    """Where everything is, and what to do next."""
    grid = folder.grid(state.step)
    if grid.exists():
        say(f"pictures  {grid}")
    say(f"weights   {folder.checkpoints}/step_{state.step:08d}")
    if folder.figures.exists():
        say(f"figures   {folder.figures}")
    if folder.report.exists():
        say(f"report    {folder.report} (opens in a browser)")
    if folder.model.exists():
        say(f"diffusers {folder.model} (README.md there says how)")
    if state.step < config.train.steps:
        say(f"next      the same command without --train.stop-at goes on to step {config.train.steps}")
    say(f"next      flowimg sample {folder.path}; flowimg evaluate {folder.path}")


def _result(folder: RunFolder, config: Config, state: Training) -> dict[str, Any]:
    """What a script wants to know of a run."""
    last: dict[str, Any] = next((record for record in reversed(folder.records()) if record["step"] == state.step), {})
    return {
        "run": str(folder.path),
        "step": state.step,
        "steps": config.train.steps,
        **{name: last.get(name) for name in ("loss", "held_out_loss_ema", "samples_per_second")},
        "checkpoint": str(step_folder(folder.checkpoints, state.step)),
        "grid": _there(folder.grid(state.step)),
        "figures": _there(folder.figures),
        "report": _there(folder.report),
        "model": _there(folder.model),
    }


def _there(path: Path) -> str | None:
    return str(path) if path.exists() else None
