"""stdout and stderr of a process, whatever they are: closed, a pipe that nobody reads, in another encoding.

A process may start without them (`>&-`, cron, a daemon, pythonw). The next file that it opens would then get their
numbers, and what is printed, or written by a library to file 1 or 2, would land in that file: a checkpoint, perhaps.
"""

import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, TextIO

from flowimg.names import printed


def open_streams() -> None:
    """Open what the process started without; characters that a stream's encoding lacks are escaped, not an error."""
    taken = os.open(os.devnull, os.O_RDWR)
    while taken <= 2:  # the lowest free number, so the ones that are missing are taken in turn
        os.set_inheritable(taken, True)  # a worker must not start without it
        taken = os.open(os.devnull, os.O_RDWR)
    os.close(taken)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  to the end of the process
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: Any) -> None:
    """Send what is still in a stream, and all that comes, nowhere: otherwise Python would complain at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Words:
    """A stream for what a verb prints, with these names in one line each; everything else is the stream's.

    Where `lasting`, a stream that fails (its reader left, the terminal was closed, the disk of a log is full) is
    silenced, and the work continues.
    """

    def __init__(self, stream: TextIO, names: Collection[str], lasting: bool) -> None:
        self._stream, self._names, self._lasting = stream, names, lasting

    def write(self, text: str) -> int:
        """Write text; its length."""
        self._do(lambda: self._stream.write(printed(text, self._names)))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._do(self._stream.flush)

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError:
            if not self._lasting:
                raise
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
