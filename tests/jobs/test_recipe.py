"""Augmentation, weighting, Muon, scale and shift together: a run, continued, kept, drawn from, and read by others."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from tiny import UNET, write_settings

from flowimg.build.data import build_source
from flowimg.build.field import build_field
from flowimg.cli import main
from flowimg.errors import SettingsError
from flowimg.figures.samples import save_grid
from flowimg.flow.condition import Condition
from flowimg.flow.objectives import FlowMatching
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import open_run
from flowimg.sampling.sampler import noise
from flowimg.settings.reading import load, validate
from flowimg.settings.run import Config

CPU = torch.device("cpu")
AUGMENTED = {
    "data": {"kind": "images", "source": "digits", "held_out": 8, "flip": True, "augment": 0.5},
    "field": {**UNET, "scale_shift": True},
    "weighting": {"kind": "cosmap"},
    "optim": {"kind": "muon", "weight_decay": 0.01},
    "train": {"steps": 6, "checkpoint_every": 3, "sample_every": 6, "accumulation": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    settings = write_settings(folder / "c.yaml", **AUGMENTED)
    main(["train", str(settings), "--run", str(folder / "run")])
    return folder


def tensors(run, step):
    return {
        f"{file.stem}/{name}": value
        for file in (run / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def test_a_continued_run_is_the_run_bit_for_bit(whole, capsys):
    for _ in range(2):
        stop = ["--train.stop-at", "3"] if not (whole / "cut").exists() else []
        main(["train", str(whole / "c.yaml"), "--run", str(whole / "cut"), *stop])
    assert "continued from step 3" in capsys.readouterr().out
    one, two = tensors(whole / "run", 6), tensors(whole / "cut", 6)
    assert one.keys() == two.keys() and [name for name in one if not torch.equal(one[name], two[name])] == []
    first, second = (RunFolder(whole / name).records() for name in ("run", "cut"))
    assert [r.get("loss") for r in first] == [r.get("loss") for r in second]


def test_hidden_matrices_are_moved_as_matrices_and_others_are_not(whole):
    kept = tensors(whole / "run", 6)
    squares = {name.split(".", 1)[1] for name in kept if name.startswith("optimizer/exp_avg_sq.")}
    alone = {name.split(".", 1)[1] for name in kept if name.startswith("optimizer/exp_avg.")} - squares
    assert "unet.conv_in.weight" in squares and "unet.mid_block.resnets.0.conv1.weight" in alone
    assert not any(name.endswith("bias") for name in alone)


@pytest.mark.parametrize(("first", "second"), [("muon", "adamw"), ("adamw", "muon")])
def test_a_run_goes_on_with_the_other_optimiser_where_that_is_allowed(tmp_path, first, second):
    settings = write_settings(tmp_path / "c.yaml", train={"steps": 4, "checkpoint_every": 2})
    command = ["train", str(settings), "--run", str(tmp_path / "run")]
    main([*command, "--optim.kind", first, "--train.stop-at", "2"])
    main([*command, "--optim.kind", second, "--allow", "optim.kind"])
    before, after = tensors(tmp_path / "run", 2), tensors(tmp_path / "run", 4)
    name = "weights/unet.mid_block.resnets.0.conv1.weight"
    assert torch.isfinite(after[name]).all() and not torch.equal(before[name], after[name])
    # squares of hidden matrices that AdamW left would be found again by it, old, after Muon
    assert ("optimizer/exp_avg_sq.unet.mid_block.resnets.0.conv1.weight" in after) == (second == "adamw")
    assert "optimizer/exp_avg_sq.unet.conv_in.weight" in after


def test_the_field_is_told_and_learns_from_it(whole):
    kept = tensors(whole / "run", 6)
    assert kept["weights/augment.weight"].abs().min() > 0 and kept["ema/augment.weight"].abs().min() > 0


@torch.no_grad()
def test_the_network_in_the_folder_draws_in_stock_diffusers_what_flowimg_draws(whole):
    run = open_run(str(whole / "run"), "ema", None, CPU)
    stock = UNet2DModel.from_pretrained(whole / "run" / "model" / "unet").eval()
    assert stock.config["resnet_time_scale_shift"] == "scale_shift"
    x, labels = noise(range(4), run.facts.shape), torch.tensor([0, 3, 7, 9])
    cond = Condition(labels)
    for t in (0.0, 0.3, 0.9):
        ours = run.field(x, torch.full((4,), t), cond)
        assert torch.equal(ours, -stock(x, torch.full((4,), 1000 * (1 - torch.tensor(t))), class_labels=labels).sample)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    by_stock = scheduler.step(stock(x, scheduler.timesteps[0], class_labels=labels).sample, scheduler.timesteps[0], x)
    torch.testing.assert_close(by_stock.prev_sample, x + run.field(x, torch.zeros(4), cond), atol=1e-5, rtol=1e-4)


def test_the_card_counts_the_network_that_is_in_the_folder(whole):
    stock = UNet2DModel.from_pretrained(whole / "run" / "model" / "unet")
    assert f"{sum(p.numel() for p in stock.parameters()):,} parameters" in (whole / "run/model/README.md").read_text()


def test_the_preview_shows_pictures_as_the_field_sees_them(whole, tmp_path):
    batches = build_source(load(str(whole / "c.yaml"))).load(CPU)
    save_grid(batches.space, batches(0, range(16))[0], tmp_path / "grid.png")
    ours, expected = (np.asarray(Image.open(path)) for path in (whole / "run" / "data.png", tmp_path / "grid.png"))
    assert np.array_equal(ours, expected)
    main(["data", "preview", str(whole / "c.yaml"), "--count", "16", "--out", str(tmp_path / "preview.png")])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "preview.png")), expected)


def test_every_loss_of_a_step_is_of_augmented_pictures_and_the_held_out_loss_of_none(tmp_path, monkeypatch):
    told, loss = [], FlowMatching.loss

    def watched(self, field, draw):
        told.append(draw.cond)
        return loss(self, field, draw)

    monkeypatch.setattr(FlowMatching, "loss", watched)
    settings = write_settings(tmp_path / "c.yaml", **{**AUGMENTED, "train": {"steps": 1}})
    main(["train", str(settings), "--run", str(tmp_path / "run")])
    kinds = [len(cond.label) if cond.augmentation is not None else -len(cond.label) for cond in told]
    assert {16, -8} == set(kinds)


def test_without_augmentation_the_field_has_no_more_weights_and_the_same_ones(tmp_path):
    plain, ours = (
        load(str(write_settings(tmp_path / "c.yaml", data={**AUGMENTED["data"], "augment": augment})))
        for augment in (0.0, 0.1)
    )
    facts = build_source(plain).facts
    before, after = build_field(plain, facts).state_dict(), build_field(ours, facts).state_dict()
    assert after.keys() - before.keys() == {"augment.weight"} and not before.keys() - after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert after["augment.weight"].shape == (128, 9) and not after["augment.weight"].any()


def test_a_run_cannot_be_continued_with_another_augmentation(whole, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(whole / "c.yaml"), "--run", str(whole / "run"), "--data.augment", "0.0"])
    assert stop.value.code == 2
    assert "--allow data.augment" in capsys.readouterr().err


def test_what_is_moved_is_not_paired():
    with pytest.raises(SettingsError, match=r"coupling\.kind ot and data\.augment do not work together"):
        validate(Config, {**AUGMENTED, "coupling": {"kind": "ot"}}, "here")


def test_points_are_not_augmented(refused):
    code, said = refused("train", "configs/checkerboard.yaml", "--data.augment", "0.1")
    assert code == 2 and "augment" in said


@pytest.mark.parametrize("augment", ["1.1", "-0.1"])
def test_augment_is_a_share(augment, refused):
    code, said = refused("train", "configs/digits.yaml", "--data.augment", augment)
    assert code == 2 and "data.augment" in said
