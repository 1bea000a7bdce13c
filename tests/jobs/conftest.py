"""Runs that were trained for two steps: what sampling, exporting and the like need, and no more."""

from types import SimpleNamespace

import pytest
from sketch import sketch
from tiny import write_settings

from flowimg.cli import main


@pytest.fixture(scope="session")
def tiny(once):
    """Runs that tests read and do not change: `plain` digits, `classes` of digits, and `points`."""

    def train(folder):
        for name, labels in (("plain", False), ("classes", True)):
            main(["train", str(write_settings(folder / f"{name}.yaml", labels=labels)), "--run", str(folder / name)])
        quick = ["--train.steps", "2", "--train.batch-size", "16", "--grid.num-steps", "1", "--grid.count", "10"]
        quick += ["--figures", "false"]
        main(["train", "configs/checkerboard.yaml", "--run", str(folder / "points"), *quick])

    folder = once("tiny", train)
    return SimpleNamespace(folder=folder, plain=folder / "plain", classes=folder / "classes", points=folder / "points")


@pytest.fixture
def sketches(monkeypatch):
    """Nobody looks at the pictures of runs on points: see sketch.py."""
    monkeypatch.setattr("flowimg.figures.points.points_figure", sketch)


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    """What a machine can do at its best is measured by a small product: nobody asks how good it is."""
    monkeypatch.setattr("flowimg.machine.throughput.SIZES", {"cpu": 64})


@pytest.fixture
def quick_judge(once, monkeypatch):
    """Classifiers of the real pictures learn for a moment: enough where nobody asks how good they are."""
    monkeypatch.setattr("flowimg.fields.classifier.LEAST", 30)
    monkeypatch.setenv("FLOWIMG_CACHE", str(once("quick-judge", lambda folder: None)))


@pytest.fixture
def refused(capsys):
    """The one line on stderr with which `flowimg ARGS` ends, and its exit status."""

    def refused(*args):
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("flowimg: ")
        return stop.value.code, lines[0].removeprefix("flowimg: ")

    return refused
