"""The processes of a launch: whose fault it is when they lose each other."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed.rendezvous import rendezvous

from flowimg.machine import processes
from flowimg.machine.processes import agreed, lost_others, meeting_place

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] "
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "


@pytest.mark.parametrize(
    "said",
    [
        f"Gloo connectFullMesh failed with {GLOO}SO_ERROR: Connection refused, remote=[127.0.0.1]:9215",
        f"Gloo connectFullMesh failed with {GLOO}no error",
        f"{GLOO}SO_ERROR: Connection refused, remote=[127.0.0.1]:9215",
        f"{GLOO}Connection closed by peer [10.0.0.2]:58054",
        f"{GLOO}Read error [10.0.0.2]:60313: Connection reset by peer",
        f"{GLOO}writev [10.0.0.2]:60313: Broken pipe",
        f"{GLOO}recv [10.0.0.2]:60313: No route to host",
        "[gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 7200000ms for recv operation to complete",
        f"{NCCL}remote process exited or there was a network error, NCCL version 2.21.5",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        f"{NCCL}unhandled system error, NCCL version 2.21.5\nncclSystemError: System call (e.g. socket, malloc) failed",
        "NCCL communicator was aborted on rank 1. Original reason for failure was: watchdog",
    ],
)
def test_a_connection_that_is_lost_is_no_fault_of_flowimg(said):
    assert lost_others(RuntimeError(said))


@pytest.mark.parametrize("kind", ["DistBackendError", "DistNetworkError", "DistStoreError"])
def test_errors_of_their_own_type_are_known_whatever_they_say(kind):
    assert lost_others(getattr(torch.distributed, kind)("failed to recv, got 0 bytes"))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),  # a download
        ConnectionRefusedError(111, "Connection refused"),
        OSError("HTTPSConnectionPool: Connection closed by peer, while reading gloo/README"),
        RuntimeError("Caught ConnectionResetError in thread: Connection reset by peer"),  # names no library
        RuntimeError("NCCL needs a GPU"),  # lost nothing
        RuntimeError(f"{GLOO}op.preamble.length <= op.nbytes. 6232 vs 4"),
        ValueError("Gloo connectFullMesh failed"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: str(error)[:40],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not lost_others(error)


@pytest.mark.parametrize(("kept", "place"), [(None, None), ("False", None), ("True", "living://")])
def test_where_a_launcher_keeps_its_store_the_living_meet_in_it(monkeypatch, kept, place):
    name = "TORCHELASTIC_USE_AGENT_STORE"
    monkeypatch.delenv(name, raising=False) if kept is None else monkeypatch.setenv(name, kept)
    assert meeting_place() == place


def test_a_start_does_not_see_what_the_one_before_left_in_the_store_of_the_launcher(monkeypatch):
    """The store of a launcher outlives its processes; torch reads in it whatever the last ones wrote."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "0", "WORLD_SIZE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for start in range(3):
        for where in ({}, {"rank": 0, "world_size": 1}):  # as for GPUs and as for CPUs
            found, rank, size = next(rendezvous(meeting_place(), **where, timeout=timedelta(seconds=60)))
            assert (rank, size) == (0, 1) and not found.check(["address"])
            found.set("address", str(start))


def test_the_living_agree_whoever_of_them_was_restarted_and_how_often():
    """Of three, the last was restarted alone; then the first; each time those who live now meet."""
    store = torch.distributed.HashStore()

    def meet(ranks):
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda rank: agreed(store, rank, 3), ranks))

    (before,) = set(meet([0, 1, 2]))
    with ThreadPoolExecutor(3) as pool:
        early = pool.submit(agreed, store, 2, 3)  # it finds what the first one of before wrote
        time.sleep(0.3)
        assert not early.done()
        (now,) = set(meet([0, 1]))
        assert early.result() == now != before
    (last,) = set(meet([2, 1, 0]))
    assert last not in (before, now)


@pytest.mark.parametrize("first_looks_again", [True, False])
def test_who_is_started_again_while_they_meet_is_among_them_or_fails(first_looks_again, monkeypatch):
    """The second of three wrote its name, died, and was started again before, or after, the third wrote its own."""
    monkeypatch.setattr(processes, "MISSED", 0.2)
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(agreed, store, 0, 3)
        name = store.get("first").decode()
        store.set(f"{name} met 1", "of one that died")
        time.sleep(0.2)  # the first has read it
        second = pool.submit(agreed, store, 1, 3) if first_looks_again else None
        while first_looks_again and store.get(f"{name} met 1") == b"of one that died":
            time.sleep(0.01)
        assert agreed(store, 2, 3) == first.result() == name
        if second:
            assert second.result() == name
        else:
            with pytest.raises(torch.distributed.DistStoreError, match="met before this one was started again"):
                agreed(store, 1, 3)
