"""The cores: how many this process may use, how its threads wait for each other, what other processes use of them.

A thread of OpenMP that waits for another one spins before it sleeps, in GNU's library 300,000 times (about 5 ms). On a
quiet machine this is fast. On a shared one, threads spin on cores where other processes, or the very threads that they
wait for, have work to do: two trainings slow each other down by 10 to 20 times. So threads spin less here, and hardly
at all while other processes use the cores. No torch in this file: it reads the variables when it is loaded.
"""

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path("/")
"""Where /proc and /sys are."""
SPINS = "10000"
"""Our GOMP_SPINCOUNT. LLVM's and Intel's libraries need no limit: their threads yield while they spin."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Variables by which a user says how threads wait."""
PLACES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
"""Variables by which a user says where threads run."""
BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat: user, nice, system, irq, softirq, and stolen by other guests of the host."""
LIMITS = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")
"""Files of a cgroup's limit: of version 2, and of version 1."""
INTERVAL = 0.5
"""Seconds over which the use of the cores is averaged at least; Linux counts it in hundredths."""
SLACK = 0.5
"""Cores that other processes may use without being mentioned, on a small machine: a system is never quite idle."""
MOST_SLACK = 0.9
"""The same on a large one, where many small processes run: less than one that computes all the time."""


def cores() -> int:
    """Number of cores that this process may use, by its affinity and the limits of its cgroups; at least 1."""
    return max(1, int(min(len(_cpus()), _limit())))


def threads() -> int:
    """Number of threads that compute fastest: one for each of these cores, of which two hyperthreads are one."""
    where = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return min(len({_read(where.format(cpu)) or cpu for cpu in _cpus()}), cores())


def set_defaults(environ: MutableMapping[str, str]) -> None:
    """Set how the threads of OpenMP wait, unless the user says how; and their number where one per CPU is too many."""
    if not any(name in environ for name in WAITING):
        environ["GOMP_SPINCOUNT"] = SPINS
    if threads() < len(_cpus()):
        environ.setdefault("OMP_NUM_THREADS", str(threads()))


class Neighbours:
    """Other processes on the cores of this one; while they leave too few, the threads of this one wait in another way.

    They hardly spin then. With `barriers`, if there is a thread for each core, each also stays on its own: at a barrier
    inside an operation (oneDNN's convolutions) a thread spins until the others come, and one that waits for the same
    core comes a time slice later. Other operations are faster where the scheduler puts them. GNU's OpenMP only.

    Args:
        barriers: Whether operations have barriers inside.
    """

    def __init__(self, barriers: bool = False) -> None:
        self.cpus = sorted(_cpus())
        self.barriers = barriers
        self.before = _used(self.cpus)
        self.others: float | None = None
        self.pool: threading.Thread | None = None
        self.release = threading.Event()
        self.placed = False

    def look(self, threads: int) -> float | None:
        """Cores that others used since the last look, if they leave fewer than these threads; None also if unknown.

        Call it in the thread that computes. Within half a second of the last look: the same as then.
        """
        if time.monotonic() - self.before[0] < INTERVAL:
            return self.others
        now, count = _used(self.cpus), len(self.cpus)
        seconds, busy, own = (new - old for new, old in zip(now, self.before, strict=True))
        self.before, others = now, (busy - own) / seconds
        slack = min(max(SLACK, count / 64), MOST_SLACK)
        self.others = others if others > max(0, count - threads) + slack else None
        spins = 1 < threads <= count  # with more threads than cores the library hardly spins
        if self.others is None:
            self.close()
        elif self.pool is None and spins and [os.environ.get(name) for name in WAITING] == [SPINS, None, None]:
            # the library spins 100 times only while a process has more threads than there are cores, sleeping or not
            self.pool = threading.Thread(target=hold_pool, args=(count - threads + 2, self.release), daemon=True)
            self.pool.start()
            self.placed = self.barriers and threads == count and not any(name in os.environ for name in PLACES)
            if self.placed:
                place_team([{cpu} for cpu in self.cpus])
        return self.others

    def close(self) -> None:
        """Let the threads wait as before; in the thread that computes."""
        if self.pool is not None:
            if self.placed:
                place_team([set(self.cpus)] * len(self.cpus))
            self.release.set()
            self.pool.join()
            self.release.clear()
            self.pool = None


def shared_sentence(others: float, threads: int) -> str:
    """That the machine is shared, what this costs, and what to do."""
    count = len(_cpus())
    free = max(1, int(count - others + SLACK))
    advice = f"; OMP_NUM_THREADS={free} leaves them their cores" if free < threads else ""
    return (
        f"shared: other processes use {others:.1f} of {count} cores, so a step may take twice as long or more{advice}"
    )


def hold_pool(count: int, release: threading.Event) -> None:
    """Keep `count` threads of GNU's OpenMP, this one among them, besides those that compute, until `release` is set."""
    for library in _libraries():
        library.GOMP_parallel(ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p), None, count, 0)
    release.wait()


def place_team(cpus: Sequence[set[int]]) -> None:
    """Let thread n of the team of this one run on the CPUs cpus[n]; this one, thread 0, stays where it may run.

    A child process inherits where it may run from this thread.
    """
    for library in _libraries():

        def place(_: Any, number: Callable[[], int] = library.omp_get_thread_num) -> None:
            with suppress(OSError):  # a CPU that was taken away meanwhile
                if number():
                    os.sched_setaffinity(0, cpus[number()])

        library.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(place), None, len(cpus), 0)


def _libraries() -> Iterator[ctypes.CDLL]:
    """GNU's OpenMP as loaded by torch; scikit-learn has its own."""
    for line in _read("proc/self/maps").splitlines():
        if "/libgomp" in line and " 00000000 " in line:
            with suppress(OSError):  # it was replaced on disk meanwhile
                yield ctypes.CDLL(line.split(maxsplit=5)[-1])


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _used(cpus: Iterable[int]) -> tuple[float, float, float]:
    """Seconds: by a clock, of these cores' use by all processes (NaN if unknown), and by this one and its children.

    The system adds those of a child once it has ended; those that live are asked.
    """
    busy, names = math.nan, {f"cpu{cpu}" for cpu in cpus}
    rows = [row for row in map(str.split, _read("proc/stat").splitlines()) if row and row[0] in names]
    if rows:
        busy = sum(int(row[1:][column]) for row in rows for column in BUSY) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, sum(os.times()[:4]) + _children_seconds("self")


def _children_seconds(process: str) -> float:
    """Seconds that the living children of a process have used, with theirs; 0 where the system does not list them."""
    seconds = 0.0
    for task in (ROOT / "proc" / process / "task").glob("*"):
        for child in _read(task / "children").split():
            fields = _read(f"proc/{child}/stat").rpartition(")")[2].split()  # the name before may hold anything
            used = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own, and of its children that ended
            seconds += used + _children_seconds(child)
    return seconds


def _limit() -> float:
    """Cores that the cgroups of this process allow, of version 1 or 2, and those above them; inf without a limit."""
    least = math.inf
    for line in _read("proc/self/cgroup").splitlines():
        names, _, own = line.partition(":")[2].partition(":")
        if names and "cpu" not in names.split(","):
            continue
        top = Path("sys/fs/cgroup", "cpu" if names else "")
        folder = top / own.lstrip("/")
        for place in (folder, *folder.parents):  # in a container its own folder may be the top one
            with suppress(ValueError):  # there are none, or it is "max"
                quota, period = map(int, "".join(_read(place / file) for file in LIMITS).split())
                if quota > 0 and period > 0:
                    least = min(least, quota / period)
            if place == top:
                break
    return least


def _read(path: str | Path) -> str:
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
