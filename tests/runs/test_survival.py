"""Runs killed with real signals, in processes of their own: what continues is the run that was never stopped."""

import json
import os
import signal
import subprocess
from contextlib import suppress

import pytest
import torch
from crash import POINTS
from safetensors.torch import load_file
from survival import (
    CRASH,
    POISON,
    ROOT,
    SLOWLY,
    begin,
    finish,
    go,
    go_on,
    last_checkpoint,
    launch,
    status,
    trains,
    wait_for,
    words,
)

from flowimg.runs.folder import RunFolder
from flowimg.runs.signals import PREEMPTED, StopRequests
from flowimg.training.checkpoint import newest_whole, problem, step_folders

SCRIPT = ROOT / "scripts" / "train.py"
pytestmark = pytest.mark.usefixtures("sketches")


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """What a run ends with that was never killed, on so many processes."""
    ends = {}

    def end(processes):
        if processes not in ends:
            run = tmp_path_factory.mktemp("straight") / "run"
            before = [SCRIPT] if processes else [CRASH, "never", 0, "train"]
            go_on(processes, *before, *words(run)[1:])
            ends[processes] = last_checkpoint(run)
            assert set(ends[processes]) == {"weights.safetensors", "ema.safetensors", "optimizer.safetensors"}
        return ends[processes]

    return end


def quick(point):
    return point if point in ("half of manifest", "renamed") else pytest.param(point, marks=pytest.mark.slow)


@pytest.mark.parametrize("point", [quick(point) for point in POINTS])
def test_killed_at_any_point_of_a_save_a_run_ends_as_if_it_had_not_been(point, tmp_path, straight):
    run = tmp_path / "run"
    code, said = finish(begin(*launch(0), CRASH, point, 4, *words(run)))
    assert code == -signal.SIGKILL, said
    assert status(run)["state"] == "running"  # a killed process says no more
    checkpoints = run / "checkpoints"
    whole = [path for path in step_folders(checkpoints) if problem(path) is None]
    assert whole, "at every moment there is one"
    published = POINTS.index(point) >= POINTS.index("renamed")
    assert (newest_whole(checkpoints)[0] or whole[0]).name == f"step_0000000{4 if published else 2}"
    said = go(*launch(0), CRASH, "never", 0, *words(run))
    assert f"continued from step {4 if published else 2}" in said
    assert last_checkpoint(run) == straight(0)
    assert not list(checkpoints.glob(".*")) and (checkpoints / "latest").read_text() == "step_00000008\n"
    assert [path.name for path in step_folders(checkpoints)] == ["step_00000006", "step_00000008"]
    assert [record["step"] for record in RunFolder(run).records()] == [2, 4, 6, 8]
    assert [event["step"] for event in RunFolder(run).events()] == [0, 4 if published else 2]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["0:manifest", "0:renamed", "1:step"])
def test_one_of_two_processes_killed_ends_the_other_and_the_run_goes_on(point, tmp_path, straight):
    run = tmp_path / "run"
    code, said = finish(begin(*launch(2), CRASH, point, 4, *words(run)))
    assert code == 1, said
    if point == "1:step":  # the first process lives to tell
        assert status(run)["state"] == "failed"
        assert "process 1 of 2" in status(run)["why"] and "died" in status(run)["why"]
        assert "at step" in status(run)["why"] and "stage: training" in status(run)["why"]
    go_on(2, SCRIPT, *words(run)[1:])
    assert status(run)["state"] == "done"
    assert last_checkpoint(run) == straight(2)


STEP = ["--train.steps", "100000", "--train.checkpoint-every", "1000"]
STAGES = ("training", "drawing samples", "saving", "preparing data")
LONG_GRID = ["--grid.num-steps", "1000000", "--train.sample-every", "2"]


@pytest.mark.parametrize(
    ("stage", "name", "more"),
    [
        ("training", "SIGTERM", STEP),
        ("training", "SIGUSR1", STEP),
        ("training", "SIGINT", STEP),
        ("training", "SIGHUP", STEP),  # the terminal was closed, or the connection lost
        ("drawing samples", "SIGTERM", LONG_GRID),
        pytest.param("drawing samples", "SIGINT", LONG_GRID, marks=pytest.mark.slow),
        pytest.param("saving", "SIGTERM", [], marks=pytest.mark.slow),
        ("saving", "SIGINT", []),
        pytest.param("saving", "SIGHUP", [], marks=pytest.mark.slow),
        pytest.param("drawing samples", "SIGHUP", LONG_GRID, marks=pytest.mark.slow),
        ("preparing data", "SIGTERM", []),
        pytest.param("preparing data", "SIGINT", [], marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_any_stage_ends_the_run_and_it_goes_on(stage, name, more, tmp_path, straight):
    run = tmp_path / "run"
    process = begin(*launch(0), SLOWLY, stage, *words(run, *more))
    wait_for(lambda: status(run).get("stage") == stage and (stage != "training" or trains(run)))
    process.send_signal(getattr(signal, name))
    code, said = finish(process)
    assert code == (130 if name == "SIGINT" else 143) and "Traceback" not in said and f"stopped by {name}" in said
    told = status(run)
    assert (told["state"], told["exit"]) == ("preempted", code) and name in told["why"]
    assert not (run / "samples" / "step_00000002.png").exists()  # nor did it draw to the end
    if stage != "preparing data":
        assert newest_whole(run / "checkpoints")[0].name == f"step_{told['step']:08d}"
        assert told["saved"] == told["step"]
    if stage == "training":
        assert f"continued from step {told['step']}" in go(
            *launch(0), CRASH, "never", 0, *words(run, *more, "--train.stop-at", told["step"] + 1)
        )
    else:
        go(*launch(0), CRASH, "never", 0, *words(run))
        assert last_checkpoint(run) == straight(0)


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [(signal.SIG_DFL, PREEMPTED, signal.SIG_DFL), (signal.SIG_IGN, 0, signal.SIG_IGN), (len, PREEMPTED, len)],
    ids=["usual", "nohup", "a handler"],
)
def test_a_hangup_is_a_stop_request_unless_it_was_ignored_before(before, asked, after):
    requests, own = StopRequests(), signal.signal(signal.SIGHUP, before)
    try:
        with requests.listen(), requests.at_the_end_of_a_step():
            signal.raise_signal(signal.SIGHUP)
            assert (requests.newest, requests.by) == (asked, "SIGHUP" if asked else "")
        assert signal.getsignal(signal.SIGHUP) == after
    finally:
        signal.signal(signal.SIGHUP, own)


def test_a_second_ctrl_c_leaves_at_once_and_the_last_checkpoint_is_whole(tmp_path):
    run = tmp_path / "run"
    process = begin(*launch(0), SLOWLY, "saving without end", *words(run))
    wait_for(lambda: status(run).get("saved") == 0)

    def pressed():
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.2)  # two that come within a second are one
        return process.poll() is not None

    wait_for(pressed)
    code, said = finish(process)
    assert code == 130 and "ended at once" in said
    assert status(run)["state"] == "preempted" and newest_whole(run / "checkpoints")[0] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "name", "stage"),
    [
        *((2, "SIGTERM", stage) for stage in STAGES),
        *((2, "SIGINT", stage) for stage in ("training", "saving")),
        *((1, name, "training") for name in ("SIGTERM", "SIGINT")),  # the other stages as without a launcher
    ],
)
def test_a_signal_to_the_launcher_ends_the_run_and_it_goes_on(processes, name, stage, tmp_path, straight):
    """SIGTERM goes to the launcher alone, as `kill` sends it; SIGINT to the terminal's group, as Ctrl-C does."""
    run = tmp_path / "run"
    more = LONG_GRID if stage == "drawing samples" else STEP if stage == "training" else []
    process = begin(*launch(processes), SLOWLY, stage, *words(run, *more))
    wait_for(lambda: status(run).get("stage") == stage and (stage != "training" or trains(run)))
    pid = status(run)["pid"]
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    wait_for(lambda: status(run)["state"] != "running")
    finish(process)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))  # no orphan stays
    told = status(run)
    assert told["state"] == "preempted" and told["exit"] == (130 if name == "SIGINT" else 143), told
    if stage != "training":
        go_on(processes, SCRIPT, *words(run)[1:])
        assert status(run)["state"] == "done"
        assert last_checkpoint(run) == straight(processes)


def test_a_killed_launcher_leaves_no_orphan_that_trains_on(tmp_path):
    run = tmp_path / "run"
    process = begin(*launch(1), SLOWLY, "training", *words(run, *STEP))
    wait_for(lambda: trains(run))
    pid = status(run)["pid"]
    process.kill()
    wait_for(lambda: status(run)["state"] == "preempted")
    assert "launcher" in status(run)["why"] and status(run)["saved"] == status(run)["step"]
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    process.communicate()


def finite_on_disk(run):
    for file in run.rglob("*.safetensors"):
        assert all(torch.isfinite(value).all() for value in load_file(file).values()), file
    assert "NaN" not in (run / "metrics.jsonl").read_text() and "Infinity" not in (run / "metrics.jsonl").read_text()


def test_a_step_that_is_not_finite_moves_nothing_and_counts(tmp_path):
    run = tmp_path / "run"
    more = ["--train.checkpoint-every", "1", "--train.log-every", "1", "--train.keep", "20"]
    go(*launch(0), POISON, 0, 3, 4, *words(run, *more))
    finite_on_disk(run)
    saved = {step: last_checkpoint(run, step) for step in range(9)}
    assert saved[3] == saved[4] == saved[5]  # weights, average, optimiser: to the bit
    assert saved[2] != saved[3] and saved[5] != saved[6]
    records = RunFolder(run).records()
    assert [r.get("skipped") for r in records] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert all(r["loss"] is not None for r in records)  # of the samples that were finite
    rates = [record["lr"] for record in records]  # a warmup, which goes on
    assert rates == pytest.approx([rates[0] * step for step in range(1, 9)])


@pytest.mark.slow
def test_not_finite_in_one_of_two_processes_is_decided_alike(tmp_path):
    run = tmp_path / "run"
    more = ["--train.checkpoint-every", "1", "--train.log-every", "1", "--train.keep", "20"]
    go_on(2, POISON, 1, 3, 3, *words(run, *more))
    finite_on_disk(run)
    assert last_checkpoint(run, 3) == last_checkpoint(run, 4) != last_checkpoint(run, 5)
    assert RunFolder(run).records()[-1]["skipped"] == 1
    # what comes after is what both did: the same start from the skipped step, by two processes that agree
    again = tmp_path / "again"
    go_on(2, POISON, 0, 3, 3, *words(again, *more))
    assert last_checkpoint(run) == last_checkpoint(again)


def test_batches_that_are_never_finite_stop_the_run_with_all_that_helps_and_again(tmp_path):
    run = tmp_path / "run"
    config = tmp_path / "digits.yaml"
    config.write_text(
        "data: {kind: images, source: digits, held_out: 8}\nfield: {kind: unet, channels: [32, 64], layers: 1}\n"
        "train: {steps: 30, batch_size: 16, sample_every: 100, checkpoint_every: 2, max_skips: 4}\n"
        "grid: {count: 2, num_steps: 1}\nfigures: false\n"
    )
    command = [*launch(0), POISON, 0, 5, 99, "train", config, "--run", run]
    for start in range(2):
        code, said = finish(begin(*command))
        assert code == 3 and "Traceback" not in said, said
        assert "4 steps in a row, the last of them step 8" in said and "learning rate" in said
        assert "step_00000008" in said and ("an earlier start ended at step 8" in said) == (start > 0)
    finite_on_disk(run)
    story = json.loads((run / "not_finite.json").read_text())
    from flowimg.data.order import sample_indices

    rows = torch.tensor(story["samples"])
    order = sample_indices(0, 8, range(16), 16, 1789)
    assert len(rows) == 16 and torch.equal(rows.argsort().argsort(), order.argsort().argsort())
    told = status(run)
    assert (told["state"], told["exit"]) == ("failed", 3) and "not finite" in told["why"]


def test_a_disk_that_is_full_for_a_while_costs_a_warning(tmp_path, monkeypatch, capsys):
    from flowimg.cli import main
    from flowimg.jobs.train import saving

    write, run = saving.write_checkpoint, tmp_path / "run"

    def full(folder, step, *args):
        if step in (2, 4):
            raise OSError(28, "No space left on device")
        return write(folder, step, *args)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    main([str(word) for word in words(run)])
    said = capsys.readouterr().out
    assert "was not saved ([Errno 28] No space left on device); the last whole one is of step 0; miss 2 of 3" in said
    assert [path.name for path in step_folders(run / "checkpoints")] == ["step_00000006", "step_00000008"]


def test_a_disk_that_stays_full_ends_the_run_and_loses_nothing(tmp_path, monkeypatch, capsys):
    from flowimg.cli import main
    from flowimg.jobs.train import saving

    write, run = saving.write_checkpoint, tmp_path / "run"

    def full(folder, step, *args):
        if step > 1:
            raise OSError(28, "No space left on device")
        return write(folder, step, *args)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words(run, "--train.steps", "50")])
    assert stop.value.code == 4 and "No space left" in capsys.readouterr().err
    assert status(run)["state"] == "failed" and status(run)["step"] < 15
    assert newest_whole(run / "checkpoints")[0].name == "step_00000000"


def small_disk(path, size):
    path.mkdir()
    if os.system(f"mount -t tmpfs -o size={size} tmpfs {path} 2>/dev/null"):
        pytest.skip("this user may not mount a small disk")


def test_a_disk_that_is_full_for_real(tmp_path):
    disk = tmp_path / "disk"
    small_disk(disk, "3M")
    try:
        run = disk / "run"
        more = ["--field.width", "128", "--train.steps", "60", "--train.checkpoint-every", "20"]
        go(*launch(0), CRASH, "never", 0, *words(run, *more, "--train.stop-at", "20"))
        whole = {path.name: problem(path) for path in step_folders(run / "checkpoints")}
        assert set(whole.values()) == {None}
        (disk / "filler").write_bytes(b"0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize))
        code, said = finish(begin(*launch(0), CRASH, "never", 0, *words(run, *more)))
        assert code == 4 and "No space left" in said and "Traceback" not in said, said
        assert {path.name: problem(path) for path in step_folders(run / "checkpoints")} == whole
        (disk / "filler").unlink()
        assert "continued from step 20" in go(*launch(0), CRASH, "never", 0, *words(run, *more))
    finally:
        os.system(f"umount {disk}")


def test_a_disk_that_cannot_be_written_is_refused_before_training(tmp_path):
    disk = tmp_path / "disk"
    small_disk(disk, "3M")
    os.system(f"mount -o remount,ro {disk}")
    try:
        code, said = finish(begin(*launch(0), CRASH, "never", 0, *words(disk / "run")))
        assert code == 4 and "read-only" in said and "training  steps" not in said, said
    finally:
        os.system(f"umount {disk}")


def test_a_run_is_trained_by_one_at_a_time(tmp_path, monkeypatch, capsys):
    from flowimg.cli import main
    from flowimg.runs import status as status_module

    monkeypatch.setattr(status_module, "WAIT", 0.5)
    run = tmp_path / "run"
    process = begin(*launch(0), SLOWLY, "training", *words(run, *STEP))
    wait_for(lambda: trains(run))
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words(run, *STEP)])
    assert stop.value.code == 4 and f"is being trained by process {process.pid}" in capsys.readouterr().err
    assert status(run)["pid"] == process.pid
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
