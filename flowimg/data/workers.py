"""Processes that decode pictures beside the run: started on demand, deaf to signals, gone when their parent is.

A scheduler's signal goes to the whole group of processes; the run decides what it means, and its workers finish what
they were given. Each is a fresh Python that imports Pillow and numpy and no torch (a third of a second), takes tasks
from its stdin and gives results on its stdout; so nobody's main module is imported a second time, and the end of the
parent, however it ends, is the end of its input.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from flowimg.errors import WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")

ALONE = 1.0
"""Seconds of work that are done without help first: small sets are done before a process has started."""
AHEAD = 4
"""Tasks a worker that wait for it at most, so that memory is bounded."""
GRACE = 30.0
"""Seconds that a worker has to end what it was given, when its pool is closed."""
IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def cores() -> int:
    """Cores that this process may use; where it was launched with others, they may use the same."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores() -> int:
    """Cores beside the one of each of the processes that were launched together on this machine; 1 at least."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


class Pool:
    """Processes to work in, each started when it is first needed; a thread here waits for each."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, "worker")
        self._mine = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def submit(self, do: Callable[[Task], Result], task: Task) -> "Future[Result]":
        """Do a task; `do` is a function at the top level of a module that imports no torch.

        The future raises what `do` raised, or WorkerError if the process died.
        """
        return self._threads.submit(self._ask, do, task)

    def close(self) -> None:
        """Let the tasks that were begun end, and no other begin."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            # beside: where a worker hangs, a thread that still writes to it holds the pipe's lock
            threading.Thread(target=_close, args=(process.stdin,), daemon=True).start()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:  # it hangs, or was stopped
                process.kill()
                process.wait()
        self._threads.shutdown()
        for process in self._all:
            process.stdout.close()  # type: ignore[union-attr]

    def _ask(self, do: Callable[[Task], Result], task: Task) -> Result:
        if not hasattr(self._mine, "process"):
            self._mine.process = _start()
            self._all.append(self._mine.process)
        process = self._mine.process
        try:
            pickle.dump((do, task), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            well, found = pickle.load(process.stdout)  # of our own process
        except (OSError, EOFError, pickle.UnpicklingError):
            how = process.wait()
            why = "signal 9: most often want of memory" if how == -9 else f"exit status {how}"
            raise WorkerError(
                f"a process that decodes pictures died ({why}): give --data.workers a smaller number, or the machine "
                "more memory; the same command goes on"
            ) from None
        if not well:
            raise found
        return found


def _close(pipe: Any) -> None:
    with suppress(OSError):
        pipe.close()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flowimg.data.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # the folder that a run is started in may hold anything, a subprocess.py as well
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"},
        start_new_session=True,  # a terminal's Ctrl-C is for the run
    )


def _work() -> None:
    """What a worker does until its input ends."""
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    given, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not come among the results
    while True:
        try:
            do, task = pickle.load(given)
        except (EOFError, pickle.UnpicklingError):  # half a task, of a parent that was killed
            return
        try:
            answer: tuple[bool, Any] = True, do(task)
        except Exception as error:
            answer = False, error
        with suppress(BrokenPipeError):
            pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
            results.flush()


def spread(do: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The results of tasks, in their order: the first second's here, what is left in so many processes.

    Args:
        do: A function at the top level of a module that imports no torch.
        tasks: Read only a little ahead of the results.
        workers: Processes at most; 1 does everything here.
    Raises:
        WorkerError: If one of them died.
    """
    tasks = iter(tasks)
    began = time.monotonic()
    for task in tasks:
        yield do(task)
        if workers > 1 and time.monotonic() - began > ALONE:
            break
    else:
        return
    pool = Pool(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(do, task))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.close()


if __name__ == "__main__":
    _work()
