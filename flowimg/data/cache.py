"""The cache folder: what was looked through and decoded before, found again by what it was made of.

    CACHE/scans/NAME.npz       what a source was found to hold
    CACHE/stores/NAME/         decoded pictures
    CACHE/shards/NAME.npz      where the pictures of a tar file lie

Everything in it is written aside, synced and renamed: it is there whole or not at all, whoever is killed and however
many build the same at once. All of it may be deleted at any time; it is made again.
"""

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowimg.errors import CacheError
from flowimg.files import aside_of, filled, lock, written

OLD = 24 * 3600.0
"""Seconds after which what another machine left half made is taken for dead."""


def cache_folder(asked: str | None = None) -> Path:
    """The folder asked for, or $FLOWIMG_CACHE, or flowimg in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(asked or os.environ.get("FLOWIMG_CACHE") or Path(user, "flowimg")).expanduser()


def name_of(*parts: Any) -> str:
    """A name of plain values and of arrays' bytes: 32 hexadecimal digits of a BLAKE2b hash."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode(errors="surrogateescape")
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.hexdigest()


def stamp_of(found: os.stat_result) -> tuple[int, int, int]:
    """What tells that a file is the one that it was: its size, and the times of its content and of its entry in ns."""
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Arrays that were kept, or None where there are none; what cannot be read is as good as none."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except FileNotFoundError:
        return None
    except Exception:  # a broken file of ours is made again
        return None


def keep_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays to a file, whole or not at all; a cache that cannot be written is done without.

    Text is to be packed by `pack` first: nothing is pickled.
    """

    def write(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]

    with suppress(OSError):
        write_whole(path, write)


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file aside, sync it, and put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent)
    with written(path, synced=True) as aside, aside.open("wb") as file:
        write(file)


def pack(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts as bytes, which need no pickle."""
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def unpack(packed: NDArray[np.uint8]) -> list[str]:
    """The texts of `pack`."""
    return json.loads(packed.tobytes())


def make_folder(target: Path, need: int, fill: Callable[[Path], None]) -> None:
    """Make a folder: filled aside, synced, and renamed to `target`. Nothing is done where it is there already.

    One process of a machine makes it while the others wait. Where a disk of several machines knows no locks, two may
    make it at once; the first to be done is kept. What dead ones left is swept away.

    Args:
        target: The folder to be.
        need: Bytes that it will take.
        fill: Writes the files into the folder it is given.
    Raises:
        CacheError: If it cannot be written, or the disk has no room.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.with_name(f"{target.name}.lock"), _wait):
            if target.exists():
                return
            _sweep(target.parent)
            free = shutil.disk_usage(target.parent).free
            if need > free:
                raise CacheError(
                    f"the cache {target.parent} needs {_size(need)} for decoded pictures, and its disk has "
                    f"{_size(free)} free: make room, or name another folder by data.cache or $FLOWIMG_CACHE"
                )
            with filled(target, replace=False) as aside:
                fill(aside)
    except OSError as error:
        raise CacheError(
            f"the cache {target.parent} cannot be written ({error.strerror or error}): make room, or name another "
            "folder by data.cache or $FLOWIMG_CACHE"
        ) from None


def _wait() -> None:
    print("waiting   for another process that decodes the same pictures", file=sys.stderr, flush=True)


def discard(folder: Path) -> None:
    """Remove a folder of ours that is broken, if it can be; whoever reads it has it still."""
    aside = aside_of(folder)
    with suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside)


def _sweep(folder: Path) -> None:
    """Remove what dead builders left: those of this machine whose process is gone, others when they are old."""
    for left in folder.glob(".*.*.*"):
        opening, _, rest = left.name.rpartition(f".{socket.gethostname()}.")
        pid = rest.split(".")[0]
        with suppress(OSError):
            ours = bool(opening) and pid.isdigit()
            newest = max((file.stat().st_mtime for file in left.glob("*")), default=left.stat().st_mtime)
            if _dead(int(pid)) if ours else time.time() - newest > OLD:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@lru_cache
def _sweep_once(folder: Path) -> None:
    _sweep(folder)


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is another user's
        pass
    return False


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
