"""RUN/status.json: the state of a run, even where a launcher hides its exit status; and which processes are alive.

    state       running, done, preempted or failed
    why         what stopped it, in words
    exit        the exit status of the process; null while it runs
    stage       what the process does, or did before it ended
    step        optimiser steps done, of `steps`; `saved` is the step of the newest checkpoint
    seen        when this was written; while a run lives, a few seconds ago

A process that is killed writes nothing more: if the state is `running` and `seen` is old or `pid` is gone, it was
killed. Each of several processes writes its state to RUN/processes/ and checks that the others are alive: if one has
died, the others end within DEAD seconds on its machine and SILENT seconds on another, and report which one died.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from flowimg.errors import MachineError
from flowimg.files import lock, read_json, write_json
from flowimg.runs.folder import RunFolder
from flowimg.runs.signals import PREEMPTED, StopRequests

BEAT = 1.0
"""Seconds between two checks."""
WRITE = 5.0
"""Seconds between two writes of a file in which only `seen` has changed."""
DEAD = 20.0
"""Seconds that processes have to end by themselves after one on their machine has died, before they are ended."""
SILENT = 180.0
"""Seconds without a sign of life after which a process on another machine counts as dead."""
WAIT = 30.0
"""Seconds to wait for another process that still holds the run's folder, such as one that is stopping."""


class Status:
    """The state of a process, written into the run's folder."""

    def __init__(self, folder: RunFolder, steps: int, requests: StopRequests) -> None:
        self.folder, self.steps, self.requests = folder, steps, requests
        self.process = int(os.environ.get("RANK", "0"))
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.step, self.stage = 0, "starting"
        self.saved: int | None = None
        self.began = time.time()
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self._launcher = os.getppid() if launched else None  # `accelerate launch` or torchrun
        self._over = threading.Event()
        self._beats: dict[int, tuple[str, float]] = {}
        self._written = -WRITE
        self._pen = threading.RLock()  # a signal may meet its own thread writing

    def at(self, stage: str) -> None:
        """Write what the process does now."""
        self.stage = stage
        self._tell()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """While inside: a thread writes signs of life, and checks the launcher and the other processes."""
        self._tell()
        thread = threading.Thread(target=self._look, name="status", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def end(self, state: str, why: str | None, exit_status: int) -> None:
        """Write how the process ended."""
        self._over.set()
        self._tell(state, why, exit_status)

    def leave(self) -> None:
        """Write that the process left in the middle of something."""
        self.end("preempted", "left at a second Ctrl-C", 130)

    def dead(self, patience: float = 0.0) -> str | None:
        """A sentence about a process that died while this one runs; None if all are alive."""
        if self.processes == 1:
            return None
        until = time.monotonic() + patience
        others = [other for other in range(self.processes) if other != self.process]
        while True:
            said = next((said for other in others if (said := self._gone(other))), None)
            if said or time.monotonic() >= until:
                return said
            time.sleep(0.2)

    def _gone(self, other: int) -> str | None:
        told = read_json(self._file(other))
        if not told or told.get("since", "") < self.began - SILENT:  # of an earlier start
            return None
        where = f"process {other} of {self.processes} (pid {told.get('pid')} on {told.get('host')})"
        doing = f"at step {told.get('step')}, stage: {told.get('stage')}"
        if told.get("state") == "failed":
            return f"{where} ended {doing}: {told.get('why')}"
        if told.get("state") != "running":
            return None
        if told.get("host") == socket.gethostname():
            return None if _lives(int(told["pid"])) else f"{where} died; it was last seen {doing}"
        beat, since = self._beats.get(other, ("", 0.0))
        if beat != str(told.get("seen")):
            self._beats[other] = (str(told.get("seen")), time.monotonic())
            return None
        return f"{where} is silent for {SILENT:.0f} s; last {doing}" if time.monotonic() - since > SILENT else None

    def _look(self) -> None:
        found = 0.0
        while not self._over.wait(BEAT):
            if time.monotonic() - self._written >= WRITE:
                self._tell()
            if self._launcher is not None and os.getppid() != self._launcher:
                self._launcher = None
                self.requests.ask(PREEMPTED, "the death of its launcher")
                if not self.requests.training:  # the main thread prepares or draws: only a signal reaches it
                    os.kill(os.getpid(), 15)
            if dead := self.dead():
                found = found or time.monotonic()
                if time.monotonic() - found > DEAD:  # the main thread would wait hours for the dead one
                    self.end("failed", dead, 4)
                    with suppress(OSError):
                        os.write(2, f"flowimg: {dead}\n".encode())
                    os._exit(4)

    def _tell(self, state: str = "running", why: str | None = None, exit_status: int | None = None) -> None:
        with self._pen:
            if state != "running" or not self._over.is_set():  # else the other thread has written the end
                self._write(state, why, exit_status)

    def _write(self, state: str, why: str | None, exit_status: int | None) -> None:
        self._written = time.monotonic()
        story: dict[str, Any] = {
            "state": state, "why": why, "exit": exit_status, "stage": self.stage,
            "step": self.step, "steps": self.steps, "saved": self.saved, "seen": time.time(), "since": self.began,
            "pid": os.getpid(), "host": socket.gethostname(), "processes": self.processes,
        }  # fmt: skip
        with suppress(OSError):  # a full disk is reported by what saves checkpoints
            if self.processes > 1:
                self._file(self.process).parent.mkdir(exist_ok=True)
                write_json(self._file(self.process), story, indent=None)
            if self.process == 0 or (state == "failed" and not self._first_lives()):
                for name in ("seen", "since"):
                    story[name] = datetime.fromtimestamp(story[name], UTC).isoformat(timespec="seconds")
                write_json(self.folder.status, story)

    def _first_lives(self) -> bool:
        told = read_json(self._file(0))
        return bool(told) and (told["host"] != socket.gethostname() or _lives(told["pid"]))

    def _file(self, process: int) -> Path:
        return self.folder.path / "processes" / f"{process}.json"


@contextmanager
def hold(folder: RunFolder) -> Iterator[None]:
    """Let no other process train the same run; wait for one that is stopping.

    Raises:
        MachineError: If another process keeps the folder.
    """
    folder.path.mkdir(parents=True, exist_ok=True)

    def holder() -> str:
        by = read_json(folder.status)
        return f"process {by.get('pid')} on {by.get('host')}"

    with ExitStack() as stack:
        try:
            busy = lambda: print(f"waiting   for {holder()}, which still has {folder.path}")  # noqa: E731
            stack.enter_context(lock(folder.path / ".lock", busy, WAIT))
        except TimeoutError:
            raise MachineError(
                f"{folder.path} is being trained by {holder()}: wait for it, stop it, or name another folder"
            ) from None
        yield


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
