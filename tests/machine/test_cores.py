"""Cores, by files of /proc, /sys and cgroups that are written here: the real load decides nothing."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flowimg.cli import main
from flowimg.jobs import doctor
from flowimg.jobs.train.sharing import watch_cores
from flowimg.machine import cores
from flowimg.machine.cores import Neighbours

SPINS = {"GOMP_SPINCOUNT": cores.SPINS}
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(cpus, {path: text})`: these are the CPUs that this process may use, and the files of the system."""

    def machine(cpus, files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus), raising=False)
        monkeypatch.setattr(cores, "ROOT", tmp_path)
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)

    return machine


def siblings(pairs):
    """The files that say which CPUs are hyperthreads of one core."""
    where = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {where.format(cpu): f"{pair[0]},{pair[-1]}\n" for pair in pairs for cpu in pair}


V2, V1 = "0::/user/run\n", "5:memory:/x\n3:cpu,cpuacct:/box/run\n0::/\n"
LIMITS = "sys/fs/cgroup/user"


@pytest.mark.parametrize(
    ("cpus", "files", "threads", "workers"),
    [
        (range(8), {}, 8, 8),
        (range(8), siblings([(n, n + 4) for n in range(4)]), 4, 8),
        ([0, 1, 4], siblings([(n, n + 4) for n in range(4)]), 2, 3),
        (range(64), {"proc/self/cgroup": V2, f"{LIMITS}/run/cpu.max": "200000 100000\n"}, 2, 2),
        (range(64), {"proc/self/cgroup": V2, f"{LIMITS}/run/cpu.max": "max 100000\n"}, 64, 64),
        (range(64), {"proc/self/cgroup": V2, f"{LIMITS}/cpu.max": "300000 100000\n"}, 3, 3),
        (range(64), {"proc/self/cgroup": "0::/gone\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1, 1),
        (range(4), {"proc/self/cgroup": V2, f"{LIMITS}/cpu.max": "800000 100000\n"}, 4, 4),
        (
            range(64),
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/box/run/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/box/run/cpu.cfs_period_us": "100000\n",
            },
            4,
            4,
        ),
        (
            range(64),  # a container whose own folder is mounted as the root of all
            {
                "proc/self/cgroup": "4:cpu:/docker/123\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
            1,
        ),
        (range(8), {"proc/self/cgroup": "what is this\n", "sys/fs/cgroup/cpu.max": "\n"}, 8, 8),
    ],
    ids=[
        "plain", "hyperthreads", "some cores", "limit", "no limit", "limit above", "half a core", "larger limit",
        "version 1", "container of version 1", "unreadable",
    ],
)  # fmt: skip
def test_threads_are_for_the_cores_that_a_process_may_use(machine, cpus, files, threads, workers):
    machine(cpus, files)
    assert (cores.threads(), cores.cores()) == (threads, workers)


@pytest.mark.parametrize(
    ("users", "files", "ours"),
    [
        ({}, {}, SPINS),
        ({"OMP_WAIT_POLICY": "active"}, {}, {}),
        ({"GOMP_SPINCOUNT": "7"}, {}, {}),
        ({"KMP_BLOCKTIME": "infinite"}, {}, {}),
        ({}, siblings([(0, 2), (1, 3)]), SPINS | {"OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "4"}, siblings([(0, 2), (1, 3)]), SPINS),
        (
            {"OMP_WAIT_POLICY": "passive"},
            {"proc/self/cgroup": V2, f"{LIMITS}/cpu.max": "100000 100000"},
            {"OMP_NUM_THREADS": "1"},
        ),
    ],
    ids=["nothing", "policy", "spins", "time", "hyperthreads", "the user's threads", "limit"],
)
def test_variables_of_openmp_are_set_where_the_user_has_set_none(machine, users, files, ours):
    machine(range(4), files)
    environ = dict(users)
    cores.set_defaults(environ)
    assert environ == users | ours


def test_every_door_sets_them_before_torch_is_loaded():
    """Every door imports a module of flowimg first, and so the package: a script, a worker, `python -m`, a notebook."""
    look = "import os, sys, flowimg.data.workers; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    env = {name: value for name, value in os.environ.items() if name not in cores.WAITING}
    done = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [cores.SPINS, "False"]


# --- other processes -------------------------------------------------------------------------------------------------


def stat(*used, steal=0.0, idle=9.0):
    """A /proc/stat after each CPU was used for so many seconds."""
    lines = [
        f"cpu{n} {round(TICKS * seconds / 2)} 0 {round(TICKS * seconds / 2)} {round(TICKS * idle)} 5 0 0 "
        f"{round(TICKS * steal)} 0 0\n"
        for n, seconds in enumerate(used)
    ]
    return "".join(["cpu  1 2 3 4\n", *lines, "intr 7 8 9\n"])


@pytest.fixture
def seen(machine, monkeypatch):
    """`seen(cpus, before, after, own, threads)`: what is found of two seconds in which /proc/stat changed so."""

    def seen(cpus, before, after, own=0.0, threads=2, seconds=2.0):
        clock = SimpleNamespace(now=100.0, own=1.0)
        monkeypatch.setattr(cores, "time", SimpleNamespace(monotonic=lambda: clock.now))
        monkeypatch.setattr(os, "times", lambda: (clock.own / 2, clock.own / 2, 0.0, 0.0, 7.0))
        machine(cpus, {} if before is None else {"proc/stat": before})
        neighbours = Neighbours()
        machine(cpus, {} if after is None else {"proc/stat": after})
        clock.now, clock.own = clock.now + seconds, clock.own + own
        try:
            return neighbours.look(threads)
        finally:
            neighbours.close()

    return seen


@pytest.mark.parametrize(
    ("used", "own", "threads", "others"),
    [
        ((0.0, 0.0), 0.0, 2, None),
        ((2.0, 2.0), 4.0, 2, None),
        ((2.0, 0.2), 2.0, 2, None),
        ((2.0, 2.0), 2.0, 2, 1.0),
        ((2.0, 2.0), 2.0, 1, None),
        ((2.0, 2.0), 0.6, 1, 1.7),
        ((2.0, 2.0), 0.0, 2, 2.0),
        ((2.0, 1.0), 0.0, 2, 1.5),
        ((2.0, 2.0), 9.0, 2, None),
    ],
    ids=[
        "idle", "our own", "noise", "one beside two threads", "one beside one thread", "two beside one thread",
        "two beside two threads", "one and a half", "more of our own than there is",
    ],
)  # fmt: skip
def test_others_are_said_where_they_leave_less_than_the_threads_need(seen, used, own, threads, others):
    found = seen(range(2), stat(0, 0), stat(*used), own, threads)
    assert found == (None if others is None else pytest.approx(others, abs=0.02))


@pytest.mark.parametrize(("used", "others"), [(0.0, None), (2.0, 2.0)])
def test_more_threads_than_cores_do_not_make_others_of_this_process_nor_more_threads(seen, monkeypatch, used, others):
    monkeypatch.setattr(cores, "hold_pool", lambda count, release: pytest.fail(f"{count} threads"))
    monkeypatch.setenv("GOMP_SPINCOUNT", cores.SPINS)
    assert seen(range(2), stat(0, 0), stat(used, used), threads=8) == (None if others is None else pytest.approx(2))


def test_small_processes_on_many_cores_are_none(seen):
    assert seen(range(64), stat(*[0] * 64), stat(*[2.0, *[0] * 63]), own=0.4, threads=64) is None  # 0.8 of a core
    assert seen(range(64), stat(*[0] * 64), stat(*[2.0, *[0] * 63]), threads=64) == pytest.approx(1)


def test_what_living_children_use_is_not_of_others(machine):
    fields = "R 1 " + "0 " * 9 + "{} {} {} {} 20 0"
    machine(range(2), {
        "proc/stat": stat(9, 9),
        "proc/self/task/1/children": "12 13 ", "proc/self/task/2/children": "",
        "proc/12/stat": f"12 (a) b) {fields.format(TICKS, 2 * TICKS, 0, 0)}", "proc/12/task/12/children": "14",
        "proc/13/stat": f"13 (c) {fields.format(0, TICKS, 4 * TICKS, TICKS)}", "proc/13/task/13/children": "",
        "proc/14/stat": f"14 (d) {fields.format(8 * TICKS, 0, 0, 0)}",
    })  # fmt: skip
    assert cores._children_seconds("self") == 3 + 6 + 8
    assert cores._used(range(2))[2] == pytest.approx(sum(os.times()[:4]) + 17, abs=1)


def test_of_many_cores_some_may_be_used_by_others(seen):
    busy = [2.0] * 30 + [0.0] * 34
    assert seen(range(64), stat(*[0] * 64), stat(*busy), threads=32) is None
    assert seen(range(64), stat(*[0] * 64), stat(*busy), own=4.0, threads=62) == pytest.approx(28, abs=0.1)


def test_cores_that_this_process_may_not_use_do_not_count(seen):
    assert seen([1], stat(0, 0), stat(2, 0), threads=1) is None
    assert seen([0], stat(0, 0), stat(2, 0), threads=1) == pytest.approx(1, abs=0.02)


def test_cores_that_the_host_takes_away_count_as_used(seen):
    assert seen(range(2), stat(0, 0), stat(2, 2, steal=1.0), own=4.0) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, "x"), ("x", None), ("x", "x")])
def test_nothing_is_said_where_it_cannot_be_known(seen, before, after):
    full = {"x": "cpu 1 2 3 4\nbtime 5\n", None: None}
    assert seen(range(2), full[before], full[after]) is None


def test_nothing_is_said_of_too_short_a_time(seen):
    assert seen(range(2), stat(0, 0), stat(2, 2), seconds=0.1) is None


# --- how long threads spin -------------------------------------------------------------------------------------------


@pytest.fixture
def shared(machine, monkeypatch):
    """`shared(True)`: from now on others use both cores, and a second passes; `shared(False)`: they use none."""
    clock = SimpleNamespace(now=100.0, used=0.0)
    monkeypatch.setattr(cores, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(os, "times", lambda: (1.0, 0.0, 0.0, 0.0, 7.0))

    def shared(busy):
        clock.now += 1
        clock.used += busy
        machine(range(2), {"proc/stat": stat(clock.used, clock.used)})

    machine(range(2), {"proc/stat": stat(0, 0)})
    return shared


@pytest.fixture
def pools(monkeypatch):
    """The number of threads that hold a second pool of OpenMP's threads, now."""
    held = []

    def hold(count, release):
        held.append(count)
        release.wait()
        held.remove(count)

    monkeypatch.setattr(cores, "hold_pool", hold)
    for name in cores.PLACES:
        monkeypatch.delenv(name, raising=False)
    for name in cores.WAITING:
        monkeypatch.delenv(name, raising=False)
    return held


def test_threads_spin_for_less_while_the_machine_is_shared(shared, pools):
    cores.set_defaults(os.environ)
    neighbours = Neighbours()
    for busy in (False, True, True, False, False, True):
        shared(busy)
        assert (neighbours.look(2) is not None) == busy
        assert pools == [2] * busy
    neighbours.close()
    assert pools == []


def test_threads_spin_as_the_user_asks(shared, pools, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    cores.set_defaults(os.environ)
    neighbours = Neighbours()
    shared(True)
    assert neighbours.look(2) == pytest.approx(2)
    assert pools == []


@pytest.fixture
def places(monkeypatch):
    """Where the threads of a team were put, in turn."""
    put = []
    monkeypatch.setattr(cores, "place_team", put.append)
    return put


@pytest.mark.parametrize(
    ("barriers", "variable", "found"),
    [
        (True, None, [[{0}, {1}], [{0, 1}, {0, 1}], [{0}, {1}], [{0, 1}, {0, 1}]]),
        (False, None, []),
        (True, "OMP_PROC_BIND", []),
        (True, "GOMP_CPU_AFFINITY", []),
    ],
)
def test_threads_with_barriers_inside_have_a_core_each_while_the_machine_is_shared(
    shared, pools, places, monkeypatch, barriers, variable, found
):
    """Both threads of a U-Net were put on one core: 8 samples/s beside another training, of 119 without."""
    if variable:
        monkeypatch.setenv(variable, "0 1")
    cores.set_defaults(os.environ)
    neighbours = Neighbours(barriers)
    for busy in (False, True, True, False, True):
        shared(busy)
        neighbours.look(2)
    neighbours.close()
    neighbours.close()
    assert places == found


def test_fewer_threads_than_cores_stay_where_the_scheduler_puts_them(machine, monkeypatch, pools, places):
    machine(range(3), {"proc/stat": stat(0, 0, 0)})
    cores.set_defaults(os.environ)
    neighbours = Neighbours(True)
    neighbours.before = (neighbours.before[0] - 1, *neighbours.before[1:])
    machine(range(3), {"proc/stat": stat(9, 9, 9)})
    assert neighbours.look(2) is not None
    assert pools == [3]
    neighbours.close()
    assert places == []


def test_one_thread_waits_for_none(shared, pools):
    cores.set_defaults(os.environ)
    neighbours = Neighbours()
    shared(True)
    assert neighbours.look(1) == pytest.approx(2)
    assert pools == []


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in /proc")
def test_a_second_pool_of_threads_lives_as_long_as_it_is_held(monkeypatch):
    monkeypatch.setattr(cores, "ROOT", Path("/"))
    if "libgomp" not in Path("/proc/self/maps").read_text():
        pytest.skip("torch has another OpenMP here")
    before, release = set(os.listdir("/proc/self/task")), threading.Event()
    thread = threading.Thread(target=cores.hold_pool, args=(3, release))
    thread.start()
    while len(set(os.listdir("/proc/self/task")) - before) < 3:
        assert thread.is_alive()
    release.set()
    thread.join()
    while set(os.listdir("/proc/self/task")) - before:
        pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads have no places here")
def test_each_thread_of_a_team_but_the_first_is_put_on_its_cpus(monkeypatch):
    monkeypatch.setattr(cores, "ROOT", Path("/"))
    if "libgomp" not in Path("/proc/self/maps").read_text():
        pytest.skip("torch has another OpenMP here")
    every, found = os.sched_getaffinity(0), []

    def team():
        before = set(os.listdir("/proc/self/task"))
        for cpus in ({min(every)}, every):
            cores.place_team([{min(every)}, cpus])
            more = set(os.listdir("/proc/self/task")) - before
            found.append((os.sched_getaffinity(0), [os.sched_getaffinity(int(task)) for task in more]))

    thread = threading.Thread(target=team)
    thread.start()
    thread.join()
    (first, put), (last, back) = found
    assert first == last == every
    assert ({min(every)} in put and {min(every)} not in back) or len(every) == 1


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_run_says_once_that_the_machine_is_shared(shared, pools):
    said = []
    with watch_cores(torch.device("cpu"), False, said.append) as watch:
        watch(None)
        assert said == []
        for busy in (False, True, True, False, True):
            shared(busy)
            watch(None)
    (line,) = said
    assert line.startswith("machine   shared: other processes use 2.0 of 2 cores")
    assert pools == []


def test_it_is_in_the_first_lines_of_a_run(monkeypatch, tmp_path, sketches, capsys):
    monkeypatch.setattr(Neighbours, "look", lambda self, threads: 1.25)
    quick = ["--train.steps", "1", "--train.batch-size", "8", "--grid.count", "4", "--figures", "false"]
    main(["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "run"), *quick])
    lines = capsys.readouterr().out.splitlines()
    (said,) = [number for number, line in enumerate(lines) if "shared: other processes use 1.2 of" in line]
    assert said < next(number for number, line in enumerate(lines) if line.startswith("step 1/1"))


def test_a_run_on_a_gpu_says_nothing_of_cores(shared, pools):
    said = []
    with watch_cores(torch.device("cuda"), True, said.append) as watch:
        shared(True)
        watch(None)
    assert said == pools == []


@pytest.mark.parametrize(
    ("cpus", "threads", "others", "advice"),
    [(2, 2, 1.0, 1), (2, 2, 2.0, 1), (2, 1, 1.6, None), (64, 64, 3.9, 60), (64, 64, 64.0, 1), (64, 32, 40.0, 24)],
)
def test_a_shared_machine_is_said_with_what_it_costs_and_what_to_do(machine, cpus, threads, others, advice):
    machine(range(cpus), {})
    said = f"shared: other processes use {others} of {cpus} cores, so a step may take twice as long or more"
    said += f"; OMP_NUM_THREADS={advice} leaves them their cores" if advice else ""
    assert cores.shared_sentence(others, threads) == said


@pytest.mark.parametrize(
    ("busy", "verdict", "told"),
    [(True, "note", "shared: other processes use 2.0 of 2 cores"), (False, "ok", "other processes leave enough")],
)
def test_the_doctor_says_whether_the_machine_is_shared(shared, pools, busy, verdict, told):
    neighbours = Neighbours()
    shared(busy)
    found, sentence = doctor._cores(neighbours)
    assert found == verdict and told in sentence
