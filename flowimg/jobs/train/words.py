"""What a run prints: at its start, at its end, and about what stopped it."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from flowimg.build.facts import FoundData
from flowimg.data.batches import Batches
from flowimg.errors import CheckpointError, NotFiniteError
from flowimg.files import read_json, write_json
from flowimg.names import word
from flowimg.runs.folder import RunFolder
from flowimg.runs.resume import Change
from flowimg.settings.run import Config
from flowimg.training.checkpoint import newest_whole, step_folder
from flowimg.training.state import Training
from flowimg.version import __version__

Say = Callable[[str], None]
"""Prints a line, on the first process only."""


def not_finite(
    error: NotFiniteError, state: Training, batches: Batches, folder: RunFolder
) -> NotFiniteError | CheckpointError:
    """The error that stopped the run, with what helps to find its cause; all of it is in RUN/not_finite.json."""
    rows = batches.rows(error.step, range(state.objective.batch_size))
    rate = state.optimizer.param_groups[0]["lr"]
    whole, _ = newest_whole(folder.checkpoints)
    if state.strategy.is_first:
        story = {"step": error.step, "learning_rate": rate, "samples": rows, "skipped": state.seen.skipped}
        write_json(folder.path / "not_finite.json", story, indent=None)
    saw = "points drawn afresh"
    if rows is not None:
        more = f", ... {len(rows)} in all in {folder.path / 'not_finite.json'}" if len(rows) > 8 else ""
        saw = f"rows {', '.join(map(str, rows[:8]))}{more} of the data"
    return CheckpointError(
        f"{error} (learning rate {rate:.3g}, {saw}); the last good checkpoint is {whole}: look at these samples, or "
        "continue with a lower learning rate (--optim.lr ... --allow optim.lr) or in fp32"
    )


def warn_of_not_finite(folder: RunFolder, say: Say) -> None:
    """Warn when resuming a run that ended on NaN or inf."""
    before = read_json(folder.path / "not_finite.json")
    with suppress(ValueError, KeyError, TypeError):
        say(
            f"warning   an earlier start ended at step {before['step']}, not finite at a learning rate of "
            f"{before['learning_rate']:.3g}: expect the same with the same settings"
        )


def start_event(
    config: Config, state: Training, machine: dict[str, Any], changes: list[Change], passed: list[str]
) -> dict[str, Any]:
    """The line of metrics.jsonl for this start."""
    return {
        "event": "start",
        "step": state.step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "flowimg": __version__,
        **{name: machine[name] for name in ("torch", "device", "processes", "threads", "compiled")},
        "changed": {change.key: [change.then, change.now] for change in changes},
        "passed_over": passed,
    }


def banner(
    say: Say, config: Config, source: FoundData, batches: Batches, state: Training, until: int, how: Sequence[str]
) -> None:
    """Print what was found and what is to be done; `how` says how the network is computed."""
    strategy, train = state.strategy, config.train
    shape = ", ".join(" x ".join(map(str, shape)) for shape in source.facts.shapes)
    parameters = sum(p.numel() for p in state.strategy.template.parameters())
    seen, count = train.steps * train.batch_size, batches.size
    processes, micro = strategy.processes, len(state.micro_batches()[0])
    seen_as = f"{seen:,} images, {seen / count:.1f} epochs" if count else f"{seen:,} points"
    say(f"run       {config.run} ({f'continued from step {state.step}' if state.step else 'new'}), seed {config.seed}")
    shared = f", {strategy.shard} share one copy of the weights" if strategy.shard > 1 else ""
    say(
        f"machine   {strategy.device}, {processes} process{'es' if processes > 1 else ''}{shared}, "
        f"{torch.get_num_threads()} threads each, {', '.join(how)}"
    )
    say(f"data      {source.story}; trained on as {shape}")
    kind: str = config.field.kind
    if pretrained := getattr(config.field, "pretrained", None):
        kind += f" of {pretrained} (its own sizes)"
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


def farewell(say: Say, folder: RunFolder, config: Config, state: Training) -> None:
    """Print where everything is, and what to do next."""
    made = [
        ("pictures ", folder.grid(state.step), ""),
        ("weights  ", step_folder(folder.checkpoints, state.step), ""),
        ("figures  ", folder.figures, ""),
        ("report   ", folder.report, " (opens in a browser)"),
        ("diffusers", folder.model, " (README.md there says how)"),
    ]
    for what, path, remark in made:
        if path.exists():
            say(f"{what} {path}{remark}")
    if config.train.snapshots:
        say(f"averages  {folder.snapshots} (flowimg ema {word(folder.path)} lists the post-hoc averages)")
    if state.step < config.train.steps:
        say(f"next      the same command without --train.stop-at continues to step {config.train.steps}")
    say(f"next      flowimg sample {word(folder.path)}; flowimg evaluate {word(folder.path)}")


def result_of(folder: RunFolder, config: Config, state: Training) -> dict[str, Any]:
    """The results of a run, for scripts."""
    last: dict[str, Any] = next((record for record in reversed(folder.records()) if record["step"] == state.step), {})
    made = {"grid": folder.grid(state.step), "figures": folder.figures, "report": folder.report, "model": folder.model}
    return {
        "run": str(folder.path),
        "step": state.step,
        "steps": config.train.steps,
        **{name: last.get(name) for name in ("loss", "held_out_loss_ema", "samples_per_second")},
        "checkpoint": str(step_folder(folder.checkpoints, state.step)),
        **{name: str(path) if path.exists() else None for name, path in made.items()},
    }
