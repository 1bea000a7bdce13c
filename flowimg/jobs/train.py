"""`flowimg train`: from settings to a trained field, its checkpoints, metrics and pictures in the run's folder."""

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from flowimg import __version__
from flowimg.config import Config, SettingsError, Start, UNet, dump, load
from flowimg.data.batches import Ahead, ImageBatches, Once, Pictures, PointBatches, beside
from flowimg.data.find import FEW
from flowimg.data.stream import StreamBatches
from flowimg.flow.objective import Objective, flow_matching_loss
from flowimg.jobs.build import Batches, DataFacts, Source, build_field, build_objective, build_source
from flowimg.jobs.data import draw_preview, few
from flowimg.jobs.figures import draw_figures
from flowimg.jobs.folder import RunFolder, Trained, check_guidance, check_network, write_text
from flowimg.jobs.machine import (
    PATIENCE,
    MachineError,
    blocks_of,
    check_launch,
    compiler_options,
    environment,
    get_ready,
    how_compiled,
    leave_together,
    pick_device,
    settle_precision,
    settle_tf32,
)
from flowimg.jobs.memory import find_micro_batch
from flowimg.jobs.profile import check_steps, profile_steps
from flowimg.jobs.report import write_report
from flowimg.jobs.resume import Change, check_averages, check_data, check_folder, find_checkpoint, table
from flowimg.jobs.save import keep_model
from flowimg.jobs.signals import GIVEN_UP, Stopped, Wishes
from flowimg.jobs.status import Status, hold
from flowimg.jobs.stretch import Stretch
from flowimg.jobs.track import check_tracker, start_tracker
from flowimg.jobs.watch import append, callbacks
from flowimg.sampling.fitting import is_out_of_memory
from flowimg.training.checkpoint import Checkpoint, CheckpointError, newest_whole, step_folder
from flowimg.training.ema import LENGTHS
from flowimg.training.loop import NotFiniteError, Recipe, Training, rehearse, restore, start
from flowimg.training.loop import train as run_loop
from flowimg.training.snapshots import drop_later

PREVIEWED = 64
"""Pictures of the grid that a run starts with, of what it sees."""
STRATEGIES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What a launcher may ask for, by its variable, that this loop does not do."""


def train(config: Config, how: Start | None = None) -> dict[str, Any] | None:
    """Train, or continue, the run that these settings describe; on the main process, tell what came of it.

    However it ends, RUN/status.json says so.

    Raises:
        Stopped: If a signal ended it; it was saved as far as there was anything to save.
    """
    assert config.run is not None
    how = how or Start()
    folder = RunFolder(Path(config.run))
    config = settled(config)
    changes = check_folder(folder, config, how)
    wishes = Wishes()
    status = Status(folder, config.train.steps, wishes)
    first = status.process == 0
    with _held(folder, first), wishes.listen(), status.alive(), ExitStack() as stack:
        wishes.leave = status.leave
        try:
            result = _train(config, how, folder, changes, wishes, status, stack)
        except BaseException as error:
            raise _ended(error, folder, status) from (error if isinstance(error, Stopped) else None)
        early = status.step < config.train.steps
        status.end("done", f"ended at step {status.step} as train.stop_at asks" if early else None, 0)
        return result


def settled(config: Config) -> Config:
    """The same run with its arithmetic settled: by the run, if it was begun before, else by the device."""
    file = RunFolder(Path(str(config.run))).config
    asked = config.train.precision
    if asked == "auto" and file.exists():
        asked = load(str(file)).train.precision
    train = config.train.model_copy(update={"precision": settle_precision(asked, config)})
    return config.model_copy(update={"train": train})


def _held(folder: RunFolder, first: bool) -> Any:
    """The run's folder, for one run at a time; the first process holds it for all."""
    if first:
        return hold(folder)
    while not folder.path.exists():  # on another machine it may be seen a little later
        time.sleep(0.1)
    return nullcontext()


def _ended(error: BaseException, folder: RunFolder, status: Status) -> BaseException:
    """Tell in status.json how a run ended; the error to end with, which is another one if another process died."""
    if is_out_of_memory(error):
        error = MachineError(
            f"out of memory at step {status.step} while {status.stage} ({str(error).splitlines()[0][:120]}): give "
            "--train.micro-batch auto, or a smaller one than now; the batch and the run stay the same"
        )
    dead = status.dead(patience=0.0 if isinstance(error, SettingsError) else 2.0)
    if dead:
        error = MachineError(f"{dead}; the same command goes on from the last checkpoint")
    if isinstance(error, KeyboardInterrupt):
        error = Stopped(2, "stopped by Ctrl-C")
    if isinstance(error, Stopped) and error.exit_status != 4:
        status.end("preempted", error.message, error.exit_status)
        return error
    why = str(error).splitlines() or [type(error).__name__]
    status.end("failed", why[0], getattr(error, "exit_status", 70))
    return error


def _train(
    config: Config,
    how: Start,
    folder: RunFolder,
    changes: list[Change],
    wishes: Wishes,
    status: Status,
    stack: ExitStack,
) -> dict[str, Any] | None:
    accelerator = open_accelerator(config)
    options = compiler_options(config, accelerator.num_processes)
    compiled = how_compiled(options)
    say: Callable[[str], None] = print if accelerator.is_main_process else lambda line: None
    passed: list[str] = []

    status.at("preparing data")
    with accelerator.local_main_process_first():  # one process fills the caches, the others read them
        source = build_source(config)
    checkpoint = find_checkpoint(folder, how, passed.append, accelerator.is_main_process)
    for line in passed:
        say(line)
    facts = source.facts
    if checkpoint:
        facts = facts._replace(architecture=checkpoint.state.get("architecture"))
        check_network(config, facts, checkpoint.tensors["weights"], folder.checkpoints)
        check_averages(checkpoint, config, folder.path)
    until = min(config.train.steps, config.train.stop_at or config.train.steps)
    if how.profile:
        check_steps(checkpoint.state["step"] if checkpoint else 0, until)
    with accelerator.local_main_process_first():
        field = build_field(config, facts)
    check_guidance(config.grid.guidance, facts, config)
    with accelerator.local_main_process_first():
        batches = source.load(accelerator.device)
    offset = 0
    if checkpoint:
        check_data(checkpoint.state, batches.fingerprint, how.allow, folder.path)
        changes += _other_machine(checkpoint, accelerator, folder, compiled)
        seen = checkpoint.state["samples"]
        offset = 0 if seen is None else seen - checkpoint.state["step"] * config.train.batch_size
    if not isinstance(batches, PointBatches):
        batches = replace(batches, offset=offset)  # type: ignore[type-var]
    objective = build_objective(config)
    _, accumulation = cut(config, accelerator, field.to(accelerator.device), objective, batches)
    state = start(accelerator, field, objective, batches, recipe_of(config, accumulation), options)
    state.offset = offset
    _feed(state, batches, stack)
    if checkpoint:
        _restore(state, checkpoint, folder)
    _agree(state, folder)
    began = status.step = state.step
    status.saved = began if checkpoint else None
    resumed = began if checkpoint else None
    stretch = Stretch(resumed, until)
    profiled = [profile_steps(folder, stretch, stack)] if how.profile else []
    if changes:
        say(f"warning   these differ from what the run was trained with so far:\n{table(changes)}")
    blocks = blocks_of(config, accelerator.device) if options is None else None
    if accelerator.is_main_process:
        _again(folder, say)
        write_text(folder.config, dump(config))
        machine = environment(accelerator.device, accelerator.num_processes)
        machine |= {"blocks": blocks, "compiled": compiled, "data": source.story}
        machine |= {"parameters": sum(p.numel() for p in state.field.parameters())}
        write_text(folder.environment, json.dumps(machine, indent=1) + "\n")
        folder.cut_metrics(-1 if resumed is None else resumed)
        drop_later(folder.snapshots, began)
        append(folder, json.dumps(_event(config, state, machine, changes, passed)) + "\n")
    if not isinstance(batches, PointBatches):
        if accelerator.is_main_process:
            _show_data(batches, config, folder)
        if batches.size < FEW:
            say(f"warning   {few(batches.size)}")
    for line in _launcher_differs(config):
        say(f"warning   {line}")
    status.at("first passes")
    if began < until:
        rehearse(state)
    _banner(say, config, source, batches, state, until, compiled, blocks)
    if began >= until:
        longer = "--train.stop-at" if until < config.train.steps else "--train.steps"
        say(f"already trained to step {began}: nothing to do (for more, give a larger {longer})")
        if accelerator.is_main_process:  # the last start may have ended between the checkpoint and this
            keep_model(config, folder, facts, state.ema, state.step)
    else:
        start_tracker(accelerator, config, began)
        status.at("training")
        try:
            # left after what is being written is written
            with beside("checkpoint") as thread, wishes.at_the_end_of_a_step():
                each = callbacks(config, folder, facts, batches, accelerator, stretch, wishes, status, thread)
                run_loop(state, until, [*each, *profiled], wishes.wanted)
        except NotFiniteError as error:
            raise _not_finite(error, state, batches, folder) from None
    status.step = state.step
    for tracker in accelerator.trackers:
        tracker.finish()
    if state.seen.stop and state.step < until:
        _leave(state, config, folder, wishes, status)
    status.at("drawing figures")
    if config.figures and accelerator.is_main_process and (state.step > began or not folder.report.exists()):
        _show(folder, config, facts, batches, state)
    _farewell(say, folder, config, state)
    leave_together()
    return _result(folder, config, state) if accelerator.is_main_process else None


def _leave(state: Training, config: Config, folder: RunFolder, wishes: Wishes, status: Status) -> None:
    """End before the end, as all processes agreed: saved.

    Raises:
        Stopped: Always; or MachineError, where it was given up.
    """
    if dead := status.dead(patience=1.0):  # the launcher ends the others of its own accord
        raise MachineError(dead)
    leave_together()
    by = f"stopped by {wishes.by}" if wishes.wish else "stopped, as another process was asked to"
    if state.seen.stop == GIVEN_UP:
        raise MachineError(f"{by}; the last one, of step {state.step}, was: make room, and the same command goes on")
    raise Stopped(state.seen.stop, f"{by} after step {state.step}, which is saved; the same command goes on from there")


def _not_finite(
    error: NotFiniteError, state: Training, batches: Batches, folder: RunFolder
) -> NotFiniteError | CheckpointError:
    """What stopped the run, with all that helps to find out why; the whole of it in RUN/not_finite.json."""
    rows = batches.rows(error.step, range(state.objective.batch_size))
    rate = state.optimizer.param_groups[0]["lr"]
    whole, _ = newest_whole(folder.checkpoints)
    if state.accelerator.is_main_process:
        story = {"step": error.step, "learning_rate": rate, "samples": rows, "skipped": state.seen.skipped}
        write_text(folder.path / "not_finite.json", json.dumps(story) + "\n")
    saw = "points drawn afresh"
    if rows is not None:
        more = f", ... {len(rows)} in all in {folder.path / 'not_finite.json'}" if len(rows) > 8 else ""
        saw = f"rows {', '.join(map(str, rows[:8]))}{more} of the data"
    return CheckpointError(
        f"{error} (learning rate {rate:.3g}, {saw}); the last good checkpoint is {whole}: look at these samples, or go "
        "on with a lower learning rate (--optim.lr ... --allow optim.lr) or in fp32"
    )


def _again(folder: RunFolder, say: Callable[[str], None]) -> None:
    """A run that ended for want of finite numbers is not taken up in silence."""
    try:
        before = json.loads((folder.path / "not_finite.json").read_text())
        say(
            f"warning   an earlier start ended at step {before['step']}, not finite at a learning rate of "
            f"{before['learning_rate']:.3g}: with the same settings this one will come to the same"
        )
    except (OSError, ValueError, KeyError, TypeError):
        pass


def _show_data(batches: Pictures, config: Config, folder: RunFolder) -> None:
    """What the field will see, in a grid, and which pictures it will not see."""
    if not folder.preview.exists():
        draw_preview(batches, min(PREVIEWED, config.train.batch_size), config.train.batch_size, folder.preview)
    if isinstance(batches, ImageBatches) and batches.left_out:
        bad = batches.left_out
        write_text(folder.left_out, "".join(f"{name}: {reason}\n" for name, reason in bad))
        first = f"{bad[0][0]}: {bad[0][1]}"
        print(f"warning   {len(bad):,} bad pictures left out, as {first}; all in {folder.left_out}")


# --- before the first step -------------------------------------------------------------------------------------------


def _feed(state: Training, batches: Batches, stack: ExitStack) -> None:
    """Make data, noise and times ready beside the steps, where that takes more than a look into memory.

    With CUDA it does in any case: noise is drawn on the host, which is busy enough with sending the GPU its operations.
    (Metal may crash where two threads use it: there pictures in its memory are looked up between the steps.)
    """
    if isinstance(batches, PointBatches):
        return
    if isinstance(batches, StreamBatches):
        stack.callback(batches.close)
    elif isinstance(batches, ImageBatches) and batches.images.pixels.device.type == batches.device.type != "cuda":
        return
    ahead = Ahead(partial(state.objective.draw, Once(batches)), state.micro_batches())
    stack.callback(ahead.close)
    state.draw = ahead


def _other_machine(checkpoint: Checkpoint, accelerator: Accelerator, folder: RunFolder, compiled: str) -> list[Change]:
    """Whether as many processes go on as there were, compiled as they were."""
    before = {"processes": checkpoint.state["processes"], "compiled": None}
    with suppress(OSError, ValueError, AttributeError):
        before["compiled"] = json.loads(folder.environment.read_text()).get("compiled")
    now = {"processes": accelerator.num_processes, "compiled": compiled}
    return [
        Change(key, then, now[key], "same samples, rounded otherwise")
        for key, then in before.items()
        if then not in (None, now[key])
    ]


def _restore(state: Training, checkpoint: Checkpoint, folder: RunFolder) -> None:
    """Set the run to its checkpoint.

    Raises:
        CheckpointError: If its tensors are not those of this network.
    """
    try:
        restore(
            state, checkpoint.state["step"], checkpoint.tensors, checkpoint.state["in_row"], checkpoint.state["skipped"]
        )
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint in {folder.path} does not fit the network of these settings: {said}"
        ) from None


def _event(
    config: Config, state: Training, machine: dict[str, Any], changes: list[Change], passed: list[str]
) -> dict[str, Any]:
    """A line of metrics.jsonl about this start."""
    return {
        "event": "start",
        "step": state.step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "flowimg": __version__,
        "torch": machine["torch"],
        "device": machine["device"],
        "processes": machine["processes"],
        "threads": machine["threads"],
        "compiled": machine["compiled"],
        "changed": {change.key: [change.then, change.now] for change in changes},
        "passed_over": passed,
    }


def open_accelerator(config: Config) -> Accelerator:
    """The processes and their devices, checked against the launch and the settings."""
    if config.train.precision == "fp16" and pick_device().type != "cuda":
        raise MachineError("train.precision fp16 needs a GPU: use bf16 or fp32 on this machine")
    if strategy := next((name for name in STRATEGIES if os.environ.get(name, "").lower() in ("1", "true")), None):
        raise MachineError(
            f"the launcher asks for {STRATEGIES[strategy]}, and flowimg trains with data parallelism alone: "
            "launch with --multi_gpu, or answer no to it in `accelerate config`"
        )
    check_tracker(config)
    get_ready()
    settle_tf32(config.train.precision)
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
    if type(config.train.micro_batch) is int:
        share = processes * config.train.micro_batch
    if config.train.batch_size % share:
        raise SettingsError(
            f"train.batch_size {config.train.batch_size} does not divide over {processes} processes times "
            + (
                f"{config.train.accumulation} micro-batches"
                if share == processes * config.train.accumulation
                else f"micro-batches of {config.train.micro_batch}"
            )
            + f": use a multiple of {share}"
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
            str(config.train.accumulation if config.train.micro_batch is None else "by micro_batch"),
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


def cut(
    config: Config, accelerator: Accelerator, field: nn.Module, objective: Objective, data: Batches
) -> tuple[int, int]:
    """How each process cuts its share of the batch: the size of a micro-batch, and how many there are."""
    share = config.train.batch_size // accelerator.num_processes
    if config.train.micro_batch is None:
        return share // config.train.accumulation, config.train.accumulation
    if config.train.micro_batch == "auto":
        size = find_micro_batch(accelerator, field, objective, data, share, 1 + len(lengths_of(config)))
    else:
        size = config.train.micro_batch
    return size, share // size


def lengths_of(config: Config) -> tuple[float, ...]:
    """The power averages that a run keeps, by their lengths."""
    return LENGTHS if config.train.snapshots else ()


def recipe_of(config: Config, accumulation: int) -> Recipe:
    """How the optimiser moves, by the settings."""
    return Recipe(
        steps=config.train.steps,
        accumulation=accumulation,
        lr=config.optim.lr,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
        momentum=config.optim.momentum if config.optim.kind == "muon" else None,
        warmup=config.optim.warmup,
        schedule=config.optim.schedule,
        clip=config.optim.clip,
        ema=config.optim.ema,
        max_skips=config.train.max_skips,
        lengths=lengths_of(config),
    )


def _agree(state: Training, folder: RunFolder) -> None:
    """All processes must have found the same checkpoint.

    Raises:
        MachineError: If they did not.
    """
    found = state.accelerator.gather(torch.tensor([state.step], device=state.accelerator.device))
    if len(found.unique()) > 1:
        raise MachineError(f"the processes found checkpoints of steps {found.tolist()}: {folder.path} must be shared")


def _banner(
    say: Callable[[str], None],
    config: Config,
    source: Source,
    batches: Batches,
    state: Training,
    until: int,
    compiled: str,
    blocks: str | None,
) -> None:
    """What was found, and what it will take."""
    accelerator, train = state.accelerator, config.train
    shape = " x ".join(str(n) for n in source.facts.shape)
    parameters = sum(p.numel() for p in state.field.parameters())
    seen = train.steps * train.batch_size
    processes = accelerator.num_processes
    micro = len(state.micro_batches()[0])
    count = None if isinstance(batches, PointBatches) else batches.size
    seen_as = f"{seen:,} images, {seen / count:.1f} epochs" if count else f"{seen:,} points"
    say(f"run       {config.run} ({f'continued from step {state.step}' if state.step else 'new'}), seed {config.seed}")
    how: list[str] = [train.precision]
    if state.loss is not flow_matching_loss:
        how.append(compiled)
    if blocks:
        how.append("blocks in C" if blocks == "C" else "blocks not in C, which a C compiler (cc) would make faster")
    say(
        f"machine   {accelerator.device}, {processes} process{'es' if processes > 1 else ''}, "
        f"{torch.get_num_threads()} threads each, {', '.join(how)}"
    )
    say(f"data      {source.story}; trained on as {shape}")
    kind: str = config.field.kind
    if isinstance(config.field, UNet) and config.field.pretrained:
        kind += f" of {config.field.pretrained} (its channels, layers and attention)"
    say(f"field     {kind}, {parameters:,} parameters, {parameters * 16 / 2**20:.1f} MiB a checkpoint")
    say(f"flow      {config.path.kind} path, {config.coupling.kind} coupling, {config.times.kind} times")
    say(
        f"training  steps {state.step} to {until} of {train.steps}, batch {train.batch_size}"
        f" = {processes} x {state.recipe.accumulation} micro-batches of {micro}"
        f"{' (what fits)' if train.micro_batch == 'auto' else ''}; {seen_as}"
    )
    if count:
        say(f"sees      {config.run}/data.png: the first pictures, as the field sees them")
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
    if config.train.snapshots:
        say(f"averages  {folder.snapshots} (flowimg ema {folder.path} says what can be made of them)")
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
