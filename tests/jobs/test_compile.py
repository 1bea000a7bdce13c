"""`train.compile`: the same run, to rounding; its checkpoints are those of any run."""

import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from flowimg.cli import main
from flowimg.config import Config, validate
from flowimg.jobs import train as job
from flowimg.jobs.folder import RunFolder

QUICK = ("--train.steps", "4", "--train.log-every", "1", "--train.batch-size", "64", "--grid.count", "8")


def config(compile):
    return validate(Config, {"run": "r", "train": {"compile": compile}}, "here")


def test_gpus_are_compiled_for_and_others_when_asked(monkeypatch):
    assert [job.compiles(config(asked)) for asked in ("auto", False, True)] == [False, False, True]
    monkeypatch.setattr(job, "pick_device", lambda: SimpleNamespace(type="cuda"))
    assert [job.compiles(config(asked)) for asked in ("auto", False, True)] == [True, False, True]


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
