"""What a run will take, measured: `flowimg estimate CONFIG`, and `flowimg train CONFIG --dry-run`.

One real step of the real network on the real data, one real checkpoint, a few real samples; the rest is arithmetic.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from flowimg.config import Config, Evaluate, Sample, Start
from flowimg.jobs.build import build_field, build_objective, build_source
from flowimg.jobs.draw import draw, turns
from flowimg.jobs.evaluate import evaluate
from flowimg.jobs.machine import MachineError, compiler_options
from flowimg.jobs.memory import fixed_bytes, free_bytes, kept_bytes
from flowimg.jobs.sample import sample
from flowimg.jobs.train import cut, lengths_of, open_accelerator, recipe_of, settled, train
from flowimg.jobs.watch import span
from flowimg.training.checkpoint import Checkpoint, Keep, write_checkpoint
from flowimg.training.loop import rehearse, start, state_tensors, train_step

FEW = 8
"""Pictures of a grid that are drawn to know what all of them take."""


def estimate(config: Config) -> dict[str, Any]:
    """Measure what the run of these settings needs, and say it.

    Returns:
        Bytes, seconds and hours by name.
    """
    config = settled(config)
    assert config.run is not None
    accelerator = open_accelerator(config)
    source = build_source(config)
    field = build_field(config, source.facts)
    objective = build_objective(config)
    data = source.load(accelerator.device)
    print(f"data      {source.story}")
    size, accumulation = cut(config, accelerator, field.to(accelerator.device), objective, data)
    fixed = fixed_bytes(field, 1 + len(lengths_of(config)))
    kept = kept_bytes(field, objective, data, size, accelerator)
    free_before = free_bytes(accelerator.device)

    options = compiler_options(config, accelerator.num_processes)
    state = start(accelerator, field, objective, data, recipe_of(config, accumulation), options)
    rehearse(state)
    taken = []
    for _ in range(3):  # the first is slow, in bf16 on a CPU and in graphs the second too
        began = time.perf_counter()
        train_step(state)
        _wait(accelerator.device)
        taken.append(time.perf_counter() - began)
    second = min(taken)

    few = range(config.grid.count if config.data.kind == "points" else min(FEW, config.grid.count))
    began = time.perf_counter()
    with accelerator.autocast():
        draw(state.ema, config, source.facts, config.grid, few, turns(few, source.facts.classes))
    _wait(accelerator.device)
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
    disk += 2 * fixed["weights"] if config.field.kind == "unet" else 0
    disk += plan.snapshots * len(lengths_of(config)) * fixed["weights"]
    free_disk = shutil.disk_usage(standing).free
    grids, saves = (plan.steps // every + 1 for every in (plan.sample_every, plan.checkpoint_every))
    seconds = plan.steps * second + grids * grid
    memory = sum(fixed.values()) + kept
    peak = torch.cuda.max_memory_allocated(accelerator.device) if accelerator.device.type == "cuda" else None

    many = accelerator.num_processes
    said = [
        ("field", f"{sum(p.numel() for p in field.parameters()):,} parameters"),
        ("memory", f"{_size(memory)} a process: " + ", ".join(f"{name} {_size(n)}" for name, n in fixed.items())
         + f", activations {_size(kept)} in micro-batches of {size}; {_size(free_before)} free"
         + (f"; peak measured {_size(peak)}" if peak else "")),
        ("step", f"{1000 * second:.4g} ms, {plan.batch_size / second:,.0f} samples/s: batch {plan.batch_size} = "
         f"{many} x {accumulation} micro-batches of {size}"),
        ("grid", f"{span(grid)} each, {grids} of them"),
        ("disk", f"{_size(checkpoint)} a checkpoint, saved in {saving:.2f} s beside training, {saves} times; "
         f"{_size(disk)} needed, {_size(free_disk)} free in {standing}"),
        ("time", f"{span(seconds)} for {plan.steps} steps and {grids} grids, on this machine as it is now"),
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
