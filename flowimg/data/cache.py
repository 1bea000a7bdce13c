"""The cache folder: results of scanning and decoding, stored under names that depend on what they were made from.

    CACHE/scans/NAME.npz       the pictures found in a source
    CACHE/stores/NAME/         decoded pictures
    CACHE/shards/NAME.npz      where the pictures of a tar file are

Everything in it is written to a temporary name, synced and renamed: it exists completely or not at all, whichever
process is killed and however many build the same at once. All of it may be deleted at any time; it is then rebuilt.
"""

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowimg.errors import CacheError, SettingsError
from flowimg.files import aside_of, filled, lock, written
from flowimg.names import on_disk

OLD = 24 * 3600.0
"""Seconds after which the unfinished files of another machine are considered abandoned."""
Stamp = tuple[int, int, int]
NO_STAMP = (0, 0, 0)
"""The stamp of a file that does not exist."""


def cache_folder(requested: str | None = None) -> Path:
    """The requested folder, or $FLOWIMG_CACHE, or flowimg in the user's cache."""
    if named := requested or os.environ.get("FLOWIMG_CACHE"):
        return on_disk(named)
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return on_disk(user) / "flowimg"
    except SettingsError:  # a user without a home, who may need no cache: one that cannot be written
        return Path(os.devnull, "flowimg")


def name_of(*parts: Any) -> str:
    """A name made of plain values and arrays' bytes: 32 hexadecimal digits of a BLAKE2b hash."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode(errors="surrogateescape")
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.hexdigest()


def stamp(status: os.stat_result) -> Stamp:
    """Size in bytes, modification time and change time in ns: if they are equal, the file is considered unchanged."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamp_of(file: str | Path) -> Stamp:
    """The stamp of a file; `NO_STAMP` if it does not exist or cannot be examined."""
    with suppress(OSError, TypeError, ValueError):
        return stamp(os.stat(file))
    return NO_STAMP


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Arrays that were stored; None if there are none or they cannot be read, so that they are made again."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception:  # a damaged file raises almost anything
        return None


def keep_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays to a file, completely or not at all; nothing is written if the cache is not writable.

    Pack text with `pack` first: nothing is pickled.
    """
    with suppress(OSError):
        write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name, sync it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent)
    with written(path, synced=True, lenient=True) as aside, aside.open("wb") as file:
        write(file)


def pack(texts: Iterable[Any]) -> NDArray[np.uint8]:
    """Texts or numbers as bytes, which need no pickle."""
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def unpack(packed: NDArray[np.uint8]) -> list[Any]:
    """The inverse of `pack`."""
    return json.loads(packed.tobytes())


def make_folder(target: Path, need: int, fill: Callable[[Path], None]) -> None:
    """Make a folder: filled under a temporary name, synced and renamed to `target`. Does nothing if `target` exists.

    One process of a machine makes it while the others wait. If machines share a disk without locks, two may make it at
    once; the first to finish is kept. Leftovers of dead processes are deleted.

    Args:
        target: The folder to make.
        need: Bytes that it will take.
        fill: Writes the files into the folder that it is given.

    Raises:
        CacheError: If it cannot be written, or the disk has no room.
    """
    advice = "make room, or name another folder by data.cache or $FLOWIMG_CACHE"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.with_name(f"{target.name}.lock"), _report_wait):
            if target.exists():
                return
            _sweep(target.parent)
            free = shutil.disk_usage(target.parent).free
            if need > free:
                raise CacheError(
                    f"the cache {target.parent} needs {_size(need)} for decoded pictures, and its disk has "
                    f"{_size(free)} free: {advice}"
                )
            with filled(target, replace=False, lenient=True) as aside:
                fill(aside)
    except OSError as error:
        raise CacheError(f"the cache {target.parent} cannot be written ({error.strerror or error}): {advice}") from None


def _report_wait() -> None:
    print("waiting   for another process that decodes the same pictures", file=sys.stderr, flush=True)


def discard(folder: Path) -> None:
    """Delete a damaged folder of the cache, if possible; processes that have it mapped can still read it."""
    aside = aside_of(folder)
    with suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside)


def _sweep(folder: Path) -> None:
    """Delete leftovers: those of dead processes of this machine, and those of other machines that are old."""
    from psutil import pid_exists

    for left in folder.glob(".*.*.*"):
        opening, _, rest = left.name.rpartition(f".{socket.gethostname()}.")
        pid = rest.split(".")[0]
        with suppress(OSError):
            ours = bool(opening) and pid.isdigit()
            newest = max((file.stat().st_mtime for file in left.glob("*")), default=left.stat().st_mtime)
            if not pid_exists(int(pid)) if ours else time.time() - newest > OLD:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


_sweep_once = lru_cache(_sweep)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
