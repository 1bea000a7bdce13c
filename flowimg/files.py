"""The one way to write a file or a folder: aside, synced where it must survive a power cut, renamed; and the lock.

Whoever reads a file written here sees it as it was or as it is now, never half of it. (Lines appended to a metrics file
and pictures, which matplotlib and PIL write in place, can be cut; their readers allow for it.) Of a run's files

    synced      checkpoints, snapshots, config.yaml, exported weights and models: nothing else can make them again
    not synced  status.json, metrics, grids, figures, reports, samples: a run writes them again, and often

A sync that fails, of a file or of a folder, is an error: what is called saved would not survive a power cut.
Everything in the cache folder is synced too, because a broken entry there would be found again by every later run, but
leniently: a file system that cannot sync is passed over, as what is lost there is made again from the data.
What a process that died left aside is named `.NAME.HOST.PID.XXXXXXXX.tmp`, next to NAME.
"""

import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4


def aside_of(path: Path) -> Path:
    """A new name next to a path, which tells whose it is: `.NAME.HOST.PID.XXXXXXXX.tmp`."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}.tmp")


@contextmanager
def written(path: Path, synced: bool = False, lenient: bool = False) -> Iterator[Path]:
    """A file to write to, which is renamed to `path` at the end: `path` is there whole, as it was or as it is now.

    Raises:
        OSError: If the disk is full or cannot be written or, unless `lenient`, synced; what was there is whole.
    """
    aside = aside_of(path)
    try:
        yield aside
        if synced:
            sync(aside, lenient)
        aside.replace(path)
        if synced:
            sync(path.parent, lenient)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str, synced: bool = False) -> None:
    """Write a small file, whole or not at all."""
    with written(path, synced) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lost letter is no reason to lose a save


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write a value as a small JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if the file is missing or broken, or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def filled(target: Path, replace: bool = True, lenient: bool = False, aside: Path | None = None) -> Iterator[Path]:
    """A folder to fill, which is synced and renamed to `target` at the end.

    What was there by then is replaced or, without `replace`, kept. `aside` is a folder that is there already, which
    others may fill too.

    Raises:
        OSError: If the disk is full or cannot be written or, unless `lenient`, synced; what was there is whole, under
            its name or next to it.
    """
    if aside is None:
        aside = aside_of(target)
        aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.rglob("*"):
            sync(path, lenient)
        sync(aside, lenient)
        before = aside_of(target)
        if replace and target.exists():
            target.rename(before)
        try:
            aside.rename(target)
        except OSError:
            if replace or not target.exists():  # else another process was first
                raise
        sync(target.parent, lenient)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # half of it would keep a full disk full


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())


def check_writable(path: Path) -> None:
    """Look, before the work, whether a file can be written after it; nothing is changed.

    Raises:
        OSError: If not.
    """
    if path.exists():
        path.open("ab").close()
    else:
        TemporaryFile(dir=existing(path.parent)).close()


def can_write(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, is a folder that this user may write to."""
    there = existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def sync(path: Path, lenient: bool = False) -> None:
    """Wait until a file, or a folder's list of files, is on the disk.

    Raises:
        OSError: If the disk does not take it; `lenient` passes over it, as some file systems sync no folders.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not lenient:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, busy: Callable[[], None], patience: float = math.inf) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, however it ends.

    Without locks, as on Windows and on some file systems of several machines, nothing is held.

    Args:
        path: The lock's file.
        busy: Called once if another process holds it, before waiting.
        patience: Seconds to wait for it.

    Raises:
        TimeoutError: If another process still holds it then.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("ab") as file:
        until, waiting = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"{path} is held by another process") from None
                if not waiting:
                    busy()
                    waiting = True
                time.sleep(0.2)
            except OSError:
                break
        yield
