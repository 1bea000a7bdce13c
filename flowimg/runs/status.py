"""RUN/status.json: the state of a run, even where a launcher hides its exit status; and which processes are alive.

    state       running, done, preempted or failed
    why         what stopped it, in words
    exit        the exit status of the process; null while it runs
    stage       what the process does, or did before it ended
    step        optimiser steps done, of `steps`; `saved` is the step of the newest checkpoint
    seen        when this was written; while a run lives, a few seconds ago

A process that is killed writes nothing more: if the state is `running` and `seen` is old or `pid` is gone, it was
killed. Each of several processes writes its state to RUN/processes/, and a few others watch it (see others.py): if one
has died, the others end within DEAD seconds on its machine and SILENT + DEAD seconds on another, and report which one
died. If all live but no step comes, they end as well (see watchdog.py).
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from flowimg.errors import MachineError
from flowimg.files import lock, read_json, write_json
from flowimg.runs.folder import RunFolder
from flowimg.runs.others import AGAIN, TRAINING, WRITE, Others, ended
from flowimg.runs.signals import PREEMPTED, StopRequests
from flowimg.runs.watchdog import Watchdog

BEAT = 1.0
"""Seconds between two checks."""
DEAD = 20.0
"""Seconds that processes have to end by themselves after one of them has died, before they are ended."""
WAIT = 30.0
"""Seconds to wait for another process that still holds the run's folder, such as one that is stopping."""


class Status:
    """The state of a process, written into the run's folder."""

    def __init__(self, folder: RunFolder, steps: int, requests: StopRequests) -> None:
        self.folder, self.steps, self.requests = folder, steps, requests
        self.others, self.watchdog = Others(folder.path / "processes"), Watchdog()
        self.process, self.processes = self.others.process, self.others.processes
        self.step, self.stage = 0, "starting"
        self.leaving = False  # no step comes any more, and none is missed
        self.saved: int | None = None
        self.lost: str | None = None  # the sentence about the process that died
        self.began = time.time()
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self._launcher = os.getppid() if launched else None  # `accelerate launch` or torchrun
        self._over = threading.Event()
        self._written = -WRITE
        self._pen = threading.RLock()  # a signal may meet its own thread writing

    def at(self, stage: str) -> None:
        """Write what the process does now."""
        self.stage = stage
        self.watchdog.begin()
        self._tell()

    def stepped(self, step: int) -> None:
        """Note the step at which the run is now."""
        if step > self.step:
            self.watchdog.step()
        else:
            self.watchdog.begin()
        self.step = step

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """While inside, the process does this; it is written with the next sign of life only, so it may be short."""
        before, self.stage = self.stage, stage
        self.watchdog.moved()
        try:
            yield
        finally:
            self.stage = before
            self.watchdog.moved()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """While inside: a thread writes signs of life, and checks the launcher and the other processes."""
        if self.process == 0:
            self.others.forget()
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
        while True:
            self.lost = self.others.dead()
            if self.lost or time.monotonic() >= until:
                return self.lost
            time.sleep(0.2)

    def _stuck(self) -> str | None:
        """A sentence if no step comes, and no process does anything else that others must wait for."""
        dog = self.watchdog
        if self.processes == 1 or self.stage != TRAINING or self.leaving or not dog.due():
            return None
        self._tell()
        if rest := self.others.rest(dog.limit):
            dog.rest(rest)
            return None
        who = self.others.quiet() or "another process or the network between them does not answer"
        took = f"where a step takes {dog.usual:.2g} s"
        return f"no new step for {dog.still:.0f} s after step {self.step}, {took}: {who}"

    def _look(self) -> None:
        found, before = 0.0, time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            self.watchdog.beat(min(now - before, WRITE))  # a process that was stopped meanwhile waited for nobody
            before = now
            if now - self._written >= WRITE:
                self._tell()
            if self._launcher is not None and os.getppid() != self._launcher:
                self._launcher = None
                self.requests.ask(PREEMPTED, "the death of its launcher")
                if not self.requests.training:  # the main thread prepares or draws: only a signal reaches it
                    os.kill(os.getpid(), 15)
            dead, stuck = self.dead(), self._stuck()
            found = (found or now) if dead else 0.0  # one that was only silent for a while may write again
            if stuck or (dead and now - found > DEAD):  # the main thread would wait hours for the dead one
                self._quit(str(dead or stuck))

    def _quit(self, why: str) -> None:
        """End the process here and now: its main thread waits for another."""
        self.end("failed", f"{why}; {AGAIN}", 4)
        with suppress(OSError):
            os.write(2, f"flowimg: {why}; {AGAIN}\n".encode())
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
        others = self.others
        with suppress(OSError):  # a full disk is reported by what saves checkpoints
            if self.processes > 1:
                others.folder.mkdir(exist_ok=True)
                own = {**story, "still": round(self.watchdog.still, 1), "leaving": self.leaving, "lost": self.lost}
                write_json(others.file(self.process), own, indent=None)
                if state == "failed":
                    others.spread(self.process, story, self.lost or ended(self.process, story))
            if self.process == 0 or (state == "failed" and others.first_is_lost()):
                for name in ("seen", "since"):
                    story[name] = datetime.fromtimestamp(story[name], UTC).isoformat(timespec="seconds")
                write_json(self.folder.status, story)


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
