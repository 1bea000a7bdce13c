"""Processes that decode: in order, honest about what went wrong, deaf to signals, gone with their parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import tasks
from pictures_made import content, picture
from survival import wait_for

from flowimg.data import workers
from flowimg.data.decode import Decoding, decode_some
from flowimg.data.pictures import Encoded
from flowimg.data.scan import look
from flowimg.data.sources.shards import kept_or_read
from flowimg.data.workers import Pool, share_of_cores, spread
from flowimg.errors import WorkerError
from flowimg.machine.cores import cores


@pytest.fixture
def helped(monkeypatch):
    """No task but the first is done here."""
    monkeypatch.setattr(workers, "FIRST", -1)


@pytest.fixture
def pool():
    pool = Pool(1)
    yield pool
    pool.close()


@pytest.mark.parametrize("count", [0, 1, 2, 40])
@pytest.mark.parametrize("many", [1, 3])
def test_results_come_in_the_order_of_the_tasks(helped, count, many):
    assert list(spread(tasks.late, range(count), many)) == [number**2 for number in range(count)]


def test_small_sets_are_done_here():
    assert set(spread(tasks.process, range(30), 4)) == {os.getpid()}


def test_what_takes_long_is_spread_over_so_many_processes(helped):
    found = list(spread(tasks.process, range(60), 3))
    assert found[0] == os.getpid() and os.getpid() not in found[1:] and 1 < len(set(found[1:])) <= 3
    assert set(spread(tasks.process, range(30), 1)) == {os.getpid()}


def test_tasks_are_read_only_a_little_ahead(helped):
    read = []

    def reading():
        for number in range(1000):
            read.append(number)
            yield number

    results = spread(tasks.late, reading(), 2)
    for _ in range(10):
        next(results)
    assert len(read) <= 10 + workers.AHEAD * 2
    results.close()


def test_results_that_are_left_end_the_processes(helped):
    results = spread(tasks.process, range(1000), 2)
    next(results)
    number = next(results)
    results.close()
    assert not alive(number)


@pytest.mark.parametrize("many", [1, 2])
def test_what_a_task_raises_is_raised_as_it_is(helped, many):
    with pytest.raises(tasks.OddError, match="five is odd") as caught:
        list(spread(tasks.fail, range(9), many))
    assert caught.value.number == 5


def test_a_process_that_raised_goes_on(pool):
    with pytest.raises(tasks.OddError):
        pool.submit(tasks.fail, 5).result()
    assert pool.submit(tasks.fail, 6).result() == 6
    assert len(pool._all) == 1


@pytest.mark.parametrize(("do", "how"), [(tasks.die, "signal 9"), (tasks.leave, "exit status 7")])
def test_a_process_that_died_is_one_sentence_that_names_the_setting(pool, do, how):
    with pytest.raises(WorkerError) as caught:
        pool.submit(do, 3).result()
    said = str(caught.value)
    assert how in said and "--data.workers" in said and "memory" in said and "\n" not in said
    assert caught.value.exit_status == 4
    with pytest.raises(WorkerError):  # and does not hang whoever asks again
        pool.submit(tasks.process, 0).result()


def test_a_process_that_died_among_others_ends_the_work(helped):
    found = spread(tasks.die, range(100), 3)
    with pytest.raises(WorkerError):
        list(found)


def test_signals_to_the_group_are_for_the_run(pool):
    number, group = pool.submit(tasks.here, None).result()
    assert group == number != os.getpgrp()  # a terminal's Ctrl-C does not even reach it
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        os.kill(number, getattr(signal, name))
    assert pool.submit(tasks.process, None).result() == number
    working = pool.submit(tasks.slow, 0.3)
    time.sleep(0.1)
    os.kill(number, signal.SIGTERM)
    assert working.result() == 0.3


def alive(number):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("busy", [0, 1])
def test_workers_are_gone_when_their_parent_is_killed(busy):
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(root / "tests/tasks.py"), str(busy)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    )
    numbers = list(map(int, parent.stdout.readline().split()))
    assert len(numbers) == 2 and all(map(alive, numbers))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not any(map(alive, numbers)))


def test_a_closed_pool_leaves_no_process_and_no_thread():
    pool = Pool(3)
    numbers = {pool.submit(tasks.process, None).result() for _ in range(9)}
    pool.close()
    assert not any(map(alive, numbers))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]


def test_what_workers_do_needs_no_torch(pool, tmp_path):
    how = Decoding(3, (6, 6), "crop", (0, 0, 0))
    encoded = [Encoded(content(picture(3)))]
    assert (pool.submit(partial(decode_some, how), encoded).result()[0] == 3).all()
    assert pool.submit(look, encoded).result()[0].kind == "RGB PNG"
    read = partial(kept_or_read, cache=tmp_path, image=None, label=None)
    (tmp_path / "a.tar").write_bytes(b"no tar")
    assert "is no tar file" in pool.submit(read, str(tmp_path / "a.tar")).result()
    loaded = pool.submit(tasks.modules, None).result()
    assert "flowimg.data.decode" in loaded and "flowimg.data.sources.shards" in loaded
    assert not {"torch", "torchvision", "datasets", "pandas"} & set(loaded)


def test_what_is_printed_does_not_come_among_the_results(pool, capfd):
    assert pool.submit(tasks.chatter, 12).result() == 12
    assert pool.submit(tasks.chatter, 13).result() == 13
    out, err = capfd.readouterr()
    assert out == "" and "hello from the worker" in err


def test_results_larger_than_a_pipe_come_through(pool):
    assert len(pool.submit(tasks.large, 3_000_000).result()) == 3_000_000


def test_a_result_that_cannot_be_sent_does_not_hang(pool):
    with pytest.raises(WorkerError):
        pool.submit(tasks.unsendable, None).result()


@pytest.mark.parametrize(("processes", "beside"), [(None, 15), ("1", 15), ("4", 3), ("16", 1), ("64", 1)])
def test_cores_are_shared_by_the_processes_of_a_launch(monkeypatch, processes, beside):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert cores() == 16 and share_of_cores() == beside  # one is left to each for its own work


def test_a_pool_is_closed_over_a_worker_that_was_stopped(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.5)
    pool = Pool(1)
    assert pool.submit(tasks.late, 3).result() == 9
    (process,) = pool._all
    process.send_signal(signal.SIGSTOP)
    waiting = pool.submit(tasks.large, bytes(10**7))  # more than a pipe holds: the thread waits with its lock
    time.sleep(0.2)
    pool.close()
    assert process.poll() == -signal.SIGKILL
    with pytest.raises(WorkerError):
        waiting.result()
