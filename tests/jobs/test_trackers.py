"""Trackers, and what the launcher asks for that the settings say otherwise."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import write_settings

from flowimg.cli import main
from flowimg.jobs.train import trackers


def read(run):
    """All that tensorboard would show of a run."""
    events = EventAccumulator(str(run / "tracking" / "flowimg"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


@pytest.fixture
def settings(tmp_path):
    return str(write_settings(tmp_path / "a.yaml", track="tensorboard", train={"steps": 4}))


def test_tensorboard_is_told_what_the_metrics_and_the_grids_hold(settings, tmp_path):
    run = tmp_path / "run"
    main(["train", settings, "--run", str(run)])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = read(run)
    for name in ("loss", "held_out_loss", "held_out_loss_ema", "grad_norm", "lr", "samples_per_second"):
        wanted = [(line["step"], line[name]) for line in lines if name in line]
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in told] == [step for step, _ in wanted]
        np.testing.assert_allclose([v for _, v in told], [v for _, v in wanted], rtol=1e-6)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert any(tag.startswith("loss_by_t/") for tag in events.Tags()["scalars"])
    for name, raw in (("ema", ""), ("raw", "_raw")):
        images = events.Images(f"samples/{name}")
        assert [image.step for image in images] == [2, 4]
        for image in images:
            with Image.open(run / "samples" / f"step_{image.step:08d}{raw}.png") as grid:
                assert (image.width, image.height) == grid.size
                (tmp_path / "seen.png").write_bytes(image.encoded_image_string)
                assert (np.array(Image.open(tmp_path / "seen.png")) == np.array(grid.convert("RGB"))).all()


def test_a_continued_run_is_told_of_no_step_twice(settings, tmp_path):
    run = tmp_path / "run"
    main(["train", settings, "--run", str(run), "--train.stop-at", "3"])
    shutil.rmtree(run / "checkpoints" / "step_00000003")  # as if it was killed before
    main(["train", settings, "--run", str(run)])
    events = read(run)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("held_out_loss")] == [1, 2, 3, 4]


def test_nothing_is_tracked_unless_asked_for(tiny):
    assert not (tiny.plain / "tracking").exists()


def test_a_tracker_that_is_not_installed_is_said_before_anything(settings, tmp_path, monkeypatch, refused):
    for name in trackers.THERE:
        monkeypatch.setitem(trackers.THERE, name, lambda: False)
        status, said = refused("train", settings, "--run", tmp_path / "run", "--track", name)
        assert (status, said) == (4, f"track {name} needs a package that is not installed: pip install {name}")
    assert not (tmp_path / "run" / "config.yaml").exists()


# --- the launcher ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", ["mixed precision bf16", "train.precision fp32"]),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", ["gradient accumulation 4", "train.accumulation 1"]),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", ["torch.compile by inductor"]),
    ],
)
def test_what_the_launcher_asks_for_otherwise_is_told_and_the_settings_win(
    variable, value, words, tmp_path, monkeypatch, capsys
):
    config = str(write_settings(tmp_path / "a.yaml"))
    main(["train", config, "--run", str(tmp_path / "one"), "--train.stop-at", "1"])
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setenv(variable, value)
    main(["train", config, "--run", str(tmp_path / "two"), "--train.stop-at", "1"])
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert all(word in said for word in [*words, "the run's settings win"]), said
    one, two = (
        (tmp_path / name / "checkpoints" / "step_00000001" / "weights.safetensors").read_bytes()
        for name in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ACCELERATE_MIXED_PRECISION", "no"), ("ACCELERATE_MIXED_PRECISION", "fp32"),
     ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"), ("ACCELERATE_DYNAMO_BACKEND", "NO")],
)  # fmt: skip
def test_what_launchers_say_by_themselves_is_no_warning(variable, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)
    config = str(write_settings(tmp_path / "a.yaml"))
    main(["train", config, "--run", str(tmp_path / "run"), "--train.stop-at", "1"])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "name"),
    [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
     ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")],
)  # fmt: skip
def test_ways_of_training_that_the_loop_does_not_know_are_refused(variable, name, tmp_path, monkeypatch, refused):
    monkeypatch.setenv(variable, "true")
    status, said = refused("train", write_settings(tmp_path / "a.yaml"), "--run", tmp_path / "run")
    assert status == 4 and f"the launcher asks for {name}" in said and "--multi_gpu" in said
    assert not (tmp_path / "run" / "config.yaml").exists()
