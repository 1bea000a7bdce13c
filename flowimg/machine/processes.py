"""The processes of a launch: meeting, sharing work, leaving together."""

import atexit
import gc
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlparse
from uuid import uuid4

import torch
from accelerate import PartialState
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from flowimg.errors import MachineError
from flowimg.machine.device import keep_memory, pick_device

Item = TypeVar("Item")

PATIENCE = timedelta(hours=2)
"""How long processes wait for another that downloads data or draws; NCCL's default of ten minutes is too short."""
LOOK, MISSED = timedelta(seconds=1), 300.0
"""How long a process waits for the first one before it looks whether that one was replaced, and the seconds for which
it looks again after the others met without it; longer than those take to find out that a process was lost."""
LIBRARY = re.compile(r"\bgloo/|\bGloo\b|\bNCCL\b|\bnccl[A-Z]")
"""The libraries that connect processes, as their errors name them: gloo by its files or functions."""
LOST = re.compile(
    "connectFullMesh|closed by peer|reset by peer|[Cc]onnection refused|Broken pipe|No route to host|[Tt]imed out"
    "|ncclRemoteError|ncclSystemError|communicator was aborted|remote process exited"
)
"""What they say when a connection is lost or was never made."""


def one_process(verb: str) -> None:
    """Refuse several processes, which would all do the same work and write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MachineError(f"flowimg {verb} runs on one process for now: start it without a launcher")


def processes(verb: str) -> PartialState:
    """The processes of a launch, for work that they share.

    Raises:
        MachineError: If they do not see each other.
    """
    get_ready()
    state = PartialState(cpu=pick_device().type == "cpu", timeout=PATIENCE, init_method=meeting_place())
    check_launch(state.num_processes, verb)
    return state


def get_ready() -> None:
    """Prepare a process for meeting the others."""
    keep_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # this module keeps the process group that exists when it is first imported, by torch's compiler for example
        import torch.distributed.nn.functional  # noqa: F401


def meeting_place() -> str | None:
    """How the processes of a launch find each other, as an `init_method` of torch; None for torch's own.

    torchrun and accelerate keep the store of a launch when they restart its processes, who would read in it the
    addresses of those before them, which are gone: those who live now therefore agree on a part of the store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    _know_the_living()
    return "living://"


@cache
def _know_the_living() -> None:
    def find(url: str, **how: Any) -> Iterator[tuple[torch.distributed.Store, int, int]]:
        for store, rank, size in rendezvous(f"env://?{urlparse(url).query}", **how):
            yield torch.distributed.PrefixStore(agreed(store, rank, size), store), rank, size

    register_rendezvous_handler("living", find)


def agreed(store: torch.distributed.Store, rank: int, processes: int) -> str:
    """A name that only those processes know which live now, however often each of them was restarted.

    The first process makes a name; the others write theirs under it. It has all that it waited for when it tells them
    whom it met; who is not among them was misled by a first process of before, and looks again.

    Raises:
        DistStoreError: If the others met without this process, which was restarted meanwhile.
    """
    own = uuid4().hex
    if rank == 0:
        store.set("first", own)
        met, before = [""] * processes, [""]
        while met != before:  # one that was started again has another name by now
            met, before = [store.get(f"{own} met {other}").decode() for other in range(1, processes)], met
        store.set(f"{own} met all", " ".join(met))
        return own
    until = math.inf
    while time.monotonic() < until:
        first = store.get("first").decode()
        store.set(f"{first} met {rank}", own)
        with suppress(torch.distributed.DistStoreError):
            store.wait([f"{first} met all"], LOOK)
            if own in store.get(f"{first} met all").decode().split():
                return first
            until = min(until, time.monotonic() + MISSED)
        time.sleep(0.1)
    raise torch.distributed.DistStoreError("the other processes met before this one was started again")


def leave_together() -> None:
    """Wait for all processes; when this one exits, destroy the process group before Python shuts down.

    A process that exits earlier, or with threads of the group still running, may be aborted; the launcher would then
    kill the others and report a failure.
    """
    PartialState().wait_for_everyone()
    if torch.distributed.is_initialized():
        atexit.register(_destroy_group)


def _destroy_group() -> None:
    PartialState().destroy_process_group()
    gc.collect()  # the threads end when nothing refers to the group, and a reference cycle may


def is_first() -> bool:
    """Whether this is the first process of the launch."""
    return os.environ.get("RANK", "0") == "0"


def lost_others(error: BaseException) -> bool:
    """Whether this process fails because another one has ended, which reported why, or cannot be reached.

    Such an error comes from torch.distributed: it has a type of its own, or it is a RuntimeError from C++ that names
    its library. A connection that is lost elsewhere, as in a download, is an OSError or names no such library.
    """
    if isinstance(error, torch.distributed.DistError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and bool(LIBRARY.search(said) and LOST.search(said))


def check_launch(processes: int, verb: str) -> None:
    """Refuse processes that were launched together but do not see each other.

    Raises:
        MachineError: With a launch command that works.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > processes:
        raise MachineError(
            f"{launched} processes were launched, but each sees only itself and would write the same files: on a CPU "
            f"launch with `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N scripts/{verb}.py`"
        )


def share(items: Sequence[Item], process: int, processes: int) -> Sequence[Item]:
    """The items of this process: all items are divided among the processes in order, as evenly as possible."""
    return items[len(items) * process // processes : len(items) * (process + 1) // processes]
