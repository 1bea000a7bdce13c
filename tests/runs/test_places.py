"""Relative paths in a run's settings, when the run is used from another working directory, moved or copied."""

import json
import os
import shutil
from pathlib import Path

import pytest
from pictures_made import picture, save
from survival import words
from tiny import write_settings

from flowimg.cli import main
from flowimg.files import read_json, write_json
from flowimg.runs.folder import RunFolder
from flowimg.runs.places import begun_here, read_config
from flowimg.settings.data import ImageData
from flowimg.settings.field import UNet
from flowimg.settings.reading import changed, dump, load
from flowimg.settings.run import Config


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with pictures and a run, which was begun in it; and another folder, in which we are now."""
    old, other = tmp_path / "old", tmp_path / "other"
    for folder in (old, other):
        folder.mkdir()
    monkeypatch.chdir(old)
    (old / "drinks").mkdir()
    begin(RunFolder(Path("runs/x")), source="drinks")
    monkeypatch.chdir(other)
    return old


def begin(folder, run="runs/x", recorded=True, field=None, train=None, **data):
    """The files of a run that say what its settings are and where it was begun."""
    folder.path.mkdir(parents=True, exist_ok=True)
    config = changed(Config(run=run, data=ImageData(**data), field=field or UNet()), train or {}, "test")
    folder.config.write_text(dump(config))
    write_json(folder.environment, {"torch": "2", **(begun_here(folder) if recorded else {})})


def source(path):
    return read_config(RunFolder(Path(path))).data.source


def test_where_a_run_was_begun_nothing_changes(project, monkeypatch):
    monkeypatch.chdir(project)
    assert read_config(RunFolder(Path("runs/x"))) == load("runs/x/config.yaml")


@pytest.mark.parametrize("run", ["{old}/runs/x", "../old/runs/x", "link"])
def test_from_another_folder_its_data_are_found(run, project):
    os.symlink(project / "runs" / "x", "link")
    assert source(run.format(old=project)) == str(project / "drinks")


def test_data_of_the_same_name_here_are_others(project):
    Path("drinks").mkdir()
    assert source(project / "runs" / "x") == str(project / "drinks")


def test_data_that_were_moved_here_are_found(project):
    shutil.move(project / "drinks", "drinks")
    assert source(project / "runs" / "x") == "drinks"


def test_a_run_that_was_moved_with_its_data_finds_them(project, monkeypatch, tmp_path):
    shutil.move(project, tmp_path / "new")
    assert source(tmp_path / "new" / "runs" / "x") == str(tmp_path / "new" / "drinks")
    monkeypatch.chdir(tmp_path / "new")
    assert source("runs/x") == "drinks"


def test_a_copy_of_a_project_uses_its_own_data_as_ever(project, monkeypatch, tmp_path):
    shutil.copytree(project, tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert source("runs/x") == "drinks"


def test_a_run_that_was_moved_without_its_data_finds_them(project):
    shutil.move(project / "runs" / "x", "elsewhere")
    assert source("elsewhere") == str(project / "drinks")


def test_data_that_are_nowhere_are_called_as_they_were(project):
    (project / "drinks").rmdir()
    assert source(project / "runs" / "x") == "drinks"


def test_a_run_of_an_earlier_version_tells_by_its_name_where_it_was_begun(project):
    begin(RunFolder(project / "runs" / "x"), recorded=False, source="drinks")
    assert source(project / "runs" / "x") == str(project / "drinks")
    for run in (str(project / "runs" / "x"), "runs/y", "."):  # nothing is known then
        begin(RunFolder(project / "runs" / "x"), run, recorded=False, source="drinks")
        assert source(project / "runs" / "x") == "drinks"


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("a/b", "a/b"), ("drinks/a", "./drinks/../drinks/a"), ("shards/1.tar", "shards/{0..9}.tar"),
        ("shards/1.tar", "shards/*.tar"), ("1.tar", "{00001..10000}.tar"), ("odd[1]", "odd[1]"),
    ],
)  # fmt: skip
def test_paths_of_every_form_are_found(there, named, project, monkeypatch):
    monkeypatch.chdir(project)
    os.makedirs(there)
    begin(RunFolder(Path("runs/y")), source=named)
    monkeypatch.chdir("../other")
    assert source("../old/runs/y") == str(project / named)


@pytest.mark.parametrize("named", ["digits", "CIFAR10", "s3://bucket/x", "owner/name", "/not/there", "~/x"])
def test_names_of_sets_and_whole_paths_stay(named, project, monkeypatch):
    monkeypatch.chdir(project)
    for folder in ("digits", "CIFAR10", "s3:/bucket/x"):
        os.makedirs(folder)
    begin(RunFolder(Path("runs/y")), source=named)
    monkeypatch.chdir("../other")
    assert source("../old/runs/y") == named


def test_every_setting_that_holds_a_path_is_found(project, monkeypatch):
    monkeypatch.chdir(project)
    for folder in ("torch/cifar-10-batches-py", "network", "features", "cache"):
        os.makedirs(folder)
    more = {"train.evaluate_features": "features"}
    begin(
        RunFolder(Path("r")),
        source="CIFAR10",
        root="torch",
        cache="cache",
        field=UNet(pretrained="network"),
        train=more,
    )
    monkeypatch.chdir("../other")
    found = read_config(RunFolder(project / "r"))
    paths = found.data.root, found.data.cache, found.field.pretrained, found.train.evaluate_features
    assert paths == tuple(str(project / name) for name in ("torch", "cache", "network", "features"))


def test_a_working_directory_that_is_gone_is_no_fault(project, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert source(project / "runs" / "x") == str(project / "drinks")
    assert begun_here(RunFolder(project / "runs" / "x")) == {}


@pytest.mark.parametrize("place", ["a\udce9", "line\nbreak"])
def test_a_run_begun_in_a_folder_of_any_name(place, tmp_path, monkeypatch):
    (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / place)
    Path("drinks").mkdir()
    begin(RunFolder(Path("run")), source="drinks")
    assert json.loads(Path("run/environment.json").read_text(encoding="utf-8"))["begun_in"] == str(tmp_path / place)
    assert source("run") == "drinks"
    monkeypatch.chdir(tmp_path)
    assert source(Path(place, "run")) == ("drinks" if "\udce9" in place else str(tmp_path / place / "drinks"))


def test_a_run_is_continued_checked_and_evaluated_from_another_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        save(Path("drinks", "ab"[number % 2], f"{number}.png"), picture(number, (8, 8)))
    data = {"kind": "images", "source": "drinks", "held_out": 2}
    settings = write_settings(Path("a.yaml"), data=data, train={"steps": 1, "sample_every": 9})
    main(["train", str(settings), "--run", "run"])
    kept = load("run/config.yaml").data
    monkeypatch.chdir("other")
    main(["train", "../run", "--train.steps", "2"])
    assert f"data      {tmp_path}/drinks: a folder of pictures" in capsys.readouterr().out
    assert load("../run/config.yaml").data == kept  # as it was given: the run may be moved with its data
    assert read_json(Path("../run/environment.json"))["begun_in"] == str(tmp_path)
    for verb in (["data", "check"], ["data", "prepare"]):
        main([*verb, "../run"])
    main(["data", "preview", "../run", "--count", "2"])
    assert Path("preview.png").exists()
    main(["train", "../a.yaml", "--run", "../run", "--train.steps", "3"])
    assert "continued from step 2" in capsys.readouterr().out


def test_a_run_on_points_needs_no_place(tmp_path, monkeypatch, sketches):
    main([str(word) for word in words(tmp_path / "run", "--train.steps", "1")])
    (tmp_path / "checkerboard").mkdir()
    monkeypatch.chdir(tmp_path)
    main(["train", "run", "--train.steps", "2"])
