"""Every error that ends `flowimg` with an exit status of its own; the message says what, where and how to mend it.

    1    a limit of `flowimg evaluate` was exceeded
    2    settings
    3    data, checkpoints, numbers that are not finite
    4    the environment: machine, disk, network, packages, other processes
    130  Ctrl-C
    143  preempted

Any other error is a fault of flowimg and ends with 70 and a stack trace.
"""

from typing import Any


class FlowimgError(Exception):
    """An error that a user can mend: one message, no stack trace."""

    exit_status = 70


class SettingsError(FlowimgError):
    """The settings cannot be used; the message says which, why, and how to mend it."""

    exit_status = 2


class DataError(FlowimgError):
    """The data cannot be used; the message says what, where, and how to mend it.

    `result` is what a verb found before it failed, for `--json`.
    """

    exit_status = 3

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result


class CheckpointError(FlowimgError):
    """A checkpoint is missing or broken; the message says which and why."""

    exit_status = 3


class FlowError(FlowimgError):
    """The flow cannot be followed; the message says why."""

    exit_status = 3


class NotFiniteError(FlowimgError):
    """Too many steps in a row were not finite; `step` is the last of them."""

    exit_status = 3

    def __init__(self, step: int, in_row: int) -> None:
        super().__init__(f"loss or gradient was not finite at {in_row} steps in a row, the last of them step {step}")
        self.step = step


class MachineError(FlowimgError):
    """The machine or the launch does not fit; the message says what to change."""

    exit_status = 4


class CacheError(FlowimgError):
    """The cache folder cannot be used; the message says which folder, and how to name another."""

    exit_status = 4


class WorkerError(FlowimgError):
    """A decoder process died; the message says what may have killed it."""

    exit_status = 4


class ExtractorError(FlowimgError):
    """The network that gives features is unavailable or cannot be used; the message says why."""

    exit_status = 4


class GateError(FlowimgError):
    """The samples are worse than a limit allows; the message says by how much."""

    exit_status = 1


class PageError(FlowimgError):
    """A visitor of the page asked for something out of bounds; the message says what is allowed."""

    exit_status = 2


class Stopped(BaseException):
    """The run was asked to end, and nothing that was saved is lost. Not an Exception: nobody may swallow it."""

    def __init__(self, exit_status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.message = message
