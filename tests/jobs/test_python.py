"""The Python API: it draws what `flowimg sample` draws, and answers wrong options as the command line does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import flowimg
from flowimg.cli import main
from flowimg.errors import SettingsError


@pytest.fixture
def run(tiny):
    return flowimg.load(tiny.classes, device="cpu")


def test_it_draws_the_pictures_of_the_verb(tiny, run, tmp_path):
    how = ["--seed", "5", "--count", "3", "--label", "7", "--num-steps", "3", "--guidance", "2", "--format", "npy"]
    main(["sample", str(tiny.classes), *how, "--out", str(tmp_path / "out")])
    drawn = run.sample(3, seed=5, label="7", num_steps=3, guidance=2.0)
    assert drawn.nfe == 6 and drawn.cond.label.tolist() == [7, 7, 7]
    assert np.array_equal(drawn.pixels, np.load(tmp_path / "out" / "samples.npy"))
    drawn.save(tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").width > 0


@pytest.mark.parametrize("label", [1, "1", np.int64(1), torch.tensor(1)], ids=repr)
def test_a_label_is_the_name_of_a_class_whatever_its_type(run, label, monkeypatch):
    """Of the classes 10, 1, 20 ... the class 1 was drawn for "1", and the class 20 for 2."""
    names = ("10", "1", "20", *"abcdefg")
    monkeypatch.setattr(run, "_run", replace(run._run, facts=run._run.facts._replace(classes=names)))
    assert run.sample(2, label=label, num_steps=1).cond.label.tolist() == [1, 1]
    for wrong in (2, "2", 0, -1, True, 1.0, [1]):
        with pytest.raises(SettingsError, match=r"is no class of .*: there are "):
            run.sample(2, label=wrong, num_steps=1)


def test_all_that_the_package_offers_is_listed_and_there():
    assert dir(flowimg) == sorted(flowimg.__all__) and {"load", "train", "configure"} <= set(dir(flowimg))
    assert all(hasattr(flowimg, name) for name in dir(flowimg))
    assert not hasattr(flowimg, "trian")


def test_points_are_drawn_as_points(tiny):
    drawn = flowimg.load(tiny.points, device="cpu").sample(5, num_steps=2)
    assert drawn.x.shape == drawn.pixels.shape == (5, 2)


def test_the_weights_are_those_asked_for(tiny, run):
    raw = flowimg.load(tiny.classes, weights="raw", device="cpu")
    assert not torch.equal(raw.sample(2, num_steps=1).x, run.sample(2, num_steps=1).x)
    assert raw.step == run.step == 2 and run.classes == tuple(map(str, range(10)))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"weights": "raw"}, "weights"),
        ({"step": 2, "out": "somewhere"}, "no out or step"),
        ({"num_step": 3}, "num_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"label": "cat"}, "cat"),
    ],
)
def test_options_that_are_wrong_or_of_no_use_are_refused(run, options, word):
    with pytest.raises(SettingsError, match=word):
        run.sample(2, **options)


@pytest.mark.parametrize("weights", ["Ema", "average", "0.1", "none", True, 0.5])
def test_weights_of_no_such_name_are_not_the_raw_ones(tiny, weights):
    """Any text but "ema" was taken for "raw"."""
    with pytest.raises(SettingsError, match="is none of ema, raw and a length"):
        flowimg.load(tiny.classes, weights=weights)


def test_what_is_not_there_is_not_loaded(tiny, tmp_path):
    with pytest.raises(SettingsError, match="no run"):
        flowimg.load(tmp_path)
    with pytest.raises(SettingsError, match="step 7: there are 0, 2"):
        flowimg.load(tiny.classes, step=7)
