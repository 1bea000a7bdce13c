"""The other processes of a launch: who watches whom, and how a death is known to all."""

import itertools
import json
import os
import random
import time

import psutil
import pytest

from flowimg.runs import others as module
from flowimg.runs.others import SILENT, WRITE, Others, watched_by


@pytest.mark.parametrize(("machines", "here"), [(1, 1), (1, 2), (1, 5), (2, 1), (2, 4), (3, 2), (64, 8)])
def test_whoever_dies_is_watched_by_one_that_lives_on_the_same_machine_if_any_does(machines, here):
    count = machines * here
    watched = {p: watched_by(p, count, p % here, here) for p in range(count)}
    assert all(len(seen) <= 3 and p not in seen and set(seen) <= set(range(count)) for p, seen in watched.items())
    assert all(0 in watched[p] for p in range(1, count))
    draw = random.Random(0)
    deaths = [{p} for p in range(count)] + [set(draw.sample(range(count), draw.randint(1, count))) for _ in range(50)]
    for dead in deaths:
        living = set(range(count)) - dead
        assert not living or any(dead & set(watched[p]) for p in living)
        for machine in range(machines):
            own = set(range(machine * here, (machine + 1) * here))
            if own & dead and own & living:
                assert any(dead & own & set(watched[p]) for p in own & living)


class Launch:
    """Processes as their files describe them, all on another machine unless it is said; and what each would find."""

    def __init__(self, folder, count):
        self.folder, self.count = folder, count
        folder.mkdir()
        self.read = []
        for process in range(count):
            self.write(process)

    def write(self, process, **more):
        told = {
            "state": "running", "why": None, "stage": "training", "step": 7, "still": 0.0, "lost": None,
            "seen": time.time(), "pid": os.getpid(), "host": "elsewhere", "processes": self.count, **more,
        }  # fmt: skip
        (self.folder / f"{process}.json").write_text(json.dumps(told))

    def seen_by(self, process, monkeypatch):
        monkeypatch.setenv("RANK", str(process))
        monkeypatch.setenv("WORLD_SIZE", str(self.count))
        monkeypatch.setattr(module, "read_json", self._read)
        return Others(self.folder)

    def _read(self, path):
        self.read.append(path.name)
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """`launched(count)`: a launch, and what each of its processes would find."""

    def launched(count):
        launch = Launch(tmp_path / "processes", count)
        return launch, [launch.seen_by(process, monkeypatch) for process in range(count)]

    return launched


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass for the processes when they are added."""
    passed = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: passed[0])
    return passed


def test_each_reads_few_files_and_a_death_is_known_to_all_at_once(launched):
    launch, all_others = launched(64)
    assert [others.dead() for others in all_others] == [None] * 64
    assert len(launch.read) <= 4 * 64
    launch.write(40, state="failed", why="out of memory")
    said = f"process 40 of 64 (pid {os.getpid()} on elsewhere) ended at step 7, stage: training: out of memory"
    assert all_others[50].dead() is None  # which does not watch it
    assert all_others[39].dead() == said
    assert [others.dead() for others in all_others] == [said] * 64


def test_a_process_that_died_on_this_machine_is_found_at_once(launched):
    launch, (first, second) = launched(2)
    child = psutil.Popen(["true"])
    child.wait()
    launch.write(1, pid=child.pid, host=first.host, stage="saving")
    assert first.dead() == (
        f"process 1 of 2 (pid {child.pid} on {first.host}) died; it was last seen at step 7, stage: saving"
    )
    assert second.dead() == first.dead()  # which also knows that it is itself held for dead


def test_a_silent_process_counts_as_dead_until_it_writes_again(launched, clock):
    launch, (first, _, third) = launched(3)
    assert first.dead() is None
    clock[0] += SILENT + 1
    said = first.dead()
    assert said.startswith("process 1 of 3") and f"is silent for {SILENT:.0f} s; last at step 7" in said
    assert third.dead() == said  # which does not watch it
    launch.write(1)
    assert first.dead() is None and third.dead() is None


def test_who_ended_because_of_another_names_that_one(launched):
    launch, (first, *_) = launched(4)
    launch.write(1, state="failed", why="process 2 died; the same command continues", lost="process 2 died")
    assert first.dead() == "process 2 died"


@pytest.mark.parametrize("state", ["done", "preempted"])
def test_a_process_that_ended_well_did_not_die(launched, state):
    launch, (first, _) = launched(2)
    launch.write(1, state=state, host=first.host, pid=2**22 + 1)
    assert first.dead() is None


def test_what_an_earlier_start_wrote_is_no_news(launched):
    launch, (first, second) = launched(2)
    earlier = {"state": "failed", "why": "x", "host": first.host, "seen": first.born - 5}
    launch.write(1, **earlier)
    assert first.dead() is None
    launch.write(1, **{**earlier, "host": "elsewhere", "seen": first.born - 5})
    other = Others(launch.folder)
    assert other.dead() is None
    # the news of it are neither
    launch.write(0, **earlier)
    told = json.loads((launch.folder / "0.json").read_text())
    second.spread(0, told, "process 0 died")
    assert second.dead() == "process 0 died"
    news = json.loads((launch.folder / "dead.json").read_text())
    (launch.folder / "dead.json").write_text(json.dumps({**news, "at": second.born - 5}))
    assert second.dead() is None
    (launch.folder / "dead.json").write_text(json.dumps(news))
    second.forget()
    assert second.dead() is None


def test_a_start_whose_clock_is_behind_is_watched_once_it_is_seen_to_live(launched, clock):
    launch, (first, _) = launched(2)
    for late in (9000, 8990):
        launch.write(1, seen=first.born - late)
        assert first.dead() is None
    launch.write(1, seen=first.born - 8980, state="failed", why="no disk")
    assert first.dead().endswith("no disk")


@pytest.mark.parametrize(
    ("told", "age", "rest"),
    [
        ({"still": 58.0}, 0, 0),  # it waits in a step, too
        ({"still": 1.0}, 57, 0),  # it was stopped, or its machine is gone
        ({"still": 10.0}, 0, 50),  # it may be done with its step soon
        ({"stage": "saving", "still": 99.0}, 0, 60),
        ({"stage": "saving"}, SILENT + 1, 0),
        ({"leaving": True, "still": 99.0}, 0, 60),
        ({"stage": "preparing data"}, 0, 0),  # it was started again alone
        ({"state": "done", "still": 0.0}, 0, 0),
    ],
)
def test_a_process_waits_on_while_another_does_something_else(launched, told, age, rest):
    launch, (first, *_) = launched(3)
    launch.write(1, still=58.0)
    launch.write(2, **told)
    now = time.time()
    for process, before in itertools.zip_longest(range(3), (0, 0, age)):
        os.utime(launch.folder / f"{process}.json", (now - before, now - before))
    assert first.rest(60.0) == pytest.approx(rest, abs=0.01)


def test_who_is_quiet_is_named(launched):
    launch, (first, *_) = launched(3)
    assert first.quiet() is None
    before = time.time() - 4 * WRITE
    os.utime(launch.folder / "2.json", (before, before))
    assert first.quiet() == f"process 2 of 3 (pid {os.getpid()} on elsewhere) has given no sign of life for 20 s"


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        ({}, False),
        ({"state": "failed", "host": None, "pid": 2**22 + 1}, False),  # it wrote how the run ended
        ({"host": None, "pid": 2**22 + 1}, True),
        ({"host": None}, False),
    ],
)
def test_the_first_process_writes_how_a_run_ended_unless_it_died(launched, told, lost):
    launch, (_, second) = launched(2)
    launch.write(0, **(told | {"host": second.host} if "host" in told else told))
    assert second.first_is_lost() == lost


def test_a_first_process_on_another_machine_is_lost_when_it_is_quiet(launched):
    launch, (_, second) = launched(2)
    before = time.time() - 4 * WRITE
    os.utime(launch.folder / "0.json", (before, before))
    assert second.first_is_lost()
