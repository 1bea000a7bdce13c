"""Checkpoints: a folder a step that exists whole or not at all.

    latest                      the name of the newest one, for people and scripts
    step_00000020/
        weights.safetensors     the field
        ema.safetensors         its moving average
        averages.safetensors    0.05/NAME and 0.1/NAME, its power averages, where the run keeps them
        optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME (AdamW), step.NAME and, in fp16, scaler.*
        state.json              the step, what the data looked like, the format
        manifest.json           size and SHA-256 of every file above, written last

A folder is written aside under a name that starts with a dot, each file synced, the manifest last, then the folder
renamed, its parent synced, `latest` renamed into place; only then are old ones dropped. Nothing is pickled. A folder
that does not agree with its manifest is not a checkpoint.

A checkpoint may come from a stranger: names that leave the folder, links, and sizes that no run has are refused
before they are followed or read.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowimg.errors import CheckpointError
from flowimg.files import filled, write_text

FORMAT = 2
"""Version of the layout above. 1: no account of data, batch and processes in the state; it is read."""
FILES = {"weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
"""What a whole checkpoint holds at least."""
MOST_JSON = 64 * 2**20
"""Bytes of state.json or manifest.json at most: a longer one is not written by flowimg."""

Tensors = dict[str, Tensor]


class Checkpoint(NamedTuple):
    """What lies in a checkpoint: tensors by file name (without ending), and the state."""

    tensors: Mapping[str, Tensors]
    state: dict[str, Any]


class Keep(NamedTuple):
    """Which checkpoints to keep: the last ones, those at multiples of `every` steps, and the best by a metric."""

    last: int
    every: int | None = None
    best: str | None = None


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:08d}"


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, keep: Keep) -> Path:
    """Write a checkpoint whole, then drop the old ones.

    Args:
        folder: The folder of all checkpoints of a run.
        step: Steps done; names the checkpoint.
        checkpoint: What to save; "format" and "step" are added to its state.
        keep: Which checkpoints may stay; the last 2 at least.
    Returns:
        The checkpoint's folder.
    Raises:
        CheckpointError: If a tensor holds a NaN or an infinity: nothing on disk ever does.
        OSError: If the disk is full or cannot be written; what was there is whole.
    """
    for name, tensors in checkpoint.tensors.items():
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{name}.safetensors would hold a value that is not finite in {key}")
    final = step_folder(folder, step)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step_*"):  # of a process that died while it wrote
        shutil.rmtree(leftover)
    for leftover in folder.glob(".latest*"):
        leftover.unlink()
    with filled(final) as aside:  # replaces a broken one that a continued run reaches again
        for name, tensors in checkpoint.tensors.items():
            save_tensors(aside / f"{name}.safetensors", tensors)
        _write_json(aside / "state.json", {"format": FORMAT, "step": step, **checkpoint.state})
        files = [aside / file for file in (*(f"{name}.safetensors" for name in checkpoint.tensors), "state.json")]
        _write_json(aside / "manifest.json", {file.name: _account(file) for file in files})
    write_text(folder / "latest", final.name + "\n", synced=True)
    for path in [*folder.glob(".step_*"), *_too_many(folder, final, keep)]:
        shutil.rmtree(path)
    return final


def step_folders(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = (path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal())
    return sorted(found, key=lambda path: int(path.name[5:]))


def leave_behind(folder: Path, step: int) -> list[Path]:
    """Move everything of later steps to `left/`, when a run resumes from an earlier one: nothing is deleted."""
    moved = []
    for path in sorted(folder.glob("step_*")):
        at = path.name[5:].removesuffix(".safetensors")
        if at.isdecimal() and int(at) > step:
            (folder / "left").mkdir(exist_ok=True)
            to, number = folder / "left" / path.name, 1
            while to.exists():
                to, number = folder / "left" / f"{path.name}.{number}", number + 1
            path.rename(to)
            moved.append(to)
    return moved


def problem(path: Path, thorough: bool = True) -> str | None:
    """Why the folder is not a whole checkpoint; None if it is. Not thorough: only names and sizes are checked."""
    try:
        manifest = _read_json(path / "manifest.json")
        for name in manifest:
            if not name or name != Path(name).name or name == "..":
                return f"manifest.json names {name!r}, which is no file of this folder"
        if missing := FILES - set(manifest):
            return f"manifest.json does not name {', '.join(sorted(missing))}"
        for name, entry in manifest.items():
            file = path / name
            if file.is_symlink() or (file.exists() and not file.is_file()):
                return f"{name} is a link or no file"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
            if thorough and _sha256(file) != entry["sha256"]:
                return f"{name} was altered: its SHA-256 is not the manifest's"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is not a manifest"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each broken one that was skipped."""
    passed: list[str] = []
    for path in reversed(step_folders(folder)):
        if (why := problem(path)) is None:
            return path, passed
        passed.append(f"{path} is broken and was skipped: {why}")
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
    state = read_state(path)
    files = [path / name for name in _read_json(path / "manifest.json") if name.endswith(".safetensors")]
    try:
        tensors = {file.stem: load_file(file) for file in files if names is None or file.stem in names}
    except SafetensorError as error:  # another kind of file, or a header that lies about its tensors
        raise CheckpointError(f"{path} is not valid safetensors, and no other format is loaded: {error}") from None
    return Checkpoint(tensors, state)


def whole(value: object) -> bool:
    """Whether a value of JSON is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, as this version of the format has it.

    Raises:
        CheckpointError: If it is not a state, or of a format that this version does not know.
    """
    try:
        state = _read_json(path / "state.json")
        form, step = state["format"], state["step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path / 'state.json'} is not the state of a run") from None
    if form not in (1, FORMAT):
        raise CheckpointError(f"{path} has format {form}, this flowimg reads formats 1 and {FORMAT}: update flowimg")
    if not whole(step) or not 0 <= step < 2**62 or step_folder(path.parent, step) != path:
        raise CheckpointError(f"{path} says that it is of step {step}")
    unknown = dict.fromkeys(("data", "batch_size", "samples", "processes"))
    return {**unknown, "skipped": 0, "metrics": {}, **state}


def _too_many(folder: Path, newest: Path, keep: Keep) -> list[Path]:
    """The checkpoints to drop: neither the newest, nor among the last, nor at a kept step, nor the best.

    Only whole ones are counted as kept, and by their sizes: to hash them all at every save would be slow.
    """
    others = [path for path in step_folders(folder) if path != newest]
    whole = [path for path in others if problem(path, thorough=False) is None]
    stay = set(whole[-(keep.last - 1) :])
    if keep.every:
        stay |= {path for path in whole if int(path.name[5:]) % keep.every == 0}
    if keep.best:
        scores = {path: read_state(path)["metrics"].get(keep.best) for path in [*whole, newest]}
        stay |= set(sorted((path for path in scores if scores[path] is not None), key=lambda path: scores[path])[:1])
    return [path for path in others if path not in stay]


def _account(file: Path) -> dict[str, Any]:
    """The size of a file and its SHA-256."""
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if path.is_symlink() or path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path} is a link, or longer than any of ours")
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors.

    Raises:
        OSError: If the disk is full or cannot be written; safetensors has an error of its own for that.
    """
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error)) from None
