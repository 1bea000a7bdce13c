"""`flowimg sample` and `flowimg evaluate` from nothing but a run's folder."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import flowimg
from flowimg.cli import main
from flowimg.conditions.labels import parse_label
from flowimg.errors import SettingsError


@pytest.fixture
def runs(tiny, tmp_path):
    """Runs moved from where they were made: a conditional one on digits and one on points."""
    folder = tmp_path / "runs"
    shutil.copytree(tiny.classes, folder / "digits")
    shutil.copytree(tiny.points, folder / "points")
    return folder


def sample(runs, name, out, *more):
    main(["sample", str(runs / name), "--out", str(out), "--num-steps", "2", *more])


def test_image_k_has_seed_k_whatever_the_batch(runs, tmp_path):
    sample(runs, "digits", tmp_path / "a", "--count", "12", "--seed", "5", "--batch-size", "5")
    sample(runs, "digits", tmp_path / "b", "--count", "4", "--seed", "9")
    names = [f"{seed:06d}.png" for seed in range(5, 17)]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["grid.png", "images", "samples.json"]
    assert sorted(p.name for p in (tmp_path / "a" / "images").iterdir()) == names
    for seed in range(9, 13):
        one, two = (np.array(Image.open(tmp_path / d / "images" / f"{seed:06d}.png"), dtype=int) for d in "ab")
        assert one.shape == (8, 8) and abs(one - two).max() <= 1


def test_arrays_hold_what_the_pictures_hold(runs, tmp_path):
    sample(runs, "digits", tmp_path / "png", "--count", "3", "--label", "4")
    sample(runs, "digits", tmp_path / "npy", "--count", "3", "--label", "4", "--format", "npy")
    sample(runs, "digits", tmp_path / "npz", "--count", "3", "--label", "4", "--format", "npz")
    array = np.load(tmp_path / "npy" / "samples.npy", allow_pickle=False)
    assert array.shape == (3, 8, 8, 1) and array.dtype == np.uint8
    packed = np.load(tmp_path / "npz" / "samples.npz", allow_pickle=False)
    assert (packed["samples"] == array).all() and packed["labels"].tolist() == [4] * 3
    assert packed["seeds"].tolist() == [0, 1, 2]
    for seed in range(3):
        assert (np.array(Image.open(tmp_path / "png" / "images" / f"{seed:06d}.png")) == array[seed, ..., 0]).all()


def test_guidance_and_weights_change_the_samples_and_nfe_is_counted(runs, tmp_path):
    options = {"plain": [], "guided": ["--guidance", "3"], "raw": ["--weights", "raw"], "heun": ["--solver", "heun"]}
    arrays, nfe = {}, {}
    for name, more in options.items():
        sample(runs, "digits", tmp_path / name, "--count", "4", "--format", "npy", *more)
        arrays[name] = np.load(tmp_path / name / "samples.npy").astype(int)
        nfe[name] = json.loads((tmp_path / name / "samples.json").read_text())["nfe"]
    assert nfe == {"plain": 2, "guided": 4, "raw": 2, "heun": 4}
    assert all((arrays["plain"] != arrays[name]).any() for name in ("guided", "heun"))


def test_points_are_written_as_an_array_and_a_figure(runs, tmp_path):
    sample(runs, "points", tmp_path / "p", "--count", "500", "--format", "npy")
    points = np.load(tmp_path / "p" / "samples.npy")
    assert points.shape == (500, 2) and points.dtype == np.float32
    assert Image.open(tmp_path / "p" / "grid.png").width > 500


def test_nothing_of_the_users_is_overwritten(runs, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        sample(runs, "digits", tmp_path, "--count", "2")
    assert stop.value.code == 2 and "not overwritten" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "runs"]


def test_by_default_samples_lie_in_the_run(runs, capsys):
    for _ in range(2):  # the same samples may be drawn again
        main(["sample", str(runs / "digits"), "--count", "2", "--num-steps", "1", "--label", "7"])
    grid = capsys.readouterr().out.splitlines()[-1].removeprefix("the grid: ")
    assert grid.startswith(str(runs / "digits" / "generated")) and Image.open(grid).size[0] >= 96


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("digits", ["--label", "10"], "no class"),
        ("digits", ["--label", "cat"], "no class"),
        ("digits", ["--step", "1"], "there are 0, 2"),
        ("points", ["--label", "1"], "conditional"),
        ("points", ["--guidance", "2"], "conditional"),
        ("nowhere", [], "holds no run"),
    ],
)
def test_wrong_requests_are_one_sentence(runs, tmp_path, capsys, name, options, word):
    with pytest.raises(SystemExit) as stop:
        sample(runs, name, tmp_path / "out", *options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and word in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_evaluate_scores_points_and_gates_them(runs, capsys):
    main(["evaluate", str(runs / "points"), "--count", "2000", "--num-steps", "2"])
    assert "sw2" in capsys.readouterr().out
    scores = json.loads((runs / "points" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert scores["off"] > 0.3 and scores["nfe"] == 2 and scores["count"] == 2000
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(runs / "points"), "--count", "2000", "--num-steps", "2", "--max-off", "0.07"])
    assert stop.value.code == 1 and "share off the support" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_judge")
def test_evaluate_scores_labelled_images(runs, capsys):
    main(["evaluate", str(runs / "digits"), "--count", "40", "--num-steps", "1"])
    scores = json.loads((runs / "digits" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert 0 <= scores["agreement"] < 0.9 and scores["nearest"] > 0


@pytest.mark.parametrize(
    ("verb", "more"),
    [("interpolate", []), ("invert", ["a.png"]), ("export", ["folder"])],
)
def test_several_processes_are_refused_by_the_verbs_that_do_not_share(runs, verb, more, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, said = refused(verb, runs / "digits", *more)
    assert status == 4 and f"flowimg {verb} runs on one process" in said


def test_processes_that_do_not_see_each_other_are_refused(runs, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for verb, more in (("sample", ("--out", tmp_path / "out")), ("evaluate", ())):
        status, said = refused(verb, runs / "digits", *more)
        assert status == 4 and f"scripts/{verb}.py" in said
    assert not (tmp_path / "out").exists()


def test_guidance_needs_a_field_that_saw_samples_without_a_class(runs, tmp_path, capsys):
    config = runs / "digits" / "config.yaml"
    config.write_text(config.read_text().replace("label_drop: 0.1", "label_drop: 0.0"))
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(runs / "digits"), "--guidance", "2"])
    assert stop.value.code == 2
    assert "label_drop" in capsys.readouterr().err


def test_an_older_checkpoint_is_not_taken_silently(runs, tmp_path, capsys):
    (runs / "digits" / "checkpoints" / "step_00000002" / "ema.safetensors").unlink()
    sample(runs, "digits", tmp_path / "out", "--count", "1")
    assert "step_00000002 is broken and was skipped" in capsys.readouterr().out


# --- a class of any name ---------------------------------------------------------------------------------------------

NAMES = ("none", "null", "no", "all", "True", "012", "1_0", "auto", "~", "None")


@pytest.fixture
def named(tiny, monkeypatch):
    """The run `classes`, whose classes have these other names."""
    from flowimg.jobs import drawing
    from flowimg.runs import opening

    def named(*names, open_run=opening.open_run):
        def opened(*how):
            run = open_run(*how)
            return replace(run, facts=run.facts._replace(classes=names))

        monkeypatch.setattr(drawing, "open_run", opened)
        monkeypatch.setattr(opening, "open_run", opened)
        return tiny.classes

    return named


@pytest.mark.parametrize("name", ["none", "null", "~", "012"])
def test_a_class_is_drawn_by_its_name_whatever_it_is(named, name, tmp_path):
    """A class called none was drawn as all classes in turn."""
    run, how = str(named(*NAMES)), ["--num-steps", "1", "--label", name, "--out", str(tmp_path / "out")]
    main(["sample", run, "--count", "2", *how])
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["label"] == name
    assert (
        flowimg.load(run, device="cpu").sample(2, num_steps=1, label=name).cond.label.tolist()
        == [NAMES.index(name)] * 2
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_found_by_its_name_whatever_it_is(name):
    for classes in (NAMES, (*NAMES, "2"), ("spot", name)):
        assert parse_label(name, classes, "r") == classes.index(name)


def test_without_a_class_of_that_name_none_is_no_label():
    for word in ("none", "None", "null", None):
        assert parse_label(word, ("spot", "nonesuch"), "r") is None
        assert parse_label(word, (), "r") is None
    for word, classes in (("none", ("None", "spot")), ("null", ("NULL", "spot")), ("~", ("spot",)), ("NONE", ("a",))):
        with pytest.raises(SettingsError, match="is no class of r"):  # which of both was meant?
            parse_label(word, classes, "r")


def test_none_is_no_label_for_the_verbs(runs, tmp_path):
    for run in ("digits", "points"):  # with classes and without
        sample(runs, run, tmp_path / run, "--count", "2", "--label", "none")
        assert json.loads((tmp_path / run / "samples.json").read_text())["label"] is None
