"""The watchdog on the step: a run of several processes whose steps stop coming ends, in place of waiting for hours.

A network that is cut and a process that is stopped reset no connection: a process that waits for another in a step
waits as long as the process group has patience. So while it trains, a process expects a step of its own within

    max(LEAST, TIMES usual) seconds     usual: the median time of its last steps

but only after its first steps, which compile. Time is counted in beats of a thread of the same process: while the
process itself is stopped (Ctrl-Z, a container that is paused), no time passes.
"""

import math
import time
from collections import deque
from statistics import median

LEAST, TIMES = 60.0, 20.0
"""The least limit in seconds, and the limit as a multiple of the usual time of a step."""
FEW, RECENT = 5, 101
"""Steps before there is a limit, and the number of the last steps whose median counts."""


class Watchdog:
    """Counts the time for which one process made no progress.

    One thread calls `beat`, `due` and `rest`, and the thread that trains all else.
    """

    def __init__(self) -> None:
        self._clock = self._mark = self._again = 0.0
        self._began = time.monotonic()
        self._times: deque[float] = deque(maxlen=RECENT)

    def beat(self, seconds: float) -> None:
        """Count these seconds."""
        self._clock += seconds

    def moved(self) -> None:
        """Note progress inside a step."""
        self._mark = self._clock

    def begin(self) -> None:
        """Note that a step begins now."""
        self._began = time.monotonic()
        self.moved()

    def step(self) -> None:
        """Note that a step is done; the next one begins."""
        self._times.append(time.monotonic() - self._began)
        self.begin()

    @property
    def still(self) -> float:
        """Seconds without progress."""
        return self._clock - self._mark

    @property
    def usual(self) -> float:
        """The usual time of a step in seconds; infinite while there were few."""
        return median(self._times) if len(self._times) >= FEW else math.inf

    @property
    def limit(self) -> float:
        """Seconds without progress after which something is wrong."""
        return max(LEAST, TIMES * self.usual)

    def due(self) -> bool:
        """Whether it is time to ask why there is no progress."""
        return self.still >= LEAST and self.still >= self.limit and self._clock >= self._again

    def rest(self, seconds: float) -> None:
        """Do not ask again for this long."""
        self._again = self._clock + seconds
