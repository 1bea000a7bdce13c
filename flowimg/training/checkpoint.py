"""Checkpoints: a folder a step that exists whole or not at all.

    step_00000020/
        weights.safetensors     the field
        ema.safetensors         its moving average
        optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME, step.NAME and, in fp16, scaler.*
        state.json              the step, what the data looked like, the format
        manifest.json           size and SHA-256 of every file above, written last

A folder is written aside under a name that starts with a dot, each file and the folder synced, then renamed, and its
parent synced; only then is the oldest one dropped. Nothing is pickled. A folder that does not agree with its manifest
is not a checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
"""Version of the layout above."""
FILES = {"weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
"""What a whole checkpoint holds at least."""

Tensors = dict[str, Tensor]


class CheckpointError(Exception):
    """A checkpoint is missing or broken; the message says which and why."""

    exit_status = 3


class Checkpoint(NamedTuple):
    """What lies in a checkpoint: tensors by file name (without ending), and the state."""

    tensors: Mapping[str, Tensors]
    state: dict[str, Any]


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:08d}"


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint whole, then drop the oldest ones.

    Args:
        folder: The folder of all checkpoints of a run.
        step: Steps done; names the checkpoint.
        checkpoint: What to save; "format" and "step" are added to its state.
        keep: How many checkpoints may stay, 2 or more.
    Returns:
        The checkpoint's folder.
    """
    final = step_folder(folder, step)
    aside = folder / f".{final.name}.{os.getpid()}"
    for leftover in folder.glob(".step_*"):  # of a process that died while it wrote
        shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    for name, tensors in checkpoint.tensors.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors")
    _write_json(aside / "state.json", {"format": FORMAT, "step": step, **checkpoint.state})
    manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(aside.iterdir())}
    _write_json(aside / "manifest.json", manifest)
    for path in [*aside.iterdir(), aside]:
        _sync(path)
    if final.exists():  # only the same step, saved again
        shutil.rmtree(final)
    aside.rename(final)
    _sync(folder)
    # never the one just written; steps past it belong to a future that a continued run has left
    others = [path for path in step_folders(folder) if path != final]
    for path in [path for path in others if path > final] + [path for path in others if path < final][: 1 - keep]:
        shutil.rmtree(path)
    return final


def step_folders(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def problem(path: Path) -> str | None:
    """Why the folder is not a whole checkpoint; None if it is."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if missing := FILES - set(manifest):
            return f"manifest.json does not name {', '.join(sorted(missing))}"
        for name, entry in manifest.items():
            file = path / name
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
            if _sha256(file) != entry["sha256"]:
                return f"{name} was altered: its SHA-256 is not the manifest's"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is not a manifest"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each broken one that was passed over."""
    passed: list[str] = []
    for path in reversed(step_folders(folder)):
        why = problem(path)
        if why is None:
            return path, passed
        passed.append(f"{path} is broken and was passed over: {why}")
    return None, passed


def read_checkpoint(path: Path, names: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a whole checkpoint.

    Args:
        path: Its folder.
        names: Which tensor files to read, without ending; None for all.
    Raises:
        CheckpointError: If the folder is not a whole checkpoint or has a format this version does not know.
    """
    if why := problem(path):
        raise CheckpointError(f"{path} is not a whole checkpoint: {why}")
    state = json.loads((path / "state.json").read_text())
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}, this flowimg reads format {FORMAT}")
    files = [file for file in path.glob("*.safetensors") if names is None or file.stem in names]
    return Checkpoint({file.stem: load_file(file) for file in files}, state)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
