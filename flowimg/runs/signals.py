"""Signals request the end of a run: at once while it prepares or draws, after the current step while it trains.

    SIGTERM, SIGUSR1, SIGHUP, the death of the launcher    exit status 143
    SIGINT (Ctrl-C)                                        130; pressed again, the process leaves at once

SIGHUP comes from a terminal that is closed, or a connection that is lost; under `nohup`, which ignores it, it stays
ignored.

A launcher passes Ctrl-C on to processes that got it from the terminal already: within a second it counts as one press.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from flowimg.errors import Stopped

PREEMPTED, INTERRUPTED, GIVEN_UP = 1, 2, 3
"""Stop requests, the strongest last. GIVEN_UP: saving has failed too often."""
EXIT_STATUS = {PREEMPTED: 143, INTERRUPTED: 130, GIVEN_UP: 4}
SAME_PRESS = 1.0
"""Seconds within which two SIGINT are one Ctrl-C."""


class StopRequests:
    """The stop requests of this process: `newest` is the strongest, 0 for none, and `by` what sent it."""

    def __init__(self) -> None:
        self.newest, self.by, self.training = 0, "", False
        self.leave: Callable[[], None] = lambda: None
        self._pressed = -SAME_PRESS

    def wanted(self) -> int:
        """The strongest request as a number; 0 for none."""
        return self.newest

    def ask(self, request: int, by: str) -> None:
        """Request the end of the run; the strongest request stays."""
        if request > self.newest:
            self.newest, self.by = request, by

    def check(self) -> None:
        """End here if the end was requested.

        Raises:
            Stopped: If so.
        """
        if self.newest:
            raise Stopped(EXIT_STATUS[self.newest], f"stopped by {self.by}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            now = time.monotonic()
            again, self._pressed = self.newest == INTERRUPTED and now - self._pressed > SAME_PRESS, now
            if again:
                self.leave()
                with suppress(OSError):
                    sys.stderr.write("\nflowimg: ended at once; the last checkpoint is whole\n")
                    sys.stderr.flush()
                os._exit(EXIT_STATUS[INTERRUPTED])
        self.ask(INTERRUPTED if number == signal.SIGINT else PREEMPTED, name)
        if not self.training:
            self.check()

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Handle the signals that request an end; outside the main thread Python allows no handler."""
        before = {}
        with suppress(ValueError):
            for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
                number = getattr(signal, name, None)  # Windows has neither SIGUSR1 nor SIGHUP
                if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                    before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_the_end_of_a_step(self) -> Iterator[None]:
        """While training: a request is noted, and the loop ends at its next step."""
        self.training = True
        try:
            yield
        finally:
            self.training = False
