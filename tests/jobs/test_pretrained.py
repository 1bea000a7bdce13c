"""Runs that start from the weights of a stock UNet2DModel."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import write_settings

from flowimg.cli import main


def stock(size=8, channels=1, classes=None, **more):
    """A network that is not one of flowimg's: other heads, other groups, other levels."""
    torch.manual_seed(7)
    options = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 16}
    options |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    options |= {"sample_size": size, "in_channels": channels, "out_channels": channels, "num_class_embeds": classes}
    return UNet2DModel(**{**options, **more})


def settings(path, pretrained, labels=False, train=(), **changes):
    field = {"kind": "unet", "pretrained": str(pretrained), **changes}
    return write_settings(path, labels=labels, field=field, train=train)


def begun(run, name="weights"):
    """The weights at step 0, by the names that diffusers gives them."""
    weights = load_file(run / "checkpoints" / "step_00000000" / f"{name}.safetensors")
    return {key.removeprefix("unet."): value for key, value in weights.items()}


def differing(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [key for key in theirs if not torch.equal(ours[key], theirs[key])]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run that began at a network, whose folder is gone."""
    place = tmp_path_factory.mktemp("pretrained")
    stock().save_pretrained(place / "net")
    config = settings(place / "a.yaml", place / "net", train={"steps": 4})
    main(["train", str(config), "--run", str(place / "run"), "--train.stop-at", "2"])
    shutil.rmtree(place / "net")
    return place


def test_a_run_begins_with_the_very_weights(place):
    theirs = stock().state_dict()
    for name in ("weights", "ema"):
        assert differing(begun(place / "run", name), theirs) == []
    trained = load_file(place / "run" / "checkpoints" / "step_00000002" / "weights.safetensors")
    assert any(not torch.equal(trained[f"unet.{key}"], value) for key, value in theirs.items())


def test_its_run_is_sampled_and_continued_when_the_network_is_gone(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    main(["sample", str(tmp_path / "run"), "--count", "2", "--num-steps", "1", "--out", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "grid.png").width > 16
    main(["export", str(tmp_path / "run"), str(tmp_path / "model")])
    exported = UNet2DModel.from_pretrained(tmp_path / "model", subfolder="unet")
    assert exported.config["block_out_channels"] in ((16, 32), [16, 32]) and exported.config["attention_head_dim"] == 16
    capsys.readouterr()
    main(["train", str(tmp_path / "run")])
    assert "continued from step 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step_00000004").exists()
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000004" / "state.json").read_text())
    assert state["architecture"]["block_out_channels"] == [16, 32]


def test_the_unet_of_a_pipeline_is_found_in_its_folder(tmp_path):
    DDPMPipeline(stock(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    config = settings(tmp_path / "a.yaml", tmp_path / "pipeline")
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.stop-at", "1"])
    assert differing(begun(tmp_path / "run"), stock().state_dict()) == []


def test_what_flowimg_exports_it_starts_from_and_what_it_learnt_is_kept(tiny, tmp_path):
    config = settings(tmp_path / "a.yaml", tiny.plain / "model")
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.stop-at", "1"])
    learnt = load_file(tiny.plain / "checkpoints" / "step_00000002" / "ema.safetensors")
    assert differing(begun(tmp_path / "run"), {key.removeprefix("unet."): v for key, v in learnt.items()}) == []


@pytest.mark.parametrize("classes", [None, 10, 11, 12])
def test_the_class_embedding_is_kept_where_it_fits_and_new_where_not(classes, tmp_path):
    # ten digits and "no class" are eleven rows
    network = stock(classes=classes)
    network.save_pretrained(tmp_path / "net")
    config = settings(tmp_path / "a.yaml", tmp_path / "net", labels=True)
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.stop-at", "1"])
    ours, theirs = begun(tmp_path / "run"), network.state_dict()
    embedding = ours["class_embedding.weight"]
    assert len(embedding) == 11
    kept = classes == 11 and torch.equal(embedding, theirs["class_embedding.weight"])
    assert kept == (classes == 11)
    assert [key for key in theirs if key != "class_embedding.weight" and not torch.equal(ours[key], theirs[key])] == []


def test_without_classes_the_embedding_is_left_out(tmp_path):
    network = stock(classes=11)
    network.save_pretrained(tmp_path / "net")
    config = settings(tmp_path / "a.yaml", tmp_path / "net", dropout=0.25)
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.stop-at", "1"])
    ours = begun(tmp_path / "run")
    assert set(ours) == set(network.state_dict()) - {"class_embedding.weight"}
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000000" / "state.json").read_text())
    assert state["architecture"]["dropout"] == 0.25 and state["architecture"]["num_class_embeds"] is None


def test_its_channels_layers_and_attention_win_over_those_of_the_settings_and_that_is_said(tmp_path, capsys):
    stock().save_pretrained(tmp_path / "net")
    more = {"channels": [32, 64], "layers": 3, "attention": [4], "zero_output": True}
    config = settings(tmp_path / "a.yaml", tmp_path / "net", **more)
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.stop-at", "1"])
    assert differing(begun(tmp_path / "run"), stock().state_dict()) == []
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("field ")]
    assert f"{tmp_path / 'net'} (its own sizes)" in said


# --- what cannot be used ---------------------------------------------------------------------------------------------


def lose_a_weight(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file)


def cut_short(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_settings(folder):
    (folder / "config.json").unlink()


def pickled(folder):
    shutil.rmtree(folder)
    stock().save_pretrained(folder, safe_serialization=False)
    assert list(folder.glob("*.bin"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["there is no such folder"]),
        (no_settings, ["config.json"]),
        (pickled, ["safetensors"]),
        (lose_a_weight, ["an incomplete UNet2DModel", "1 weights are missing", "conv_in.weight"]),
        (cut_short, ["Unable to load weights"]),
    ],
)
def test_a_folder_without_a_whole_network_is_one_sentence(spoil, words, tmp_path, refused):
    stock().save_pretrained(tmp_path / "net")
    spoil(tmp_path / "net")
    status, said = refused("train", settings(tmp_path / "a.yaml", tmp_path / "net"), "--run", tmp_path / "run")
    assert status == 3 and str(tmp_path / "net") in said
    assert all(word in said for word in words), said
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (stock(channels=3), ["turns 3 channels into 3", "the pictures have 1", "data.channels"]),
        (
            stock(
                block_out_channels=(16, 16, 16, 32, 32),
                down_block_types=("DownBlock2D",) * 5,
                up_block_types=("UpBlock2D",) * 5,
            ),
            ["8 pixels do not halve 4 times", "data.size"],
        ),
        (stock(time_embedding_type="fourier"), ["embeds its time"]),
    ],
    ids=["channels", "size", "time"],
)
def test_a_network_that_does_not_fit_is_one_sentence(network, words, tmp_path, refused):
    network.save_pretrained(tmp_path / "net")
    status, said = refused("train", settings(tmp_path / "a.yaml", tmp_path / "net"), "--run", tmp_path / "run")
    assert status == 3
    assert all(word in said for word in words), said
    assert not (tmp_path / "run" / "config.yaml").exists()
