"""The processes of a launch: meeting, sharing work, leaving together."""

import atexit
import gc
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

from flowimg.errors import MachineError
from flowimg.machine.device import keep_memory, pick_device

Item = TypeVar("Item")

PATIENCE = timedelta(hours=2)
"""How long processes wait for one that fetches data or draws; ten minutes, NCCL's own, are soon over."""


def alone(verb: str) -> None:
    """Refuse several processes where they would all do the same work and write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MachineError(f"flowimg {verb} runs on one process for now: start it without a launcher")


def processes(verb: str) -> PartialState:
    """All processes of a launch, for work that they share.

    Raises:
        MachineError: If they do not see each other.
    """
    get_ready()
    state = PartialState(cpu=pick_device().type == "cpu", timeout=PATIENCE)
    check_launch(state.num_processes, verb)
    return state


def get_ready() -> None:
    """What a process does before it meets others; see `leave_together`."""
    keep_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # its functions keep, for ever, the group that there is when it is imported, as torch's compiler does
        import torch.distributed.nn.functional  # noqa: F401


def leave_together() -> None:
    """Wait for all processes; at the exit of this one, take their group apart before Python does.

    One that went ahead, or left the group's threads to the interpreter's end, may be aborted, and its launcher would
    then kill the others and call the launch a failure.
    """
    PartialState().wait_for_everyone()
    if torch.distributed.is_initialized():
        atexit.register(_take_apart)


def _take_apart() -> None:
    PartialState().destroy_process_group()
    gc.collect()  # the threads end with the last that holds the group, which may be a cycle


def is_first() -> bool:
    """Whether this is the first of the processes that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def lost_others(error: Exception) -> bool:
    """Whether a process of many fails because another one, which told why, has ended."""
    return isinstance(error, torch.distributed.DistError) or "closed by peer" in str(error)


def check_launch(processes: int, verb: str) -> None:
    """Refuse processes that were launched together and do not see each other.

    Raises:
        MachineError: With the launch that works.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > processes:
        raise MachineError(
            f"{launched} processes were launched, but each sees only itself and would write the same files: on a CPU "
            f"launch with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N scripts/{verb}.py`"
        )


def share(items: Sequence[Item], process: int, processes: int) -> Sequence[Item]:
    """The items that are this process's: all of them are shared out, in order, as evenly as they go."""
    return items[len(items) * process // processes : len(items) * (process + 1) // processes]
