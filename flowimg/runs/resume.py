"""Whether a run may continue, and from where: changed settings, the checkpoint to take, folders of something else."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flowimg.errors import CheckpointError, MachineError, SettingsError
from flowimg.files import existing
from flowimg.names import one_line
from flowimg.runs.folder import RunFolder, check_links
from flowimg.settings.reading import flatten, load, nearest
from flowimg.settings.run import Config, Start
from flowimg.training.checkpoint import Check, Checkpoint, leave_behind, newest_whole, read_checkpoint, step_folder

FREE = (
    *("run", "grid.", "figures", "track", "train.steps", "train.stop_at"),
    *("train.accumulation", "train.micro_batch", "train.shard", "train.offload", "train.keep", "train.max_skips"),
    *("data.cache", "data.gpu_share", "data.workers", "data.max_bad", "data.root"),
)
FREE_ENDINGS = ("_every",)
"""Settings that may change when a run is continued."""
WARNED = ("train.batch_size", "train.precision", "train.compile")
"""Settings whose change is only warned of, although the run differs from there on. All others make another run."""
OURS = re.compile(r"\.lock|status\.json|processes|\.status\.json\..+\.tmp")
"""What an aborted start leaves, or another process of this start has just begun to write."""


class Change(NamedTuple):
    """A setting that differs from the run's: its name, then and now, and whether that is warned, allowed or refused."""

    key: str
    then: Any
    now: Any
    verdict: str


def check_folder(folder: RunFolder, config: Config, start: Start) -> list[Change]:
    """Refuse a folder that holds another run, or something that is no run at all; the changes that are not refused.

    Raises:
        SettingsError: If so.
        MachineError: If it cannot be written.
    """
    known = [*flatten(config), "data"]
    if unknown := [key for key in start.allow if key not in known]:
        raise SettingsError(f"--allow {unknown[0]}: there is no such setting, {nearest(unknown[0], known)}")
    there = existing(folder.path)
    if not os.access(there, os.W_OK):
        raise MachineError(f"--run {folder.path} cannot be written: {there} is read-only for you")
    if folder.path.exists() and not folder.path.is_dir():
        raise SettingsError(f"--run {folder.path} is a file: name a new folder")
    inside = folder.path.iterdir() if folder.path.exists() else ()
    if all(OURS.fullmatch(path.name) for path in inside):
        if start.resume is not False:
            raise SettingsError(f"--resume: {folder.path} holds nothing to resume; without it a run begins")
        return []
    if not folder.config.exists():
        raise SettingsError(f"--run {folder.path} exists and is not a run of flowimg: name a new folder")
    check_links(folder)
    before, now = flatten(load(str(folder.config))), flatten(config)
    changes = [
        Change(key, before.get(key, "not there"), now.get(key, "not there"), _verdict(key, start.allow))
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not key.startswith(FREE) and not key.endswith(FREE_ENDINGS)
    ]
    if refused := [change.key for change in changes if change.verdict == "refused"]:
        raise SettingsError(
            f"{folder.path} holds another run:\n{table(changes)}\nName another folder with --run, give the settings "
            f"it was started with, or allow each by name: --allow {' '.join(refused)}"
        )
    return changes


def _verdict(key: str, allowed: tuple[str, ...]) -> str:
    return "warned" if key in WARNED else "allowed" if key in allowed else "refused"


def table(changes: list[Change]) -> str:
    """Changes as a table: setting, old value, new value, and what follows from it."""
    rows = [("setting", "then", "now", ""), *(tuple(one_line(str(part)) for part in change) for change in changes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)


def checkpoint_to_resume(
    folder: RunFolder, start: Start, say: Callable[[str], None], first: bool, check: Check
) -> Checkpoint | None:
    """The checkpoint to continue from; None for a new run.

    The newest whole one, past each broken one by name; or, by `--resume STEP`, that one or none.

    Args:
        folder: The run.
        start: How it is started.
        say: Takes the lines for the terminal.
        first: Whether this process is the first.
        check: Says why a checkpoint is not whole, on all processes alike.
    Raises:
        CheckpointError: If checkpoints were made and none is whole: starting over would write over the run.
    """
    if not isinstance(start.resume, bool):
        path = step_folder(folder.checkpoints, start.resume)
        if why := check(path):
            said = why if path.exists() else "there is no such checkpoint"
            raise CheckpointError(f"--resume {start.resume}: {path} cannot be resumed from: {said}")
        checkpoint = read_checkpoint(path, check=lambda _: None)
        if first:
            for kept in (folder.checkpoints, folder.snapshots):
                for left in leave_behind(kept, start.resume):
                    say(f"left      {left.name} is past the step that is resumed from and was moved to {left.parent}")
        return checkpoint
    newest, passed = newest_whole(folder.checkpoints, check)
    for line in passed:
        say(line)
    if newest is not None:
        return read_checkpoint(newest, check=lambda _: None)
    if passed or last_step(folder) > 0:
        raise CheckpointError(
            f"{folder.path} was trained to step {last_step(folder)} but has no whole checkpoint to resume from: "
            "name another folder with --run, or delete this one to start over"
        )
    if start.resume:
        why = f"{folder.path} has no checkpoint to resume from; without it the run begins again"
        raise SettingsError(f"--resume: {why}")
    return None


def check_data(state: dict[str, Any], fingerprint: str | None, allowed: tuple[str, ...], folder: Path) -> None:
    """Refuse data that are not those of the run.

    Raises:
        SettingsError: If so, unless "data" is allowed by name.
    """
    if state["data"] not in (None, fingerprint) and "data" not in allowed:
        raise SettingsError(
            f"the data are not those that {folder} was trained on (fingerprint {state['data']} then, {fingerprint} "
            "now): pictures were added, taken away or changed; name another folder with --run, or --allow data"
        )


def check_averages(checkpoint: Checkpoint, config: Config, folder: Path) -> None:
    """Refuse to start averaging in the middle of a run: the averages are of all its steps.

    Raises:
        SettingsError: If so.
    """
    if config.train.snapshots and "averages" not in checkpoint.tensors:
        raise SettingsError(
            f"train.snapshots {config.train.snapshots} needs averages from the first step on, and {folder} has none "
            f"up to step {checkpoint.state['step']}: continue with --train.snapshots 0, or name another folder by --run"
        )


def last_step(folder: RunFolder) -> int:
    """The last step that a run wrote metrics of; 0 if there is none."""
    text = folder.metrics.read_text(encoding="utf-8", errors="replace") if folder.metrics.exists() else ""
    return max((int(step) for step in re.findall(r'"step": (\d+)', text)), default=0)
