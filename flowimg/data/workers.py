"""Processes that decode pictures for the run: started on demand; they ignore signals and exit with their parent.

A scheduler sends a signal to the whole process group; the run decides what to do, and its workers finish their tasks.
Each is a new Python process that imports Pillow and numpy but not torch (0.3 s), reads tasks from its stdin and writes
results to its stdout. So the main module is not imported a second time, and however the parent ends, its workers' input
ends too.
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
from flowimg.machine.cores import cores

Task = TypeVar("Task")
Result = TypeVar("Result")

FIRST = 1.0
"""Seconds of work before the first worker is started; small sets are then done already."""
AHEAD = 4
"""Most waiting tasks for each worker, so that memory is bounded."""
GRACE = 30.0
"""Seconds for a worker to finish its task when its pool is closed."""
IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def share_of_cores() -> int:
    """Number of cores for workers if each process of a launch keeps one for its own work; at least 1."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


class Pool:
    """Worker processes, each started when it is first needed; a thread of this process waits for each."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, "worker")
        self._mine = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def submit(self, do: Callable[[Task], Result], task: Task) -> "Future[Result]":
        """Do a task; `do` is a function at the top level of a module that does not import torch.

        The future raises what `do` raised, or WorkerError if the process died.
        """
        return self._threads.submit(self._ask, do, task)

    def close(self) -> None:
        """Finish the tasks that have begun, and cancel the others."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            # in a thread, because one that still writes to a hanging worker holds the pipe's lock
            threading.Thread(target=_close, args=(process.stdin,), daemon=True).start()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:  # it hangs, or was suspended
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
            succeeded, found = pickle.load(process.stdout)  # safe: from our own process
        except (OSError, EOFError, pickle.UnpicklingError):
            status = process.wait()
            reason = "signal 9, usually for lack of memory" if status == -9 else f"exit status {status}"
            raise WorkerError(
                f"a process that decodes pictures died ({reason}): use a smaller --data.workers, or give the machine "
                "more memory; the same command resumes the run"
            ) from None
        if not succeeded:
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
        # the working directory may contain anything, even a subprocess.py
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"},
        start_new_session=True,  # so that a terminal's Ctrl-C reaches only the run
    )


def _work() -> None:
    """Do tasks until the input ends."""
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not mix with the results
    while True:
        try:
            do, task = pickle.load(tasks)
        except (EOFError, pickle.UnpicklingError):  # no task, or half of one from a parent that was killed
            return
        try:
            answer: tuple[bool, Any] = True, do(task)
        except Exception as error:
            answer = False, error
        with suppress(BrokenPipeError):
            pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
            results.flush()


def spread(do: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The results of tasks, in order; this process does the tasks of the first second, workers do the others.

    Args:
        do: A function at the top level of a module that does not import torch.
        tasks: Read only a little ahead of the results.
        workers: Most processes; with 1, this process does everything.

    Raises:
        WorkerError: If one of them died.
    """
    tasks, began = iter(tasks), time.monotonic()
    for task in tasks:
        yield do(task)
        if workers > 1 and time.monotonic() - began > FIRST:
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
