"""Checkpoints: a folder a step that exists whole or not at all.

    latest                      the name of the newest one, for people and scripts
    step_00000020/
        weights.safetensors     the field; what is larger than PART continues in weights-2.safetensors, and so on
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
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from flowimg.errors import CheckpointError
from flowimg.files import filled, write_text
from flowimg.training.parts import (
    Tensors,
    account_of,
    accounts_of,
    check_finite,
    kind_of,
    prepare,
    save_tensors,
    sha256_of,
    unfinished,
)

FORMAT = 2
"""Version of the layout above. 1: no account of data, batch and processes in the state; it is read."""
FILES = {"weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
"""What a whole checkpoint holds at least."""
MOST_JSON = 64 * 2**20
"""Bytes of state.json or manifest.json at most: a longer one is not written by flowimg."""


Check = Callable[[Path], str | None]
"""Why a folder is not a whole checkpoint; None if it is."""


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


def write_checkpoint(folder: Path, step: int, checkpoint: Checkpoint, keep: Keep, others: Collection[str] = ()) -> Path:
    """Write a checkpoint whole, then drop the old ones.

    Args:
        folder: The folder of all checkpoints of a run.
        step: Steps done; names the checkpoint.
        checkpoint: What to save; "format" and "step" are added to its state.
        keep: Which checkpoints may stay; the last 2 at least.
        others: Names without ending of files that other processes write by `write_share`, after `prepare`; they are
            waited for.
    Returns:
        The checkpoint's folder.
    Raises:
        CheckpointError: If a tensor holds a NaN or an infinity: nothing on disk ever does.
        OSError: If the disk is full or cannot be written, here or by the others; what was there is whole.
    """
    check_finite(checkpoint.tensors)
    if not others:
        prepare(folder, step)
    final, aside = step_folder(folder, step), unfinished(folder, step)
    with filled(final, aside=aside):  # replaces a broken one that a continued run reaches again
        for name, tensors in checkpoint.tensors.items():
            save_tensors(aside / f"{name}.safetensors", tensors)
        _write_json(aside / "state.json", {"format": FORMAT, "step": step, **checkpoint.state})
        files = [*(f"{name}.safetensors" for name in checkpoint.tensors), "state.json"]
        accounts = {file: account_of(aside / file) for file in files}
        accounts |= accounts_of(folder, step, {f"{name}.safetensors" for name in others})
        _write_json(aside / "manifest.json", accounts)
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


def problem(path: Path, thorough: bool = True, share: tuple[int, int] = (0, 1)) -> str | None:
    """Why the folder is not a whole checkpoint; None if it is.

    Args:
        path: The folder.
        thorough: Whether contents are checked, too, and not only names and sizes.
        share: k, n: of the contents, only every n-th file from the k-th on, as others check the rest.
    """
    try:
        manifest = _read_json(path / "manifest.json")
        for name in manifest:
            if not name or name != Path(name).name or name == "..":
                return f"manifest.json names {name!r}, which is no file of this folder"
        if missing := FILES - set(manifest):
            return f"manifest.json does not name {', '.join(sorted(missing))}"
        for number, (name, entry) in enumerate(manifest.items()):
            file = path / name
            if file.is_symlink() or (file.exists() and not file.is_file()):
                return f"{name} is a link or no file"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
            if thorough and number % share[1] == share[0] and sha256_of(file) != entry["sha256"]:
                return f"{name} was altered: its SHA-256 is not the manifest's"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is not a manifest"
    return None


def newest_whole(folder: Path, check: Check = problem) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each broken one that was skipped."""
    passed: list[str] = []
    for path in reversed(step_folders(folder)):
        if (why := check(path)) is None:
            return path, passed
        passed.append(f"{path} is broken and was skipped: {why}")
    return None, passed


def read_checkpoint(path: Path, names: tuple[str, ...] | None = None, check: Check = problem) -> Checkpoint:
    """Read a whole checkpoint.

    Args:
        path: Its folder.
        names: Which kinds of tensors to read; None for all.
        check: Says why it is not whole, if so.
    Raises:
        CheckpointError: If the folder is not a whole checkpoint or has a format this version does not know.
    """
    if why := check(path):
        raise CheckpointError(f"{path} is not a whole checkpoint: {why}")
    state = read_state(path)
    files = [path / name for name in _read_json(path / "manifest.json") if name.endswith(".safetensors")]
    kinds = dict.fromkeys(kind_of(file.name) for file in files)
    try:
        tensors = {kind: read_tensors(path, kind) for kind in kinds if names is None or kind in names}
    except SafetensorError as error:  # another kind of file, or a header that lies about its tensors
        raise CheckpointError(f"{path} is not valid safetensors, and no other format is loaded: {error}") from None
    return Checkpoint(tensors, state)


def read_tensors(path: Path, kind: str) -> Tensors:
    """The tensors of a kind in a checkpoint that is known to be whole; the files are mapped, not read."""
    files = [path / name for name in _read_json(path / "manifest.json") if kind_of(name) == kind]
    return {name: value for file in files for name, value in load_file(file).items()}


def weights_sha256(path: Path, kind: str) -> str:
    """The SHA-256 of the tensors of a kind: of their file or, if there are several, of those of the files in order."""
    manifest = _read_json(path / "manifest.json")
    files = sorted((name for name in manifest if kind_of(name) == kind), key=lambda name: (len(name), name))
    found = [manifest[name]["sha256"] for name in files]
    return str(found[0]) if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


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


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if path.is_symlink() or path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path} is a link, or longer than any of ours")
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object")
    return value
