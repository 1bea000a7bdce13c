"""A process that is lost or stuck ends the others, with a sentence."""

import json
import os
import time

import pytest
from survival import HANGING

from flowimg.runs import status as module
from flowimg.runs import watchdog
from flowimg.runs.folder import RunFolder
from flowimg.runs.signals import StopRequests
from flowimg.runs.status import Status


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """`launch(process)`: the status of a process of two, after ten steps of a tenth of a second."""

    def launch(process):
        monkeypatch.setenv("RANK", str(process))
        monkeypatch.setenv("WORLD_SIZE", "2")
        status = Status(RunFolder(tmp_path), 100, StopRequests())
        status.at("training")
        for step in range(11):
            status.stepped(step)
        status.watchdog._times.extend([0.1] * 100)
        return status

    return launch


def waits(status, seconds):
    """It makes no progress for this long."""
    status.watchdog.beat(seconds)
    status._tell()
    return status


def test_both_wait_in_a_step_and_both_say_so(launch):
    both = [waits(launch(process), 58) for process in range(2)]
    assert [status._stuck() for status in both] == [None, None]
    for status in both:
        status.watchdog.beat(3)
    said = (
        "no new step for 61 s after step 10, where a step takes 0.1 s: another process or the network between them "
        "does not answer"
    )
    assert [status._stuck() for status in both] == [said, said]


@pytest.mark.parametrize("stage", ["saving", "drawing samples", "evaluating", "writing the report"])
def test_nobody_is_stuck_who_waits_for_one_that_does_something_else(launch, stage):
    first, second = launch(0), waits(launch(1), 61)
    first.at(stage)
    assert second._stuck() is None
    waits(first, 61)
    assert first._stuck() is None  # nor is that one
    second.watchdog.beat(59)
    first.at("training")
    waits(first, 61)
    assert second._stuck() is None  # it is asked again after its rest
    second.watchdog.beat(2)
    assert "no new step for 122 s" in second._stuck()


def test_who_leaves_misses_no_step_nor_do_those_that_wait_for_it(launch):
    first, second = waits(launch(0), 61), waits(launch(1), 61)
    first.leaving = True
    first._tell()
    assert first._stuck() is None and second._stuck() is None


def test_what_is_done_inside_a_stage_of_its_own_is_no_step(launch):
    launch(1)
    first = launch(0)
    with first.during("evaluating on held-out data"):
        first.watchdog.beat(1000)
        assert first._stuck() is None
    assert first.stage == "training" and first.watchdog.still == 0


def test_one_process_has_no_watchdog(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(watchdog, "LEAST", 0.0)
    status = launch(0)
    status.processes = 1
    status.watchdog.beat(1000)
    assert status._stuck() is None


@pytest.fixture
def ends(monkeypatch):
    """Exit statuses with which the process would have ended at once."""
    ends = []

    def _exit(code):
        ends.append(code)
        raise SystemExit  # of this thread

    monkeypatch.setattr(module, "BEAT", 0.01)
    monkeypatch.setattr(module.os, "_exit", _exit)
    return ends


def until(what):
    limit = time.monotonic() + HANGING
    while not what():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:Exception in thread")
def test_a_process_that_is_stuck_ends_with_4_and_says_why(launch, monkeypatch, tmp_path, ends, capfd):
    waits(launch(1), 61)
    first = launch(0)
    first.watchdog.beat(61)
    with first.alive():
        until(lambda: ends)
    assert ends == [4]
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["state"], told["exit"], told["step"]) == ("failed", 4, 10)
    assert told["why"].startswith("no new step for 61 s after step 10")
    assert capfd.readouterr().err == f"flowimg: {told['why']}\n"
    assert told["why"].endswith("does not answer; the same command continues from the last checkpoint")
    # the other reports it, without saying twice how to continue
    assert launch(1).dead().count("the same command") == 0


@pytest.mark.filterwarnings("ignore:Exception in thread")
def test_a_process_that_waits_for_a_dead_one_ends_after_a_while(launch, monkeypatch, tmp_path, ends):
    monkeypatch.setattr(module, "DEAD", 0.1)
    second = launch(1)
    story = json.loads((tmp_path / "processes" / "1.json").read_text())
    (tmp_path / "processes" / "1.json").write_text(json.dumps({**story, "pid": 2**22 + 1}))
    first = launch(0)
    with first.alive():
        until(lambda: ends)
    assert ends == [4]
    why = json.loads((tmp_path / "status.json").read_text())["why"]
    assert why.startswith("process 1 of 2 (pid 4194305 on ") and "died; it was last seen at step 0" in why
    second._over.set()


def test_a_process_that_fails_tells_all_and_the_first_death_is_what_all_name(launch, tmp_path):
    first, second = launch(0), launch(1)
    second.end("failed", "disk gone", 4)
    assert (tmp_path / "processes" / "dead.json").exists()  # for those that do not watch it
    said = first.dead()
    assert said == f"process 1 of 2 (pid {os.getpid()} on {first.others.host}) ended at step 10, stage: training: " + (
        "disk gone"
    )
    first.end("failed", f"{said}; the same command continues from the last checkpoint", 4)
    assert json.loads((tmp_path / "processes" / "0.json").read_text())["lost"] == said
    assert json.loads((tmp_path / "processes" / "dead.json").read_text())["said"] == said
