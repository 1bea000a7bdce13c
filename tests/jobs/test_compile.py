"""`train.compile`: the same run, to rounding; its checkpoints are those of any run."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowimg.cli import main
from flowimg.config import Config, Sample, validate
from flowimg.fields.mlp import MLPField
from flowimg.jobs import draw, machine
from flowimg.jobs.folder import RunFolder, open_run

QUICK = ("--train.steps", "4", "--train.log-every", "1", "--train.batch-size", "64", "--grid.count", "8")


def asked(worth=True):
    config = validate(Config, {"run": "r"}, "here")
    return [machine.compiles(asked, "train.compile", config, worth) for asked in ("auto", False, True)]


def test_gpus_are_compiled_for_where_it_is_worth_it_and_others_when_asked(monkeypatch):
    assert asked() == [None, None, "default"]
    monkeypatch.setattr(machine, "pick_device", lambda: SimpleNamespace(type="cuda"))
    assert asked() == ["default", None, "default"]
    assert asked(worth=False) == [None, None, "default"]


def test_graphs_are_for_gpus(monkeypatch):
    config = validate(Config, {"run": "r"}, "here")
    with pytest.raises(machine.MachineError, match="graphs needs an NVIDIA GPU"):
        machine.compiles("graphs", "train.compile", config)
    monkeypatch.setattr(machine, "pick_device", lambda: SimpleNamespace(type="cuda"))
    assert machine.compiles("graphs", "train.compile", config) == "reduce-overhead"


def test_many_samples_are_worth_a_compiler(tiny, monkeypatch):
    run = open_run(str(tiny.points), "ema", None, torch.device("cpu"))
    monkeypatch.setattr(machine, "pick_device", lambda: SimpleNamespace(type="cuda"))
    alone, last = (SimpleNamespace(process_index=many - 1, num_processes=many) for many in (1, 2))
    how = Sample(run="r", num_steps=50, batch_size=70)
    assert draw.quickened(run, how, 80 * 70, alone).field.sizes == (70, 140)
    assert draw.quickened(run, how, 80 * 70 - 1, alone) is run and draw.quickened(run, how, 0, alone) is run
    # each process has its share
    assert draw.quickened(run, how, 2 * 80 * 70, last).field.sizes == (70, 140)
    assert draw.quickened(run, how, 2 * 80 * 70 - 2, last) is run
    # many in a batch are few calls
    assert draw.quickened(run, Sample(run="r", num_steps=100), 20_000, alone) is run
    asked = Sample(run="r", compile=True)
    assert draw.quickened(run, asked, 30, alone).field.sizes == (30, 60)


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_drawing_without_a_compiler_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    out = ["--out", str(tmp_path / "out")] if verb == "sample" else []
    with pytest.raises(SystemExit) as stop:
        main([verb, str(tiny.points), *out, "--compile", "true"])
    assert stop.value.code == 4 and "--compile needs a C++ compiler" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_whole_batches_go_through_the_compiled_field(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda field, dynamic: lambda x, t, cond: field(x, t, cond) + 1)
    field = draw.Compiled(MLPField(2, num_classes=3, width=8, depth=1), 4)
    for size, more in ((4, 1), (8, 1), (1, 0), (3, 0), (5, 0)):
        x, t, cond = torch.randn(size, 2), torch.rand(size), torch.zeros(size, dtype=torch.long)
        assert torch.equal(field(x, t, cond), field.field(x, t, cond) + more)


def test_without_a_compiler_that_is_said_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "r"), "--train.compile", "true"])
    assert stop.value.code == 4 and "train.compile needs a C++ compiler" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_run_learns_what_a_plain_one_does_and_either_goes_on_with_the_other(tmp_path, capsys):
    for name, compile in (("plain", "false"), ("compiled", "true")):
        command = ["train", "configs/checkerboard.yaml", "--run", str(tmp_path / name), *QUICK, "--figures", "false"]
        main([*command, "--train.compile", compile, "--train.stop-at", "2"])
        assert (", compiled" in capsys.readouterr().out) == (name == "compiled")
    plain, compiled = (
        load_file(tmp_path / n / "checkpoints/step_00000002/weights.safetensors") for n in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    assert max(float((plain[k] - compiled[k]).abs().max()) for k in plain) < 1e-5
    main([*command, "--train.compile", "false"])
    assert "train.compile" in capsys.readouterr().out  # a warning, no refusal
    losses = [record["loss"] for record in RunFolder(tmp_path / "compiled").records()]
    main(["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "plain"), *QUICK, "--figures", "false"])
    assert losses == pytest.approx([record["loss"] for record in RunFolder(tmp_path / "plain").records()], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("guidance", ["1", "2"])
def test_a_compiled_field_draws_the_same_pictures_to_a_grey_level(tiny, tmp_path, guidance):
    for compile in ("false", "true"):
        how = ["--count", "11", "--batch-size", "4", "--num-steps", "5", "--precision", "fp32", "--guidance", guidance]
        main(["sample", str(tiny.classes), *how, "--out", str(tmp_path / compile), "--compile", compile])
    plain, compiled = (
        np.stack([np.array(Image.open(file), dtype=int) for file in sorted((tmp_path / name / "images").iterdir())])
        for name in ("false", "true")
    )
    assert len(plain) == 11 and np.abs(plain - compiled).max() <= 1 and plain.std() > 10
