"""The files of a checkpoint: how tensors are cut into them, and how several processes write a share each.

Tensors are whole, whatever the number of processes, and the cut depends on their names and sizes only: so the files of
one state are the same, byte by byte, whoever writes them. The first process makes a folder aside (`prepare`), every
process writes its files into it, and says in a folder beside it what they are or why they are not (`write_share`); the
first waits for all (`accounts_of`), and finishes the checkpoint.
"""

import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from flowimg.errors import CheckpointError
from flowimg.files import read_json, sync, write_json

PART = 4 * 2**30
"""Bytes of tensors in a file at most, unless one tensor is larger: the unit that processes share when they write."""
WAIT = 600.0
"""Seconds that the first process waits for the others' files after it has written its own."""

Tensors = dict[str, Tensor]


def parts_of(sizes: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, list[str]]]:
    """How tensors are cut into files, in order of names, by nothing but their names and bytes.

    Args:
        sizes: Bytes of each tensor, by kind (weights, ema, ...) and name.
    Returns:
        For each file its name without ending, its kind, and the names in it.
    """
    parts: list[tuple[str, str, list[str]]] = []
    for kind, held in sizes.items():
        number, room = 1, PART
        parts.append((kind, kind, []))  # also of nothing, as an optimiser has at step 0
        for name in sorted(held):
            if parts[-1][2] and held[name] > room:
                number, room = number + 1, PART
                parts.append((f"{kind}-{number}", kind, []))
            parts[-1][2].append(name)
            room -= held[name]
    return parts


def kind_of(file: str) -> str:
    """What a file of tensors holds a part of: weights for weights.safetensors and weights-2.safetensors."""
    kind, _, number = (stem := file.removesuffix(".safetensors")).rpartition("-")
    return kind if kind and number.isdecimal() else stem


def check_finite(files: Mapping[str, Tensors]) -> None:
    """Refuse what must not be written.

    Raises:
        CheckpointError: If a tensor holds a NaN or an infinity.
    """
    for name, tensors in files.items():
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{name}.safetensors would hold a value that is not finite in {key}")


def unfinished(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it has its name."""
    return folder / f".step_{step:08d}"


def _account_file(folder: Path, step: int, name: str) -> Path:
    """Where the process that wrote a file says what it is: beside that folder, as all of it becomes the checkpoint."""
    return folder / f".step_{step:08d}.accounts" / f"{name}.json"


def prepare(folder: Path, step: int) -> None:
    """Make room for a checkpoint: before any process writes a file of it, on the first one."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step_*"):  # of a process that died while it wrote
        shutil.rmtree(leftover)
    for leftover in folder.glob(".latest*"):
        leftover.unlink()
    unfinished(folder, step).mkdir()


def write_share(folder: Path, step: int, files: Mapping[str, Tensors]) -> None:
    """Write some files of a checkpoint that the first process finishes, and tell it what they are, or why they are not.

    Raises:
        CheckpointError, OSError: As `write_checkpoint`, which fails too.
    """
    aside = unfinished(folder, step)
    paths, told = [aside / f"{name}.safetensors" for name in files], {}
    try:
        check_finite(files)
        for path, tensors in zip(paths, files.values(), strict=True):
            save_tensors(path, tensors)
            sync(path)
            told[path.name] = account_of(path)
    except (OSError, CheckpointError) as error:
        for path in paths:  # a full disk has room for the account then
            path.unlink(missing_ok=True)
        told = {path.name: {"failed": str(error)} for path in paths}
        raise
    finally:
        for name, account in told.items():
            file = _account_file(folder, step, name)
            file.parent.mkdir(exist_ok=True)
            write_json(file, account)


def accounts_of(folder: Path, step: int, files: set[str]) -> dict[str, Any]:
    """Wait for the accounts of files that other processes write.

    Raises:
        OSError: If one of them failed, or says nothing for too long.
    """
    told: dict[str, Any] = {}
    until = time.monotonic() + WAIT
    while missing := sorted(files - told.keys()):
        if time.monotonic() > until:
            raise OSError(f"another process has not written {missing[0]} {WAIT:.0f} s after the first wrote its files")
        for name in missing:
            if account := read_json(_account_file(folder, step, name)):
                if why := account.get("failed"):
                    raise OSError(f"another process did not write {name}: {why}")
                told[name] = account
        time.sleep(0.02)
    return {name: told[name] for name in sorted(told)}


def account_of(file: Path) -> dict[str, Any]:
    """The size of a file and its SHA-256."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
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
