"""`flowimg likelihood` on runs of two steps: what is told, kept, drawn and refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_settings
from torch import nn

from flowimg.build.data import build_toy
from flowimg.cli import main
from flowimg.jobs import drawing
from flowimg.jobs import likelihood as job
from flowimg.settings.data import PointData
from flowimg.settings.run import Config


@pytest.fixture
def run(tiny, tmp_path):
    def run(name):
        return Path(shutil.copytree(getattr(tiny, name), tmp_path / name))

    return run


class Still(nn.Module):
    """A velocity of 0: data keep the density of noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, t, cond=None):
        return 0 * x


def still(monkeypatch):
    """A run's field that stands still."""
    open_run = drawing.open_run

    def opened(*args):
        from dataclasses import replace

        return replace(open_run(*args), field=Still())

    monkeypatch.setattr(drawing, "open_run", opened)


def newest(folder):
    return json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])


def test_a_field_that_stands_still_gives_points_the_density_of_noise(run, monkeypatch, capsys):
    still(monkeypatch)
    monkeypatch.setattr(job, "SIDE", 20)
    folder = run("points")
    main(["likelihood", str(folder), "--count", "4000", "--solver", "euler", "--num-steps", "1"])
    found = newest(folder)
    # uniform on the filled cells of a 4 x 4 board of half side e: E x^2 = e^2 / 3 each way
    e = 2 / 0.45
    assert found["nats"] == pytest.approx(math.log(2 * math.pi) + e**2 / 3, abs=4 * found["nats_error"])
    assert found["entropy"] == pytest.approx(math.log(39.506), abs=1e-3)
    assert found["nfe"] == 1 and found["count"] == 4000
    assert "exact divergence" in capsys.readouterr().out
    monkeypatch.setattr("flowimg.jobs.figures.irreducible.DRAWS", 16)
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert "Density of the flow" in page


@pytest.mark.parametrize("more", [[], ["--split", "train"], ["--batch-size", "3"]])
def test_bits_of_a_field_that_stands_still_are_those_of_noise(run, monkeypatch, more):
    still(monkeypatch)
    folder = run("classes")
    main(["likelihood", str(folder), "--count", "8", "--solver", "euler", "--num-steps", "1", *more])
    found = newest(folder)
    from flowimg.build.data import build_source
    from flowimg.settings.reading import load

    config = load(str(folder / "config.yaml"))
    if "--split" in more:  # of which one picture is set aside at least
        config = config.model_copy(update={"data": config.data.model_copy(update={"held_out": 1})})
        x = build_source(config).load(torch.device("cpu")).some(8).pixels.double() / 127.5 - 1
    else:
        x = build_source(config).load(torch.device("cpu")).held_out(8)[0].double()
    # what dequantisation adds to x^2 on average is (1 / 127.5)^2 / 12
    square = float((x**2).mean()) + 127.5**-2 / 12
    wanted = (math.log(2 * math.pi) + square) / 2 / math.log(2) + math.log2(127.5)
    assert found["bits_per_dim"] == pytest.approx(wanted, abs=2e-4)
    assert found["count"] == 8 and found["bits_error"] > 0 and found["of"].endswith("given their class")


def test_what_a_class_leaves_open_is_less_by_what_it_tells(tmp_path, monkeypatch, capsys):
    """A board of eight cells has eight classes: given one, ln 8 less is left; and a map of all classes is drawn."""
    still(monkeypatch)
    monkeypatch.setattr(job, "SIDE", 20)
    quick = ["--train.steps", "2", "--train.batch-size", "16", "--grid.num-steps", "1", "--grid.count", "10"]
    quick += ["--figures", "false", "--data.labels", "true"]
    for drop in ("0.1", "0"):
        folder = tmp_path / drop
        main(["train", "configs/checkerboard.yaml", "--run", str(folder), *quick, "--train.label-drop", drop])
        main(["likelihood", str(folder), "--count", "50", "--solver", "euler", "--num-steps", "1"])
        assert newest(folder)["entropy"] == pytest.approx(math.log(39.506 / 8), abs=1e-3)
        assert (folder / "figures" / "log_density.png").exists() == (drop == "0.1")
    assert "no map of log-density: with train.label_drop 0" in capsys.readouterr().out


def test_the_same_pictures_have_the_same_bits_whatever_the_batch_and_more_probes_other_ones(run):
    folder = run("classes")
    fixed = ["--count", "6", "--solver", "heun", "--num-steps", "2"]
    for more in ([], ["--batch-size", "2"], ["--probes", "3"], ["--seed", "1"]):
        main(["likelihood", str(folder), *fixed, *more])
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    first, cut, more, other = (line["bits_per_dim"] for line in lines)
    assert cut == pytest.approx(first, abs=1e-5)
    assert more != first != other and more == pytest.approx(first, abs=0.5)
    assert [line["nfe"] for line in lines] == [4] * 4


def test_entropy_is_known_where_the_density_is_even():
    for cells in (2, 4, 8, 5):
        toy = build_toy(Config(data=PointData(cells=cells)))
        filled = sum((row + column) % 2 == 0 for row in range(cells) for column in range(cells))
        assert toy.entropy == pytest.approx(math.log(filled * (4 / 0.45 / cells) ** 2))
    assert build_toy(Config(data=PointData(source="moons"))).entropy is None


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("points", ["--split", "test"], "are for runs on images"),
        ("points", ["--probes", "2"], "are for runs on images"),
        ("classes", ["--guidance", "2"], "only an unguided field has a density"),
    ],
)
def test_what_has_no_meaning_is_refused(tiny, name, options, word, refused):
    status, said = refused("likelihood", getattr(tiny, name), *options)
    assert status == 2 and word in said


def test_a_split_of_other_classes_than_the_runs_is_refused(tmp_path, refused):
    """Class 0 of the other split would be taken for class 0 of the run."""
    for split, names in (("train", ("a", "b", "c")), ("test", ("b", "c"))):
        for number in range(12):
            file = tmp_path / "pictures" / split / names[number % len(names)] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    data = {"kind": "images", "source": str(tmp_path / "pictures"), "held_out": 2}
    main(["train", str(write_settings(tmp_path / "r.yaml", data=data)), "--run", str(tmp_path / "run")])
    status, said = refused("likelihood", tmp_path / "run", "--split", "test", "--count", "4")
    assert status == 3 and "has the classes b, c, and the run was trained on a, b, c" in said
