"""Averages of any length, made of what a run kept aside."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from survival import words

from flowimg.cli import main
from flowimg.jobs.train import saving
from flowimg.runs.opening import open_run
from flowimg.training.averages import gamma_of
from flowimg.training.snapshots import kept_steps

pytestmark = pytest.mark.usefixtures("sketches")

STEPS = 40
ALL = ["--train.steps", STEPS, "--train.checkpoint-every", 1, "--train.keep", STEPS + 1, "--optim.lr", 0.03]


def train(run, *more):
    main([str(word) for word in words(run, *ALL, *more)])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run with a checkpoint at every step, which kept averages at 20 of its 40 steps."""
    run = tmp_path_factory.mktemp("kept") / "run"
    train(run, "--train.snapshots", 20)
    return run


def weights(run, step, name="weights"):
    return load_file(run / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def followed(run, length, at):
    """The average by its definition, of the weights after each step."""
    shares = np.diff((np.arange(at + 1) / at) ** (gamma_of(length) + 1))
    path = [weights(run, step) for step in range(1, at + 1)]
    return {
        name: sum(share * held[name].double() for share, held in zip(shares, path, strict=True)) for name in path[0]
    }


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def opened(run, length, step=None):
    trained = open_run(str(run), length, step, torch.device("cpu"))
    return trained, trained.field.state_dict()


@pytest.mark.parametrize("at", [40, 20])
@pytest.mark.parametrize(("length", "within"), [(0.05, 1e-6), (0.1, 1e-6), (0.07, 0.01), (0.15, 0.02), (0.2, 0.06)])
def test_it_is_the_average_of_the_weights_after_each_step(kept, length, within, at):
    trained, made = opened(kept, length, at)
    truth = flat(followed(kept, length, at))
    assert trained.step == at
    assert (flat(made) - truth).norm() < within * (flat(weights(kept, at)) - truth).norm()


def test_every_verb_that_draws_takes_a_length(kept, capsys):
    main(["sample", str(kept), "--weights", "0.15", "--count", "8", "--num-steps", "1"])
    said = capsys.readouterr().out
    assert "average   of length 0.15 at step 40, made of 20 files; off by " in said
    folder = kept / "generated" / "step_00000040_length0.15_euler1_seed0x8_npz"
    about = json.loads((folder / "samples.json").read_text())
    assert about["weights"] == 0.15 and about["weights_sha256"] == opened(kept, 0.15)[0].sha256
    assert len({opened(kept, length)[0].sha256 for length in (0.1, 0.15, 0.15)}) == 2
    capsys.readouterr()
    main(["--json", "evaluate", str(kept), "--weights", "0.15", "--step", "20", "--count", "64", "--num-steps", "1"])
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == "length0.15" and told["step"] == 20


def test_ema_says_what_can_be_made_of_them(kept, capsys):
    main(["--json", "ema", str(kept), "--step", "30"])
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["step"] == 30 and told["steps"] == list(range(2, 31, 2))
    found = {each["length"]: each for each in told["lengths"]}
    assert found[0.05]["error"] < 1e-6 < found[0.15]["error"] < 0.02
    assert not found[0.02]["able"] and found[0.05]["able"] and found[0.15]["able"]
    assert f"flowimg sample {kept} --weights " in said.err and " --step 30\n" in said.err
    off = found[0.02]["error"]
    assert 0.1 < off < 1 and f"0.02     {100 * off:.2g} %   too inaccurate to be made\n" in said.err
    assert not (kept / "averages").exists()


def test_ema_writes_those_that_are_asked_for(kept, tmp_path, capsys, refused):
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    main(["ema", str(run), "--length", "0.1", "0.15"])
    for length in ("0.1", "0.15"):
        written = load_file(run / "averages" / f"length{length}_step_00000040.safetensors")
        _, made = opened(run, float(length))
        assert written.keys() == made.keys() and all(torch.equal(written[name], made[name]) for name in made)
    assert "flowimg evaluate" in capsys.readouterr().out
    status, said = refused("ema", run, "--length", "0.005")
    assert status == 2 and "would be off by" in said


def test_what_cannot_be_made_is_one_sentence(kept, tiny, refused, tmp_path):
    status, said = refused("sample", kept, "--weights", "0.005")
    assert status == 2 and "--weights 0.005" in said and "would be off by" in said and f"flowimg ema {kept}" in said
    status, said = refused("sample", kept, "--weights", "0.1", "--step", "21")
    assert status == 2 and said.startswith(f"{kept} has no snapshot of step 21: there are 2, 4, 6")
    for verb in ("ema", "sample"):
        more = ["--weights", "0.1"] if verb == "sample" else []
        status, said = refused(verb, tiny.points, *more)
        assert status == 2 and f"{tiny.points} has no snapshots" in said and "--train.snapshots 32" in said
    assert refused("ema", tmp_path)[0] == 2
    other = tmp_path / "other"
    shutil.copytree(kept, other)
    (other / "snapshots" / "step_00000038.safetensors").write_bytes(b"cut")
    status, said = refused("sample", other, "--weights", "0.1001")
    assert status == 3 and "step_00000038.safetensors cannot be read" in said


def test_a_run_that_asks_for_none_keeps_none(tiny):
    assert not (tiny.points / "snapshots").exists()
    assert not list((tiny.points / "checkpoints").glob("*/averages*"))
    assert "snapshots: 0" in (tiny.points / "config.yaml").read_text()


def test_a_run_that_is_taken_up_keeps_what_it_would_have_kept(kept, tmp_path, capsys):
    run = tmp_path / "run"
    train(run, "--train.snapshots", 20, "--train.stop-at", 21)
    (run / "snapshots" / "step_00000030.safetensors").write_bytes(b"of a start whose checkpoint was lost")
    train(run, "--train.snapshots", 20, "--train.stop-at", 23)
    assert kept_steps(run / "snapshots") == list(range(2, 23, 2))
    (run / "snapshots" / "step_00000012.safetensors").unlink()
    train(run, "--train.snapshots", 20, "--resume", 12)
    assert kept_steps(run / "snapshots") == list(range(2, 41, 2))
    assert kept_steps(run / "snapshots" / "left") == list(range(14, 23, 2))
    for step in kept_steps(run / "snapshots"):
        name = f"snapshots/step_{step:08d}.safetensors"
        assert (run / name).read_bytes() == (kept / name).read_bytes()
    assert all(torch.equal(weights(run, 40, "averages")[k], v) for k, v in weights(kept, 40, "averages").items())


def test_averages_cannot_begin_in_the_midst_of_a_run(tmp_path, refused, capsys):
    train(tmp_path / "run", "--train.stop-at", 3)
    capsys.readouterr()
    start = [str(word) for word in words(tmp_path / "run", *ALL, "--train.snapshots", 4)]
    with pytest.raises(SystemExit) as stop:
        main(start)
    assert stop.value.code == 2 and "train.snapshots  0     4    refused" in capsys.readouterr().err
    status, said = refused(*start, "--allow", "train.snapshots")
    assert status == 2 and "needs averages from the first step on" in said and "up to step 3" in said


def test_averages_that_cannot_be_written_are_missed_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    write = saving.write_snapshot

    def full(folder, step, tensors):
        if step == 20:
            raise OSError(28, "No space left on device")
        write(folder, step, tensors)

    monkeypatch.setattr(saving, "write_snapshot", full)
    train(tmp_path / "run", "--train.snapshots", 4)
    assert "warning   the averages of step 20 were not written ([Errno 28]" in capsys.readouterr().out
    assert kept_steps(tmp_path / "run" / "snapshots") == [10, 30, 40]


def test_the_estimate_counts_them(tmp_path, capsys):
    found = []
    for snapshots in (0, 5):
        main(
            [str(word) for word in ["--json", "estimate", *words(tmp_path / "run", "--train.snapshots", snapshots)[1:]]]
        )
        found.append(json.loads(capsys.readouterr().out))
    weight = found[0]["memory_bytes"]["weights"]
    assert found[0]["memory_bytes"]["averages"] == weight and found[1]["memory_bytes"]["averages"] == 3 * weight
    more = found[1]["checkpoint_bytes"] - found[0]["checkpoint_bytes"]
    assert 2 * weight < more
    assert found[1]["disk_bytes"] - found[0]["disk_bytes"] == 3 * more + 5 * 2 * weight
