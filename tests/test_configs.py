"""The recipes in configs/: their headers say what they resolve to, and they run on data of their source's form."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from flowimg.build.facts import DataFacts
from flowimg.build.field import build_field
from flowimg.cli import main
from flowimg.settings.reading import load

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))
SHAPES = {
    "cifar10": DataFacts((3, 32, 32), ()),
    "cifar10_large": DataFacts((3, 32, 32), ()),
    "cifar10_ours": DataFacts((3, 32, 32), ()),
    "cats": DataFacts((3, 64, 64), ()),
    "folder": DataFacts((3, 64, 64), ()),
    "fashion_mnist": DataFacts((1, 32, 32), tuple("0123456789")),
}
"""What the source's pictures are trained on as."""


def header(path):
    lines = path.read_text().splitlines()
    return " ".join(line[1:].strip() for line in lines if line.startswith("#"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_header_names_the_command_that_uses_this_file(path):
    assert f"configs/{path.name}" in header(path)
    assert load(str(path)).run == f"runs/{path.stem}"


@pytest.mark.parametrize("name", SHAPES)
def test_the_header_counts_parameters_steps_and_pictures_as_they_are(name):
    path = ROOT / "configs" / f"{name}.yaml"
    config, text = load(str(path)), header(path)
    field = build_field(config, SHAPES[name])
    assert f"{sum(p.numel() for p in field.parameters()):,} parameters" in text
    if stated := re.search(r"([\d,]+) steps of (\d+)", text):
        assert [int(number.replace(",", "")) for number in stated.groups()] == [
            config.train.steps,
            config.train.batch_size,
        ]
    labelled = name == "fashion_mnist"
    assert config.data.kind == "images" and config.data.labels == labelled
    assert (config.data.flip or config.data.augment > 0) != labelled


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "folder", "cats"])
def test_recipes_for_any_machine_leave_the_precision_to_it(name):
    """Digits in bf16 by name took 100 minutes on a CPU without AVX-512, and eight in fp32."""
    assert load(str(ROOT / "configs" / f"{name}.yaml")).train.precision == "auto"


def test_cifar10_is_the_recipe_of_its_header():
    config = load(str(ROOT / "configs" / "cifar10.yaml"))
    data, field, optim, train = config.data, config.field, config.optim, config.train
    assert data.source == "uoft-cs/cifar10"
    assert (field.channels, field.layers, field.attention, field.dropout) == ((128, 256, 256, 256), 2, (16,), 0.1)
    assert (optim.lr, optim.warmup, optim.schedule, optim.clip, optim.ema) == (2e-4, 5000, "constant", 1.0, 0.9999)
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.999), 0.0)
    assert (train.steps, train.batch_size, train.precision) == (400_000, 128, "bf16")
    assert (config.path.kind, config.coupling.kind, config.times.kind) == ("linear", "independent", "uniform")
    epochs = train.steps * train.batch_size / (50_000 - data.held_out)
    assert f"{epochs:,.0f} epochs" in header(ROOT / "configs" / "cifar10.yaml")


def test_cifar10_large_is_the_recipe_of_its_header():
    config = load(str(ROOT / "configs" / "cifar10_large.yaml"))
    data, field, optim, train = config.data, config.field, config.optim, config.train
    assert (data.source, data.augment) == ("uoft-cs/cifar10", 0)
    assert (field.channels, field.layers, field.attention, field.dropout) == ((256, 256, 256), 4, (16,), 0.3)
    assert field.scale_shift
    assert (optim.lr, optim.warmup, optim.schedule, optim.clip, optim.ema) == (1e-4, 0, "constant", None, 0.999)
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.95), 0.01)
    assert (train.steps, train.batch_size, train.precision) == (175_000, 512, "bf16")
    assert (config.path.kind, config.coupling.kind, config.weighting.kind) == ("linear", "independent", "none")
    assert (config.times.kind, config.times.stratified, config.times.shift) == ("skewed", False, 1.0)
    assert (config.grid.solver, config.grid.times, config.grid.num_steps) == ("heun", "edm", 50)
    epochs = train.steps * train.batch_size / (50_000 - data.held_out)
    assert f"{epochs:,.0f} epochs" in header(ROOT / "configs" / "cifar10_large.yaml")


def test_our_recipe_sees_as_many_pictures_by_the_same_network_as_torchcfms():
    ours, theirs = (load(str(ROOT / "configs" / f"{name}.yaml")) for name in ("cifar10_ours", "cifar10"))
    assert ours.train.steps * ours.train.batch_size == theirs.train.steps * theirs.train.batch_size
    same = ("channels", "layers", "attention", "scale_shift")
    assert [getattr(ours.field, name) for name in same] == [getattr(theirs.field, name) for name in same]
    assert ours.train.snapshots > 0 and ours.data.held_out == theirs.data.held_out


@pytest.mark.parametrize("name", ["cifar10", "cifar10_large", "cifar10_ours"])
def test_the_header_counts_operations_as_they_are(name):
    path = ROOT / "configs" / f"{name}.yaml"
    config, text = load(str(path)), header(path)
    with torch.device("meta"), torch.no_grad():
        field = build_field(config, SHAPES[name]).eval()
        with FlopCounterMode(display=False) as counter:
            field(torch.randn(1, 3, 32, 32), torch.rand(1))
    each = counter.get_total_flops()
    told = float(re.search(r"([\d.]+) GFLOP per image, forward", text)[1])
    assert f"{told:.1f}" in (f"{each / 1e9:.1f}", f"{3 * each / 1e9:.1f}")
    whole = 3 * each * config.train.steps * config.train.batch_size
    assert float(re.search(r"([\d.]+e\d+) in total", text)[1]) == float(f"{whole:.1e}")
    assert int(re.search(r"(\d+) hours", text)[1]) == round(whole / 100e12 / 3600)


def test_cats_keeps_one_class_at_64_pixels():
    data = load(str(ROOT / "configs" / "cats.yaml")).data
    assert (data.source, data.classes, data.size, data.resize) == ("huggan/AFHQ", ("cat",), 64, "crop")


def parquet(folder, image, names, count, side):
    """A folder as the hub gives it: colour pictures and their labels, in one parquet file of the split train."""
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    columns = {image: [Image.fromarray(pixels) for pixels in noise], "label": [k % len(names) for k in range(count)]}
    features = datasets.Features({image: datasets.Image(), "label": datasets.ClassLabel(names=names)})
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features).to_parquet(str(folder / "train-00000-of-00001.parquet"))


CIFAR10 = (
    ("img", ["airplane", "automobile", "bird"], 540, 32),
    "540 pictures of train (column img), 32 x 32, RGB",
)
CASES = {
    "cifar10": CIFAR10,
    "cifar10_large": CIFAR10,
    "cifar10_ours": CIFAR10,
    "cats": (("image", ["cat", "dog", "wild"], 480, 80), "160 of 480 pictures of train (column image), 80 x 80, RGB"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_full_network_takes_a_step_on_local_data_of_the_hubs_form(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("flowimg.jobs.train.pace.SECONDS", 1e9)  # the grid is drawn on a busy machine too
    form, found = CASES[name]
    parquet(tmp_path / "data", *form)
    config, run = ROOT / "configs" / f"{name}.yaml", tmp_path / "run"
    quick = [
        "--train.steps",
        "1",
        "--train.batch-size",
        "2",
        "--train.log-every",
        "1",
        "--data.held-out",
        "8",
        "--grid.count",
        "1",
        "--grid.num-steps",
        "1",
        "--figures",
        "false",
    ]
    main(["train", str(config), "--data.source", str(tmp_path / "data"), "--run", str(run), *quick])
    said = capsys.readouterr().out
    assert found in said and "labels not used" in said
    assert re.search(r"([\d,]+) parameters", said)[1] in header(config)
    assert (run / "model" / "model_index.json").exists() and (run / "samples" / "step_00000001.png").exists()
