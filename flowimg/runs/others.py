"""The other processes of a launch, as their files in RUN/processes/ describe them: who lives, and who does what.

Each process watches the next one and, if it is the last on its machine, the first on its machine. So there is always a
process that lives and watches one that died, on the machine of the dead one if any process there lives. Who finds a
death writes it to dead.json, which all read: nobody waits until the news has gone round. All watch the first process
too, should dead.json be of no use. N processes read 4 N small files a second, not N^2.
"""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from flowimg.files import read_json, write_json

SILENT = 180.0
"""Seconds without a sign of life after which a process on another machine counts as dead."""
WRITE = 5.0
"""Seconds between two signs of life."""
QUIET = 3 * WRITE
"""Seconds without a sign of life that are worth a mention."""
TRAINING = "training"
"""The stage in which processes wait for each other at every step."""
BEFORE = ("starting", "preparing data", "first passes")
"""The stages before it: a process in one of them while others train was restarted, and they wait for it in vain."""
AGAIN = "the same command continues from the last checkpoint"
"""What to do after a death."""


class Beat(NamedTuple):
    """The newest sign of life of a process, when it was first read, and whether it has ever changed since."""

    seen: float
    read: float
    moved: bool


def watched_by(process: int, processes: int, local: int, here: int) -> list[int]:
    """The processes that this one watches: at most three, whatever their number.

    Args:
        process: Its number, of `processes`.
        processes: Number of processes on all machines.
        local: Its number on its machine.
        here: Number of processes on its machine.
    """
    watched = {(process + 1) % processes, 0, process - local + (local + 1) % here}
    return sorted(watched - {process})


class Others:
    """The other processes of a launch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.news = folder, folder / "dead.json"
        variable = os.environ.get
        self.process, self.processes = int(variable("RANK", "0")), int(variable("WORLD_SIZE", "1"))
        local, here = int(variable("LOCAL_RANK", "0")), int(variable("LOCAL_WORLD_SIZE", "1"))
        self.watched = watched_by(self.process, self.processes, local, here)
        self.host = socket.gethostname()
        # in whole seconds, rounded down; a process writes nothing in its first second, in which it imports torch
        self.born = psutil.Process().create_time() + 1
        self._beats: dict[int, Beat] = {}

    def file(self, process: int) -> Path:
        """What a process writes about itself."""
        return self.folder / f"{process}.json"

    def forget(self) -> None:
        """At the start of the first process: what was written of deaths in the start before."""
        with suppress(OSError):
            self.news.unlink(missing_ok=True)

    def dead(self) -> str | None:
        """A sentence about a process that died, the first as far as is known; None if all live."""
        if known := self._known():
            return known
        for other in self.watched:
            told = read_json(self.file(other))
            if said := self._gone(other, told):
                self.spread(other, told, said)
                return said
        return None

    def spread(self, process: int, told: dict[str, Any], said: str) -> None:
        """Write where all look that a process died, `told` being the last that it wrote."""
        news = {"process": process, "seen": told["seen"], "said": said, "host": self.host, "at": time.time()}
        with suppress(OSError):
            if not self._known():
                write_json(self.news, news, indent=None)

    def _known(self) -> str | None:
        news = read_json(self.news)
        if not news or news["at"] < self.born:  # of an earlier start
            return None
        # one that writes again was only silent for a while, or is of this start and the news of an earlier one
        silent = read_json(self.file(news["process"])).get("seen") == news["seen"]
        return str(news["said"]) if silent else None

    def _gone(self, other: int, told: dict[str, Any]) -> str | None:
        if not told:
            return None
        seen, here = told["seen"], told["host"] == self.host
        beat = self._beats.get(other)
        if beat is None or beat.seen != seen:
            beat = self._beats[other] = Beat(seen, time.monotonic(), beat is not None)
        if not beat.moved and seen < self.born:  # of an earlier start, or by a clock that is late
            return None
        if told["state"] == "failed":
            return told.get("lost") or ended(other, told)
        if told["state"] != "running":
            return None
        if here:
            return None if lives(told["pid"]) else f"{name(other, told)} died; it was last seen {doing(told)}"
        if time.monotonic() - beat.read > SILENT:
            return f"{name(other, told)} is silent for {SILENT:.0f} s; last {doing(told)}"
        return None

    def first_is_lost(self) -> bool:
        """Whether the first process, which writes how the run is, will not write how it ended."""
        told = read_json(self.file(0))
        if not told or told["state"] != "running":
            return False
        return not lives(told["pid"]) if told["host"] == self.host else self._age(0) > QUIET

    def rest(self, limit: float) -> float:
        """Seconds to wait on for a process that does something else, or was in a step for less than `limit` seconds.

        All files are read: only for a process that did no step for `limit` seconds itself, and wrote its file just now.

        Returns:
            0 if all processes that live wait in a step.
        """
        others = (other for other in range(self.processes) if other != self.process)
        return max((self._rest(read_json(self.file(other)), other, limit) for other in others), default=0.0)

    def _rest(self, told: dict[str, Any], other: int, limit: float) -> float:
        if told.get("state") != "running":
            return 0.0
        age = self._age(other)
        if told["stage"] in BEFORE:
            return 0.0
        if told["stage"] != TRAINING or told.get("leaving"):
            return limit if age < SILENT else 0.0
        still = float(told.get("still", 0.0)) + age
        # the others began to wait a little later, and write only now and then
        return 0.0 if still >= limit - min(2 * WRITE, limit / 2) else max(WRITE, limit - still)

    def quiet(self) -> str | None:
        """The process without a sign of life for longest, in words, if that is long; all files are read."""
        ages = {other: self._age(other) for other in range(self.processes) if other != self.process}
        for other in sorted(ages, key=lambda other: -ages[other]):
            told = read_json(self.file(other))
            if ages[other] > QUIET and told.get("state") == "running":
                return f"{name(other, told)} has given no sign of life for {ages[other]:.0f} s"
        return None

    def _age(self, other: int) -> float:
        """Seconds from the last sign of life of another process to the last of this one, by the clock of the disk."""
        try:  # the clocks of machines differ
            return max(0.0, self.file(self.process).stat().st_mtime - self.file(other).stat().st_mtime)
        except OSError:
            return 0.0


def name(process: int, told: dict[str, Any]) -> str:
    """A process in words."""
    return f"process {process} of {told['processes']} (pid {told['pid']} on {told['host']})"


def doing(told: dict[str, Any]) -> str:
    """Where it was, in words."""
    return f"at step {told['step']}, stage: {told['stage']}"


def ended(process: int, told: dict[str, Any]) -> str:
    """A sentence about a process that ended of its own accord, with its reason."""
    why = str(told["why"]).removesuffix(f"; {AGAIN}")
    return f"{name(process, told)} ended {doing(told)}: {why}"


def lives(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
