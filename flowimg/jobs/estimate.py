"""What a run needs, measured: `flowimg estimate CONFIG`, and `flowimg train CONFIG --dry-run`.

Real steps of the real network on the real data, one real checkpoint, a few real samples; the rest is computed.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowimg.build.data import build_condition, build_source, build_space
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.sampler import build_sampler
from flowimg.build.strategy import strategy_of
from flowimg.errors import MachineError
from flowimg.files import existing
from flowimg.jobs.evaluate.run import evaluate
from flowimg.jobs.sample import sample
from flowimg.jobs.train.launch import (
    cut,
    forward,
    held_bytes,
    lengths_of,
    open_accelerator,
    options_of,
    recipe_of,
    settled,
)
from flowimg.jobs.train.metrics import duration
from flowimg.jobs.train.run import train
from flowimg.jobs.train.saving import exports
from flowimg.machine.memory import free_bytes, kept_bytes
from flowimg.machine.processes import one_process
from flowimg.machine.scaling import FP32
from flowimg.runs.folder import RunFolder
from flowimg.runs.places import located
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.run import Config, Start
from flowimg.settings.verbs import Sample
from flowimg.training.checkpoint import Checkpoint, Keep, write_checkpoint
from flowimg.training.loop import train_step, warm_up
from flowimg.training.state import Training, saved, start

PART = 31
"""A grid is timed on this part of a usual batch at most: 8 pictures, or some hundred points."""


def estimate(config: Config) -> dict[str, Any] | None:
    """Measure what the run of these settings needs, and print it.

    Returns:
        Bytes, seconds and hours by name, on the first process.

    Raises:
        MachineError: If the disk has not enough room.
    """
    config = located(settled(config), RunFolder(Path(str(config.run))))
    strategy = strategy_of(open_accelerator(config), config.train.shard)
    source = build_source(config)
    field, objective = build_field(config, source.facts).to(strategy.device), build_objective(config)
    data = source.load(strategy.device)
    if strategy.is_first:
        print(f"data      {source.story}")
    size, accumulation = cut(config, strategy, field, objective, data)
    parameters = sum(p.numel() for p in field.parameters())
    memory = held_bytes(config, strategy, field, accumulation)
    memory["activations"] = kept_bytes(field, partial(forward(strategy, field, objective, data), size))
    free = free_bytes(strategy.device)

    options = options_of(config, strategy.processes)
    state = start(strategy, field, objective, data, recipe_of(config, accumulation), options, config.train.offload)
    step = measured_step(state)
    space = build_space(config, source.facts)
    few = range(min(space.at_once // PART, config.grid.count))
    with strategy.whole(state.ema) as ema:
        guide = ema if config.grid.guide else None  # it takes as long
        sampler = build_sampler(ema, config, space, config.grid, strategy.autocast, guide=guide)
        drawing = _seconds(strategy.device, lambda: sampler.draw(few, build_condition(config, source.facts, few)))
    grid = 2 * drawing * config.grid.count / len(few)  # averaged and raw
    there = existing(Path(str(config.run)))
    with tempfile.TemporaryDirectory(prefix=".flowimg-estimate-", dir=there) as folder:
        began = time.perf_counter()
        written = write_checkpoint(Path(folder), 2, Checkpoint(saved(state)[0], {}), Keep(2))
        saving = time.perf_counter() - began
        own = torch.tensor([file.stat().st_size for file in written.iterdir()], device=strategy.device).sum()
        checkpoint = int(strategy.sum(own))  # where processes share one copy, each has a part
    peak = torch.cuda.max_memory_allocated(strategy.device) if strategy.device.type == "cuda" else None
    plan = config.train
    result = {
        "parameters": parameters,
        "memory_bytes": {**memory, "peak": peak, "free": free},
        "micro_batch": size,
        "accumulation": accumulation,
        "step_seconds": step,
        "samples_per_second": plan.batch_size / step,
        "grid_seconds": grid,
        "checkpoint_bytes": checkpoint,
        "checkpoint_seconds": saving,
        "disk_bytes": _disk(config, checkpoint, FP32 * parameters, exports(strategy.template)),
        "disk_free_bytes": shutil.disk_usage(there).free,
        "hours": (plan.steps * step + (plan.steps // plan.sample_every + 1) * grid) / 3600,
    }
    if not strategy.is_first:
        return None
    _tell(config, result, memory, strategy.processes, there)
    return result


def measured_step(state: Training) -> float:
    """Seconds of a training step: the best of three, after the first ones, which are slow."""
    warm_up(state)
    return min(_seconds(state.strategy.device, partial(train_step, state)) for _ in range(3))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that some work takes on a device."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _disk(config: Config, checkpoint: int, weights: int, exported: bool) -> int:
    """Bytes of a whole run: all checkpoints that are there at once, the diffusers folder, the snapshots."""
    plan = config.train
    kept = plan.keep + (plan.steps // plan.keep_every if plan.keep_every else 0) + bool(plan.keep_best)
    # one more checkpoint while the newest is written; the folder twice while it is replaced
    return checkpoint * (kept + 1) + 2 * weights * exported + plan.snapshots * len(lengths_of(config)) * weights


def _tell(config: Config, found: dict[str, Any], memory: dict[str, int], processes: int, there: Path) -> None:
    """Print the estimate, a line for each resource.

    Raises:
        MachineError: If the disk has not enough room.
    """
    plan, size = config.train, found["micro_batch"]
    grids, saves = (plan.steps // every + 1 for every in (plan.sample_every, plan.checkpoint_every))
    parts = ", ".join(f"{name} {_size(n)}" for name, n in memory.items())
    peak, free = found["memory_bytes"]["peak"], found["memory_bytes"]["free"]
    need, room = found["disk_bytes"], found["disk_free_bytes"]
    lines = {
        "field": f"{found['parameters']:,} parameters",
        "memory": f"{_size(sum(memory.values()))} a process: {parts} in micro-batches of {size}; {_size(free)} free"
        + (f"; peak measured {_size(peak)}" if peak else ""),
        "step": f"{1000 * found['step_seconds']:.4g} ms, {found['samples_per_second']:,.0f} samples/s: batch "
        f"{plan.batch_size} = {processes} x {found['accumulation']} micro-batches of {size}",
        "grid": f"{duration(found['grid_seconds'])} each, {grids} of them",
        "disk": f"{_size(found['checkpoint_bytes'])} a checkpoint, saved in {found['checkpoint_seconds']:.2f} s beside "
        f"training, {saves} times; {_size(need)} needed, {_size(room)} free in {there}",
        "time": f"{duration(3600 * found['hours'])} for {plan.steps} steps and {grids} grids, on this machine now",
    }
    for name, line in lines.items():
        print(f"{name:<9} {line}")
    if need > room:
        raise MachineError(
            f"{there} has {_size(room)} free, and the run needs {_size(need)}: make room, or lower train.keep"
        )


def dry_run(config: Config) -> dict[str, Any] | None:
    """Rehearse a run in a temporary folder: two steps, saved, continued, sampled, evaluated; then its cost."""
    one_process("train --dry-run")
    # by the run of that name, if there is one: the temporary one would not know it
    config = located(settled(config), RunFolder(Path(str(config.run))))
    grid = config.grid.model_copy(update={"count": min(config.grid.count, 4), "num_steps": 2})
    with tempfile.TemporaryDirectory(prefix="flowimg-dry-run-") as folder:
        run = str(Path(folder, "run"))
        short = config.model_copy(update={"run": run, "grid": grid, "figures": False, "track": None})
        for stop in (1, 2):
            print(f"\n--- step {stop} of a dry run" + (", continued" if stop == 2 else ""))
            few = {"evaluate_count": min(config.train.evaluate_count, 64)}
            ends = config.train.model_copy(update={"stop_at": stop, "steps": max(2, config.train.steps), **few})
            train(short.model_copy(update={"train": ends}), Start(resume=stop == 2))
        print("\n--- dry-run samples and scores (meaningless values; this checks that they run)")
        sample(Sample(run=run, count=2, num_steps=2))
        evaluate(Evaluate(run=run, count=64, num_steps=2))
        print(f"\n--- the run itself, {config.run}")
    sys.stdout.flush()
    return estimate(config)


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
