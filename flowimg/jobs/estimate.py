"""What a run will take, measured: `flowimg estimate CONFIG`, and `flowimg train CONFIG --dry-run`.

One real step of the real network on the real data, one real checkpoint, a few real samples; the rest is arithmetic.
"""

import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowimg.build.data import build_source, build_space
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.sampler import build_sampler
from flowimg.conditions.labels import turns
from flowimg.errors import MachineError
from flowimg.jobs.evaluate.run import evaluate
from flowimg.jobs.sample import sample
from flowimg.jobs.train.launch import cut, forward, lengths_of, open_accelerator, options_of, recipe_of, settled
from flowimg.jobs.train.metrics import duration
from flowimg.jobs.train.run import train
from flowimg.jobs.train.saving import exports
from flowimg.machine.memory import fixed_bytes, free_bytes, kept_bytes
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.run import Config, Start
from flowimg.settings.verbs import Sample
from flowimg.training.checkpoint import Checkpoint, Keep, write_checkpoint
from flowimg.training.loop import train_step, warm_up
from flowimg.training.state import start, state_tensors
from flowimg.training.strategies import strategy_of

PART = 31
"""A grid is timed on this part of a usual batch at most: 8 pictures, or some hundred points."""


def estimate(config: Config) -> dict[str, Any]:
    """Measure what the run of these settings needs, and say it.

    Returns:
        Bytes, seconds and hours by name.
    """
    config = settled(config)
    assert config.run is not None
    strategy = strategy_of(open_accelerator(config))
    source = build_source(config)
    space = build_space(config, source.facts)
    field = build_field(config, source.facts)
    objective = build_objective(config)
    data = source.load(strategy.device)
    print(f"data      {source.story}")
    size, accumulation = cut(config, strategy, field.to(strategy.device), objective, data)
    fixed = fixed_bytes(field, 1 + len(lengths_of(config)))
    kept = kept_bytes(field, partial(forward(strategy, field, objective, data), size))
    free_before = free_bytes(strategy.device)

    options = options_of(config, strategy.processes)
    state = start(strategy, field, objective, data, recipe_of(config, accumulation), options)
    warm_up(state)
    taken = []
    for _ in range(3):  # the first is slow, in bf16 on a CPU and in graphs the second too
        began = time.perf_counter()
        train_step(state)
        _wait(strategy.device)
        taken.append(time.perf_counter() - began)
    second = min(taken)

    few = range(min(space.at_once // PART, config.grid.count))
    began = time.perf_counter()
    sampler = build_sampler(state.ema, config, space, config.grid, strategy.autocast)
    sampler.draw(few, turns(few, source.facts.classes))
    _wait(strategy.device)
    grid = 2 * (time.perf_counter() - began) * config.grid.count / len(few)  # averaged and raw

    standing = next(
        path for path in [Path(config.run).absolute(), *Path(config.run).absolute().parents] if path.exists()
    )
    with tempfile.TemporaryDirectory(prefix=".flowimg-estimate-", dir=standing) as folder:
        began = time.perf_counter()
        written = write_checkpoint(Path(folder), 2, Checkpoint(state_tensors(state), {}), Keep(2))
        saving = time.perf_counter() - began
        checkpoint = sum(file.stat().st_size for file in written.iterdir())
    plan = config.train
    kept_apart = plan.steps // plan.keep_every if plan.keep_every else 0
    # one more while the newest is written; the folder for diffusers, twice while it is replaced
    disk = checkpoint * (plan.keep + 1 + kept_apart + bool(plan.keep_best))
    disk += 2 * fixed["weights"] if exports(field) else 0
    disk += plan.snapshots * len(lengths_of(config)) * fixed["weights"]
    free_disk = shutil.disk_usage(standing).free
    grids, saves = (plan.steps // every + 1 for every in (plan.sample_every, plan.checkpoint_every))
    seconds = plan.steps * second + grids * grid
    memory = sum(fixed.values()) + kept
    peak = torch.cuda.max_memory_allocated(strategy.device) if strategy.device.type == "cuda" else None

    many = strategy.processes
    said = [
        ("field", f"{sum(p.numel() for p in field.parameters()):,} parameters"),
        ("memory", f"{_size(memory)} a process: " + ", ".join(f"{name} {_size(n)}" for name, n in fixed.items())
         + f", activations {_size(kept)} in micro-batches of {size}; {_size(free_before)} free"
         + (f"; peak measured {_size(peak)}" if peak else "")),
        ("step", f"{1000 * second:.4g} ms, {plan.batch_size / second:,.0f} samples/s: batch {plan.batch_size} = "
         f"{many} x {accumulation} micro-batches of {size}"),
        ("grid", f"{duration(grid)} each, {grids} of them"),
        ("disk", f"{_size(checkpoint)} a checkpoint, saved in {saving:.2f} s beside training, {saves} times; "
         f"{_size(disk)} needed, {_size(free_disk)} free in {standing}"),
        ("time", f"{duration(seconds)} for {plan.steps} steps and {grids} grids, on this machine as it is now"),
    ]  # fmt: skip
    for name, line in said:
        print(f"{name:<9} {line}")
    if disk > free_disk:
        raise MachineError(
            f"{standing} has {_size(free_disk)} free, and the run needs {_size(disk)}: make room, or lower train.keep"
        )
    return {
        "parameters": sum(p.numel() for p in field.parameters()),
        "memory_bytes": {**fixed, "activations": kept, "peak": peak, "free": free_before},
        "micro_batch": size,
        "accumulation": accumulation,
        "step_seconds": second,
        "samples_per_second": plan.batch_size / second,
        "grid_seconds": grid,
        "checkpoint_bytes": checkpoint,
        "checkpoint_seconds": saving,
        "disk_bytes": disk,
        "disk_free_bytes": free_disk,
        "hours": seconds / 3600,
    }


def dry_run(config: Config) -> dict[str, Any]:
    """Walk the whole way in a temporary folder: two steps, saved, continued, sampled, evaluated; then the cost."""
    config = settled(config)  # by the run of that name, if there is one: the temporary one knows nothing of it
    grid = config.grid.model_copy(update={"count": min(config.grid.count, 4), "num_steps": 2})
    with tempfile.TemporaryDirectory(prefix="flowimg-dry-run-") as folder:
        run = str(Path(folder, "run"))
        short = config.model_copy(update={"run": run, "grid": grid, "figures": False, "track": None})
        for stop in (1, 2):
            print(f"\n--- step {stop} of a dry run" + (", continued" if stop == 2 else ""))
            few = {"evaluate_count": min(config.train.evaluate_count, 64)}
            ends = config.train.model_copy(update={"stop_at": stop, "steps": max(2, config.train.steps), **few})
            train(short.model_copy(update={"train": ends}), Start(resume=stop == 2))
        print("\n--- samples and evaluation of a dry run: of no worth, but they work")
        sample(Sample(run=run, count=2, num_steps=2))
        evaluate(Evaluate(run=run, count=64, num_steps=2))
        print(f"\n--- the run itself, {config.run}")
    sys.stdout.flush()
    return estimate(config)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
