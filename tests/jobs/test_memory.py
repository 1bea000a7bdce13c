"""Micro-batches that fit, running out of memory, and what estimate, dry run and doctor say."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from survival import HANGING, ROOT, go_on, words

from flowimg.build.data import build_source
from flowimg.build.flow import build_objective
from flowimg.build.strategy import strategy_of
from flowimg.cli import main
from flowimg.errors import MachineError
from flowimg.fields.mlp import MLPField
from flowimg.jobs import doctor as doctor_module
from flowimg.jobs.train.launch import forward
from flowimg.machine import memory
from flowimg.settings.reading import load

pytestmark = pytest.mark.usefixtures("sketches")


@pytest.mark.parametrize(
    ("share", "free", "expected"),
    [
        (64, 1e9, 64),
        (64, (1000 + 30 * 10 * 1.4) / 0.85, 16),
        (60, (1000 + 20 * 10 * 1.4) / 0.85 + 1, 20),
        (64, 1200, 1),
    ],
)
def test_the_largest_divisor_that_fits(share, free, expected):
    assert memory.largest(share, 10, 1000, free) == expected
    if expected < share:
        more = min(n for n in range(expected + 1, share + 1) if share % n == 0)
        assert 1000 + more * 10 * 1.4 > free * 0.85


def test_not_even_one_sample_is_said():
    with pytest.raises(MachineError, match="not even a micro-batch of 1"):
        memory.largest(64, 10, 1000, 1000)


def test_what_a_pass_keeps_is_counted_each_memory_once():
    """A linear layer keeps its input for the gradient of its weights; the tanh its output; the loss what it squares."""
    config = load("configs/checkerboard.yaml")
    objective, data = build_objective(config), build_source(config).load(torch.device("cpu"))
    field = MLPField(2, 0, width=64, depth=3)
    loss = forward(strategy_of(Accelerator(cpu=True)), field, objective, data)
    at = [memory.kept_bytes(field, partial(loss, size)) for size in (64, 128, 256)]
    assert at[2] - at[1] == 2 * (at[1] - at[0]) > 0  # a straight line in the batch
    # three hidden layers of 64: at least their 64 numbers a sample each, at most eight times that
    assert 3 * 64 * 4 <= (at[1] - at[0]) / 64 <= 8 * 3 * 64 * 4


def test_auto_cuts_the_batch_and_the_batch_is_the_same(tmp_path, monkeypatch, capsys):
    args = [str(word) for word in words(tmp_path / "whole")]
    main(args)
    monkeypatch.setattr(memory, "largest", lambda *of: 12)
    main([str(word) for word in words(tmp_path / "cut", "--train.micro-batch", "auto")])
    assert "batch 48 = 1 x 4 micro-batches of 12 (what fits)" in capsys.readouterr().out
    one, two = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
        for name in ("whole", "cut")
    )
    assert one == pytest.approx(two, rel=1e-5)


def test_micro_batch_and_accumulation_are_one_thing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words(tmp_path, "--train.micro-batch", "12", "--train.accumulation", "4")])
    assert stop.value.code == 2 and "give one of them" in capsys.readouterr().err


GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_IS_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 GB")


@pytest.mark.parametrize("error", [GPU_IS_FULL, CPU_IS_FULL])
def test_out_of_memory_in_mid_run_names_the_setting(error, tmp_path, monkeypatch, capsys):
    from flowimg.training import loop

    step = loop.train_step

    def hungry(state, *args):
        if state.step == 3:
            raise error
        step(state, *args)

    monkeypatch.setattr(loop, "train_step", hungry)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 4 and "out of memory at step 3" in said and "--train.micro-batch auto" in said


def test_estimate_says_what_a_run_then_takes(tmp_path, capsys):
    main(["estimate", *[str(word) for word in words(tmp_path / "run")][1:], "--json"])
    told = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []  # nothing stays
    main([str(word) for word in words(tmp_path / "run")])
    real = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints" / "step_00000008").iterdir())
    assert told["checkpoint_bytes"] == pytest.approx(real, rel=0.2) and told["parameters"] == 626
    assert told["memory_bytes"]["weights"] == 626 * 4 and told["memory_bytes"]["optimiser"] == 2 * 626 * 4


@pytest.mark.slow
def test_what_several_processes_save_is_estimated_by_all_of_them(tmp_path):
    how = [*words(tmp_path / "run")[1:], "--train.shard", "all", "--json"]
    alone, shared = (
        json.JSONDecoder().raw_decode(go_on(n, ROOT / "tests" / "in_blocks.py", "kept", "estimate", *how))[0]
        for n in (1, 2)
    )
    assert shared["checkpoint_bytes"] == pytest.approx(alone["checkpoint_bytes"], rel=0.05)
    assert shared["disk_bytes"] == pytest.approx(alone["disk_bytes"], rel=0.05)
    held = ("weights", "gradients", "optimiser", "averages")
    assert all(2 * shared["memory_bytes"][name] == alone["memory_bytes"][name] for name in held)


def test_a_disk_too_small_is_said_before(tmp_path, monkeypatch, capsys):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit) as stop:
        main(["estimate", *[str(word) for word in words(tmp_path / "run")][1:]])
    assert stop.value.code == 4 and "lower train.keep" in capsys.readouterr().err


def test_a_dry_run_goes_the_whole_way_and_leaves_nothing(tmp_path, capsys):
    main([str(word) for word in words(tmp_path / "run", "--dry-run")])
    said = capsys.readouterr().out
    for word in ("continued from step 1", "2 samples of step 2", "sw2", "checkpoint, saved in"):
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_doctor_finds_a_good_machine_good(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor_module, "PATIENCE", HANGING)
    main(["doctor", "--run", str(tmp_path)])
    said = capsys.readouterr().out
    assert "two-process gloo all-reduce and sharded layer work" in said and "locks hold" in said and "bad" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_names_what_is_bad(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor_module, "PATIENCE", HANGING)
    monkeypatch.setattr(doctor_module, "TOGETHER", "raise ValueError('no network for {backend}')")
    monkeypatch.setattr(doctor_module.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--run", str(Path(tmp_path))])
    error = capsys.readouterr().err
    assert stop.value.code == 4 and "no network for gloo" in error and "cannot hold a run" in error
