"""Rectangles, five channels of 16 bits, transparent pictures, floats and buckets, from files to files and diffusers."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from flowimg.build.sampler import build_sampler
from flowimg.cli import main
from flowimg.data.buckets import BucketBatches
from flowimg.flow.condition import Condition
from flowimg.jobs import sample
from flowimg.runs.opening import open_run
from flowimg.sampling.pipeline import LabelPipeline
from flowimg.settings.sampling import Solving
from flowimg.spaces.formats import from_file

COUNT, SEEDS = 40, range(3, 6)
STEPS = 5


def waves(number, height, width, channels):
    """A smooth picture of its own, in [0, 1], shape (H, W, C)."""
    y, x = np.mgrid[:height, :width]
    parts = [np.sin(x / (3 + c) + number) * np.cos(y / (2 + number % 5)) for c in range(channels)]
    return np.stack(parts, -1) / 2 + 0.5


def grey(path, number):
    Image.fromarray((waves(number, 24, 32, 1)[..., 0] * 255).astype(np.uint8)).save(path / f"{number}.png")


def five(path, number):
    array = (waves(number, 8, 12, 5) * 65535).round().astype(np.uint16)
    tifffile.imwrite(path / f"{number}.tif", array, photometric="minisblack", planarconfig="contig")


def rgba(path, number):
    Image.fromarray((waves(number, 8, 8, 4) * 255).astype(np.uint8)).save(path / f"{number}.png")


def floats(path, number):
    np.save(path / f"{number}.npy", (waves(number, 8, 8, 1)[..., 0] * 300 - 100).astype(np.float32))


def shapes(path, number):
    height, width = [(20, 20), (16, 32), (32, 16)][number % 3]
    Image.fromarray((waves(number, height, width, 3) * 255).astype(np.uint8)).save(path / f"{number}.png")


SETS = {
    "grey": (grey, {"labels": False}),
    "five": (five, {"channels": "all", "depth": 16}),
    "rgba": (rgba, {"channels": "rgba", "labels": False}),
    "floats": (floats, {"depth": "float", "range": [-100, 200], "labels": False}),
    "buckets": (shapes, {"buckets": {"area": 64, "ratios": [0.5, 1, 2], "multiple": 2}}),
}


@pytest.fixture(scope="session")
def kinds(once):
    """A short run on each kind of pictures, straight and in two parts: `kinds(name)`."""

    def train(name):
        draw, data = SETS[name]

        def make(folder):
            for number in range(COUNT):
                place = folder / "pictures" / "ab"[number % 2]
                place.mkdir(parents=True, exist_ok=True)
                draw(place, number)
            settings = {
                "data": {"kind": "images", "source": str(folder / "pictures"), "held_out": 4, "flip": True, **data},
                "field": {"kind": "unet", "channels": [32, 64], "layers": 1, "zero_output": False},
                "train": {"steps": 8, "batch_size": 8, "checkpoint_every": 4, "precision": "fp32", "log_every": 2},
                "grid": {"count": 6, "num_steps": 1},
                "figures": False,
            }
            (folder / "c.yaml").write_text(yaml.safe_dump(settings))
            main(["train", str(folder / "c.yaml"), "--run", str(folder / "straight")])
            main(["train", str(folder / "c.yaml"), "--run", str(folder / "cut"), "--train.stop-at", "4"])
            main(["train", str(folder / "c.yaml"), "--run", str(folder / "cut")])

        folder = once(f"kind-{name}", make)
        return SimpleNamespace(folder=folder, run=folder / "straight", cut=folder / "cut")

    return train


def states(run):
    folder = run / "checkpoints" / "step_00000008"
    return {f"{file.stem}/{name}": t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("name", SETS)
def test_a_run_that_was_stopped_is_the_run_bit_for_bit(kinds, name):
    straight, cut = states(kinds(name).run), states(kinds(name).cut)
    assert straight.keys() == cut.keys() and len(straight) > 100
    assert [key for key in straight if not torch.equal(straight[key], cut[key])] == []


@pytest.mark.parametrize("name", SETS)
def test_a_run_shows_what_it_learns_and_draws(kinds, name):
    run = kinds(name).run
    for file in ("data.png", "samples/step_00000008.png"):
        seen = np.array(Image.open(run / file))
        assert seen.ndim == 3 and seen.shape[2] == 3 and len(np.unique(seen)) > 20  # a picture, and not one colour
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out_loss" in record and record["held_out_loss"] > 0 for record in records)


@pytest.mark.parametrize(
    ("name", "ending", "kind", "shape"),
    [
        ("grey", "png", "uint8", (24, 32, 1)),
        ("five", "tif", "uint16", (8, 12, 5)),
        ("rgba", "png", "uint8", (8, 8, 4)),
        ("floats", "tif", "float32", (8, 8, 1)),
    ],
)
def test_samples_are_of_the_type_that_came_in(kinds, name, ending, kind, shape, tmp_path):
    how = ["--count", "3", "--seed", "3", "--num-steps", "2", "--precision", "fp32"]
    main(["sample", str(kinds(name).run), *how, "--out", str(tmp_path / "files")])
    files = sorted((tmp_path / "files" / "images").iterdir())
    assert [file.name for file in files] == [f"{seed:06d}.{ending}" for seed in SEEDS]
    rows = np.stack([from_file(file.read_bytes()) for file in files])
    assert rows.dtype == kind and rows.shape == (3, *shape) and len(np.unique(rows)) > 50
    main(["sample", str(kinds(name).run), *how, "--out", str(tmp_path / "npy"), "--format", "npy"])
    one = np.load(tmp_path / "npy" / "samples.npy")
    assert one.dtype == kind and np.array_equal(one, rows)
    if name == "floats":
        assert one.min() >= -100 and one.max() <= 200 and one.max() > 60


@pytest.mark.parametrize("name", ["five", "rgba"])
def test_parquet_of_samples_is_read_back(kinds, name, tmp_path):
    how = ["--count", "3", "--seed", "3", "--num-steps", "2", "--precision", "fp32"]
    for form in ("npy", "parquet"):
        main(["sample", str(kinds(name).run), *how, "--out", str(tmp_path / form), "--format", form])
    data = ["--channels", "all", "--depth", "16"] if name == "five" else ["--channels", "rgba"]
    source = str(tmp_path / "parquet" / "samples.parquet")
    found = main(["data", "check", source, *data, "--json"])
    assert found is None
    from flowimg.build.data import build_source
    from flowimg.settings.reading import validate
    from flowimg.settings.run import Config

    settings = {"channels": "all", "depth": 16} if name == "five" else {"channels": "rgba"}
    data = {"kind": "images", "source": source, "held_out": 0, "label_column": None, **settings}
    config = validate(Config, {"data": data, "field": {"kind": "unet"}}, "test")
    batches = build_source(config).load(torch.device("cpu"))
    stored = batches.images.pixels.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(stored, np.load(tmp_path / "npy" / "samples.npy"))


def ours(run, cond=None, shape=None):
    """flowimg's samples as diffusers returns pictures: (B, H, W, C) in [0, 1]."""
    trained = open_run(str(run), "ema", None, torch.device("cpu"), shape)
    how = Solving(num_steps=STEPS, times="diffusers")
    (batch,) = build_sampler(trained.field, trained.config, trained.space, how).samples(SEEDS, cond)
    return (batch.x_1 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@pytest.mark.parametrize("name", ["grey", "rgba", "floats"])
def test_the_stock_pipeline_draws_the_pictures_of_flowimg(kinds, name):
    from diffusers import DDPMPipeline, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(kinds(name).run / "model")
    assert type(pipeline) is DDPMPipeline
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(3, generators(), num_inference_steps=STEPS, output_type="np").images
    np.testing.assert_allclose(drawn, ours(kinds(name).run), atol=1e-6)
    assert drawn.std() > 0.1


@pytest.mark.parametrize(("name", "shape"), [("five", None), ("buckets", (8, 8)), ("buckets", (12, 6))])
def test_the_pipeline_with_labels_draws_the_pictures_of_flowimg(kinds, name, shape):
    pipeline = LabelPipeline.from_pretrained(kinds(name).run / "model")
    pipeline.set_progress_bar_config(disable=True)
    how = {"generator": generators(), "num_inference_steps": STEPS, "output_type": "np", "shape": shape}
    drawn = pipeline(["a", "b", "b"], **how).images
    np.testing.assert_allclose(drawn, ours(kinds(name).run, Condition(torch.tensor([0, 1, 1])), shape), atol=1e-6)
    assert drawn.shape[1:3] == (shape or (8, 12))


def test_the_card_says_how_numbers_of_16_bits_are_made(kinds):
    card = (kinds("five").run / "model/README.md").read_text()
    assert "pictures of 5 channels of 16 bits, 12 x 8 pixels" in card
    assert 'output_type="np"' in card and "`numbers * 65535`, rounded" in card
    assert "`numbers * 300 + -100`" in (kinds("floats").run / "model/README.md").read_text()
    card = (kinds("buckets").run / "model/README.md").read_text()
    assert "It draws 8 x 8 pixels, and another shape by `shape=(6, 12)` in the call (height, width)" in card


@pytest.mark.usefixtures("quick_judge")
@pytest.mark.parametrize("name", ["five", "floats", "buckets"])
def test_samples_of_every_kind_are_compared_with_the_data(kinds, name, capsys):
    run = kinds(name).run
    main(["evaluate", str(run), "--count", "8", "--num-steps", "1"])
    record = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    said = capsys.readouterr().out
    assert record["frechet"] > 0
    if name == "buckets":
        assert "need one shape (--shape)" in said and record["features"] == "proxy-random"
        main(["evaluate", str(run), "--count", "8", "--num-steps", "1", "--shape", "12", "6"])
        record = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        assert record["nearest"] > 0 and "agreement" in record
    else:
        kind = {"five": "pictures of 5 channels of 16 bits", "floats": "grey pictures of floating-point numbers"}
        assert record["compared_as"] == kind[name]


def test_networks_of_others_refuse_five_channels(kinds, refused):
    status, said = refused("evaluate", kinds("five").run, "--features", "inception", "--count", "8")
    assert status == 2 and "5 channels: give proxy" in said


# --- buckets ---------------------------------------------------------------------------------------------------------


def test_samples_of_buckets_have_the_shapes_in_proportion_and_each_its_seed(kinds, tmp_path):
    run = str(kinds("buckets").run)
    how = ["--num-steps", "1", "--precision", "fp32"]
    main(["sample", run, *how, "--count", "24", "--out", str(tmp_path / "all")])
    files = sorted((tmp_path / "all" / "images").iterdir())
    assert [file.name for file in files] == [f"{seed:06d}.png" for seed in range(24)]
    pictures = {file.name: np.array(Image.open(file)) for file in files}
    sizes = [picture.shape[:2] for picture in pictures.values()]
    assert {size: sizes.count(size) for size in set(sizes)} == pytest.approx({(8, 8): 8, (12, 6): 8, (6, 12): 8}, abs=2)
    main(["sample", run, *how, "--count", "5", "--seed", "7", "--out", str(tmp_path / "some")])
    for file in (tmp_path / "some" / "images").iterdir():
        assert np.array_equal(np.array(Image.open(file)), pictures[file.name])


def test_leftovers_are_deleted_before_a_picture_of_any_shape_is_drawn(kinds, tmp_path, monkeypatch):
    """Other processes may still write pictures of the first shape while this one begins the next."""
    calls = []

    def noted(name):
        call = getattr(sample, name)
        monkeypatch.setattr(sample, name, lambda *args: calls.append(name) or call(*args))

    noted("_lacking")
    noted("_draw")
    how = ["--num-steps", "1", "--count", "12", "--out", str(tmp_path / "out")]
    main(["sample", str(kinds("buckets").run), *how])
    assert calls == ["_lacking"] * 3 + ["_draw"] * 3


def test_one_file_holds_one_shape(kinds, refused, tmp_path):
    run = kinds("buckets").run
    status, said = refused("sample", run, "--format", "npz", "--count", "4", "--num-steps", "1")
    assert status == 2 and "--shape" in said
    main(["sample", str(run), "--format", "npz", "--count", "4", "--num-steps", "1", "--shape", "6", "12",
          "--out", str(tmp_path / "out")])  # fmt: skip
    assert np.load(tmp_path / "out/samples.npz")["samples"].shape == (4, 6, 12, 3)
    status, said = refused("sample", run, "--count", "4", "--shape", "8", "9")
    assert status == 2 and "8 8, 12 6, 6 12" in said
    status, said = refused("sample", run, "--count", "4", "--shape", "8")
    assert status == 2 and said.endswith("shape: 8 is none of null, and two numbers: height, width")


def without_held_out(monkeypatch):
    """A bucket so small that none of its pictures is held out."""
    part = BucketBatches.part
    monkeypatch.setattr(
        BucketBatches, "part", lambda *args: replace(part(*args), apart=torch.zeros(0, dtype=torch.int64))
    )


def test_a_shape_without_held_out_pictures_is_named_by_likelihood(kinds, refused, monkeypatch):
    without_held_out(monkeypatch)
    status, said = refused("likelihood", kinds("buckets").run, "--shape", "12", "6", "--solver", "euler")
    assert status == 2 and "have the shape 12 6: give another --shape, or a --split" in said


@pytest.mark.usefixtures("quick_judge")
def test_where_none_is_held_out_the_judge_is_left_out(kinds, capsys, monkeypatch):
    without_held_out(monkeypatch)
    main(["evaluate", str(kinds("buckets").run), "--count", "8", "--num-steps", "1", "--shape", "12", "6"])
    said = capsys.readouterr().out
    assert "judge needs held-out pictures" in said and "nan" not in said


def test_other_runs_have_the_shape_that_they_have(kinds, refused):
    status, said = refused("sample", kinds("grey").run, "--count", "4", "--shape", "8", "9")
    assert status == 2 and "(height, width) is none that" in said and "learned: give one of 24 32" in said


@pytest.mark.parametrize("verb", ["interpolate", "figures", "likelihood", "invert"])
def test_verbs_that_draw_one_shape_take_it(kinds, verb, tmp_path):
    run, picture = str(kinds("buckets").run), str(kinds("buckets").folder / "pictures/a/0.png")
    more = {"interpolate": ["--out", str(tmp_path / "o")], "likelihood": ["--count", "2"], "invert": [picture]}
    for shape in ([], ["--shape", "12", "6"]):
        main([verb, run, *more.get(verb, []), "--solver", "euler", "--num-steps", "1", *shape])
        more["interpolate"] = ["--out", str(tmp_path / "again")]
