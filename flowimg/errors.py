"""Every error with an exit status of its own; the message says what is wrong, where, and how to fix it.

    1    a limit of `flowimg evaluate` was exceeded
    2    settings
    3    data, checkpoints, numbers that are not finite
    4    the environment: machine, disk, network, packages, other processes
    130  Ctrl-C
    143  preempted

Any other error is a bug in flowimg and ends with 70 and a stack trace.
"""

from typing import Any


class FlowimgError(Exception):
    """An error that a user can fix: one message, no stack trace."""

    exit_status = 70


class SettingsError(FlowimgError):
    """The settings cannot be used; the message says which, why, and how to fix it."""

    exit_status = 2


class DataError(FlowimgError):
    """The data cannot be used; the message says what is wrong, where, and how to fix it.

    `result` is the result of the verb up to the failure, for `--json`.
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
    """Too many steps in a row had NaN or inf in loss or gradient; `step` is the last of them."""

    exit_status = 3

    def __init__(self, step: int, in_row: int) -> None:
        super().__init__(f"loss or gradient was not finite at {in_row} steps in a row, the last of them step {step}")
        self.step = step


class MachineError(FlowimgError):
    """The machine or the launch does not fit the job; the message says what to change."""

    exit_status = 4


class CacheError(FlowimgError):
    """The cache folder cannot be used; the message says which folder, and how to choose another."""

    exit_status = 4


class WorkerError(FlowimgError):
    """A decoder process died; the message says what may have killed it."""

    exit_status = 4


class ExtractorError(FlowimgError):
    """The network for features is unavailable or cannot be used; the message says why."""

    exit_status = 4


class GateError(FlowimgError):
    """The samples are worse than a limit allows; the message says by how much."""

    exit_status = 1


class PageError(FlowimgError):
    """A visitor of the page requested something out of bounds; the message says what is allowed."""

    exit_status = 2


class Stopped(BaseException):
    """A run stopped on request, after saving. Not an Exception, so that no `except Exception` catches it."""

    def __init__(self, exit_status: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.message = message
