"""`flowimg train` as a user meets it: what a run's folder holds, what continues it and what is refused."""

import json
import shutil
import threading
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny import write_settings

import flowimg.jobs.train.beginning as beginning
import flowimg.jobs.train.saving as save
import flowimg.training.loop as loop
from flowimg.cli import main
from flowimg.data import batches, prefetch
from flowimg.data.store import Images
from flowimg.flow.objectives import FlowMatching
from flowimg.jobs.train.metrics import looks_every
from flowimg.settings.reading import load
from flowimg.spaces.pixels import Pixels

pytestmark = pytest.mark.usefixtures("sketches")

SMALL = ["--train.steps", "6", "--train.batch-size", "32", "--train.log-every", "2", "--train.sample-every", "3"]
SMALL += ["--train.checkpoint-every", "2", "--grid.count", "50", "--grid.num-steps", "2", "--figures", "false"]


def train(run, *more, config="configs/checkerboard.yaml"):
    main(["train", config, "--run", str(run), *SMALL, *more])


def refused(capsys, status, *args, **kwargs):
    with pytest.raises(SystemExit) as stop:
        train(*args, **kwargs)
    assert stop.value.code == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run):
    return [line["step"] for line in lines(run) if "event" not in line]


def status(run):
    return json.loads((run / "status.json").read_text())


def test_a_run_folder_holds_all_there_is(tmp_path, capsys):
    run = tmp_path / "run"
    train(run)
    said = capsys.readouterr().out
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "environment.json", "metrics.jsonl", "status.json", "samples", "checkpoints", ".lock"
    }  # fmt: skip
    names = [f"step_{step:08d}{raw}.png" for step in (3, 6) for raw in ("", "_raw")]
    assert sorted(p.name for p in (run / "samples").iterdir()) == sorted(names)
    kept = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert kept == ["latest", "step_00000002", "step_00000004", "step_00000006"]
    assert str(run / "samples" / "step_00000006.png") in said
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["batch_size"] == 32
    assert json.loads((run / "environment.json").read_text())["processes"] == 1


@pytest.mark.parametrize(
    ("train", "often"),
    [
        ({}, 17),  # 2 of 8 forward, a third of a step each, are 2 % of 17 steps of 16
        ({"held_out_every": 4}, 4),
        ({"keep_best": "held_out_loss", "log_every": 2}, 2),
        ({"keep_best": "held_out_loss_ema", "log_every": 2, "held_out_every": 4}, 2),
        ({"keep_best": "loss"}, 17),
    ],
)
def test_looks_at_the_held_out_data_cost_little_unless_more_are_asked_for(train, often, tmp_path):
    config = load(str(write_settings(tmp_path / "a.yaml", train={"steps": 20, "held_out_every": None, **train})))
    assert looks_every(config, 8) == often


def test_the_held_out_data_are_looked_at_where_lines_are_written_and_last(tmp_path):
    train = {"steps": 7, "held_out_every": 3, "log_every": 2, "sample_every": 7}
    main(["train", str(write_settings(tmp_path / "a.yaml", train=train)), "--run", str(tmp_path / "run")])
    assert [line["step"] for line in lines(tmp_path / "run") if line.get("held_out_loss_ema")] == [4, 6, 7]


def test_a_look_that_memory_has_no_room_for_is_taken_in_parts(tmp_path, monkeypatch):
    config, loss, asked = write_settings(tmp_path / "a.yaml", train={"steps": 2}), FlowMatching.loss, []

    def small(self, field, draw):
        if torch.is_grad_enabled():  # a training step
            return loss(self, field, draw)
        asked.append(len(draw.t))
        if len(draw.t) > 3:
            raise torch.OutOfMemoryError("of the GPU")
        return loss(self, field, draw)

    main(["train", str(config), "--run", str(tmp_path / "whole")])
    micro = ["--train.micro-batch", "2"]
    monkeypatch.setattr(FlowMatching, "loss", small)
    main(["train", str(config), "--run", str(tmp_path / "parts"), *micro])
    assert asked[0] == 8 and asked[1:5] == [4, 2, 2, 2]
    one, two = (lines(tmp_path / name)[1] for name in ("whole", "parts"))
    assert one["held_out_loss"] == pytest.approx(two["held_out_loss"], rel=1e-5)


def test_threads_beside_the_loop_have_no_team_of_torchs_threads(tmp_path, monkeypatch):
    # a second team in the process, and those of the loop sleep and wake at every operation
    seen = {}

    def noted(where, name, call):
        def noting(*args, **more):
            seen[name] = threading.current_thread().name, torch.get_num_threads()
            return call(*args, **more)

        monkeypatch.setattr(where, name, noting)

    noted(save, "write_checkpoint", save.write_checkpoint)
    noted(batches.ImageBatches, "__call__", batches.ImageBatches.__call__)
    noted(loop, "train_step", loop.train_step)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        # kept in memory, digits need nobody beside the loop; on another device they would
        monkeypatch.setattr(beginning, "_feed", _ahead)
        once = {"steps": 1, "sample_every": 1, "checkpoint_every": 1}
        main(["train", str(write_settings(tmp_path / "a.yaml", train=once)), "--run", str(tmp_path / "run")])
    finally:
        torch.set_num_threads(threads)
    assert seen["write_checkpoint"] == ("checkpoint_0", 1) and seen["__call__"] == ("data_0", 1)
    assert seen["train_step"] == ("MainThread", 2)


def _ahead(state, some, stack):
    state.draw = prefetch.Prefetch(partial(state.objective.draw, some), state.micro_batches())
    stack.callback(state.draw.close)


@pytest.mark.parametrize(
    ("device", "pixels", "ahead"),
    [("cpu", "cpu", False), ("cuda", "cpu", True), ("cuda", "cuda", True), ("mps", "cpu", True), ("mps", "mps", False)],
)
def test_what_steps_see_is_made_ahead_where_that_helps(device, pixels, ahead):
    there = type("There", (), {"device": SimpleNamespace(type=pixels), "__len__": lambda self: 4})()
    images, space, on = Images(there, None, ()), Pixels((1, 8, 8)), SimpleNamespace(type=device)
    how = {"space": space, "flip": False, "seed": 0, "batch_size": 4, "device": on}
    some = batches.ImageBatches(images, torch.arange(0), **how)
    state = SimpleNamespace(draw="now", objective=SimpleNamespace(draw=print), micro_batches=lambda: [range(4)])
    with ExitStack() as stack:
        beginning._feed(state, some, stack)
        assert isinstance(state.draw, prefetch.Prefetch) == ahead
        once = state.draw.make.args[0] if ahead else None
        assert not ahead or (once.__wrapped__ is some and once.cache_parameters()["maxsize"] == 1)


def test_a_line_of_metrics_says_all_that_is_promised(tmp_path):
    train(tmp_path / "run", "--train.held-out-every", "1")
    event, first, *_, last = lines(tmp_path / "run")
    assert event["event"] == "start" and event["step"] == 0 and event["processes"] == 1
    assert 0 < first["step"] < 6 and first["held_out_loss"] > 0
    assert set(last) == {
        "step", "samples", "loss", "loss_by_t", "held_out_loss", "held_out_loss_ema", "grad_norm", "lr",
        "samples_per_second", "data_wait", "skipped", "peak_memory_mib",
    }  # fmt: skip
    assert last["step"] == 6 and last["samples"] == 6 * 32
    assert len(last["loss_by_t"]) == 10 and all(loss is None or loss > 0 for loss in last["loss_by_t"])
    assert 0 < last["data_wait"] < 1 and last["samples_per_second"] > 0
    assert 50 < last["peak_memory_mib"] < 1e5


def test_the_same_command_again_continues_and_then_says_it_is_done(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "3")
    assert steps(run) == [2, 3]
    assert "continues to step 6" in capsys.readouterr().out
    train(run)
    assert "continued from step 3" in capsys.readouterr().out
    assert steps(run) == [2, 3, 4, 6]
    train(run)
    assert "already trained to step 6" in capsys.readouterr().out
    assert steps(run) == [2, 3, 4, 6]


def test_metrics_past_the_checkpoint_are_written_again_not_twice(tmp_path):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "4")
    with (run / "metrics.jsonl").open("a") as file:  # what a killed run leaves: lines past its checkpoint, half a line
        file.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    train(run)
    assert steps(run) == [2, 4, 6]


def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "4")
    (run / "checkpoints" / "step_00000004" / "ema.safetensors").write_bytes(b"")
    train(run)
    said = capsys.readouterr().out
    assert "step_00000004 is broken and was skipped: ema.safetensors" in said
    assert "continued from step 2" in said


def test_the_folder_of_a_run_is_enough_to_continue_it(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "3", "--optim.lr", "0.002")
    main(["train", str(run)])
    assert "continued from step 3" in capsys.readouterr().out
    assert steps(run)[-1] == 6


def test_a_run_killed_before_its_second_checkpoint_starts_again_without_saying_anything_twice(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "1")
    shutil.rmtree(run / "checkpoints" / "step_00000001")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[1] + "\n\xff\n")
    train(run)
    assert steps(run) == [2, 4, 6]


def test_a_run_without_a_whole_checkpoint_is_not_started_over(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "4")
    before = (run / "metrics.jsonl").read_bytes()
    for checkpoint in (run / "checkpoints").glob("step_*"):
        (checkpoint / "ema.safetensors").unlink()
    assert "no whole checkpoint" in refused(capsys, 3, run)
    shutil.rmtree(run / "checkpoints")
    assert "trained to step 4" in refused(capsys, 3, run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_guidance_of_the_grids_needs_classes(tmp_path, capsys):
    said = refused(capsys, 2, tmp_path / "run", "--grid.guidance", "2")
    assert "conditional" in said and "no classes: give guidance 1 (grid.guidance of a training)" in said


@pytest.mark.parametrize(("key", "value"), [("--seed", "1"), ("--optim.lr", "0.1"), ("--data.source", "moons")])
def test_a_folder_of_another_run_is_refused(tmp_path, capsys, key, value):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "2")
    before = (run / "config.yaml").read_bytes()
    error = refused(capsys, 2, run, key, value)
    assert key.removeprefix("--") in error and value in error and "--run" in error
    assert (run / "config.yaml").read_bytes() == before


def test_a_longer_run_and_other_intervals_continue_it(tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.stop-at", "2")
    train(run, "--train.log-every", "1", "--grid.num-steps", "3")
    assert steps(run)[-1] == 6


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    assert "is not a run of flowimg" in refused(capsys, 2, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_folder_that_a_start_was_killed_in_or_another_process_begins_to_write_is_free(tmp_path):
    for name in (".lock", "status.json", ".status.json.77.tmp"):  # the last is there while status.json is written
        (tmp_path / name).touch()
    (tmp_path / "processes").mkdir()
    train(tmp_path)
    assert steps(tmp_path)[-1] == 6


def test_what_does_not_fit_the_network_is_said_before_training(tmp_path, capsys):
    run = tmp_path / "run"
    error = refused(
        capsys, 3, run, "--field.channels", "32", "64", "64", "64", "64", config="configs/digits.yaml"
    )  # fmt: skip
    assert "8 pixels do not halve 4 times" in error
    assert {path.name for path in run.iterdir()} == {"status.json", ".lock"}  # for who cannot see the exit status
    assert status(run)["state"] == "failed" and "do not halve" in status(run)["why"] and status(run)["exit"] == 3
    train(run)  # the folder is free for the next try


def test_a_name_that_is_no_collection_is_a_fault_of_the_data(tmp_path, capsys):
    error = refused(capsys, 3, tmp_path / "run", "--data.source", "digit", config="configs/digits.yaml")
    assert "did you mean 'digits'?" in error


def test_fp16_without_a_gpu_is_a_fault_of_the_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "fp16 needs a GPU" in refused(capsys, 4, tmp_path / "run", "--train.precision", "fp16")


def test_processes_that_do_not_see_each_other_are_refused(tmp_path, capsys, monkeypatch):
    # what plain torchrun does on a CPU: two runs that write one folder
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "ACCELERATE_USE_CPU=true" in refused(capsys, 4, tmp_path / "run")
