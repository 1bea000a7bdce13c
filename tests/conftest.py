"""Test workers share two cores: one thread each, here and in what the tests start, or they spin for each other."""

import gc
import os
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from tiny import write_settings

from flowimg.cli import main

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# how long an example takes is no test's business: a busy machine takes its time
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: a folder that `make(folder)` fills, once for all test workers together; to be read alone."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def once(name, make):
        folder, made = root / "shared" / name, root / "shared" / f"{name}.made"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not made.exists():
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session", autouse=True)
def own_folders(once):
    """Folders that all tests share: the cache of flowimg, and the one of the server that forked.py starts."""
    os.environ["FLOWIMG_CACHE"] = str(once("flowimg-cache", lambda folder: None))
    os.environ["FLOWIMG_TESTS_FORKED"] = str(once("forked", lambda folder: None))


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
    from sketch import sketch  # which imports torch: after the number of its threads is set

    monkeypatch.setattr("flowimg.figures.points.points_figure", sketch)


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    """What a machine can do at its best is measured by a small product: nobody asks how good it is."""
    monkeypatch.setattr("flowimg.machine.throughput.SIZES", {"cpu": 64})


@pytest.fixture(autouse=True)
def unknown_machine(monkeypatch, tmp_path_factory):
    """Neither limits of the real cores nor the processes that use them decide anything."""
    monkeypatch.setattr("flowimg.machine.cores.ROOT", tmp_path_factory.getbasetemp() / "no files of the system")


@pytest.fixture
def quick_judge(request, once, monkeypatch):
    """Classifiers of the real pictures learn for a moment, and copies are judged by the neighbours of 50 pictures.

    Slow tests compare with what other processes find: there, as many pictures judge as in any run.
    """
    monkeypatch.setattr("flowimg.fields.classifier.LEAST", 30)
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("flowimg.evaluation.images.QUERIES", 50)
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


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules leave no garbage when they are imported: it is not looked for then, nor in them later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """The tour takes as long as half of the other slow tests: it begins at once."""
    items.sort(key=lambda item: "test_tour.py" not in item.nodeid)
