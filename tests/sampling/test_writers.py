"""Samples on disk: the same however they are cut, killed or shared out, and in whatever format."""

import json
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_made import decode, find
from PIL import Image
from survival import HANGING, begin, finish, go_on

from flowimg.cli import main
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import RK4, integrate
from flowimg.flow.times import uniform_grid
from flowimg.runs.opening import open_run
from flowimg.sampling import writers
from flowimg.sampling.sampler import noise
from flowimg.spaces import pixels as pixels_space
from flowimg.spaces.pixels import Pixels

COUNT, SEED = 100, 5
HOW = ["--count", str(COUNT), "--seed", str(SEED), "--num-steps", "2", "--precision", "fp32"]

TWICE = f"""
import atexit, os, pathlib, runpy, sys
digits, points, out = sys.argv[1:]

@atexit.register  # the first of all, so that it comes last
def left():
    threads = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
    pathlib.Path(out, "threads_of_" + os.environ["RANK"]).write_text("".join(threads))

png, noise, one = ["--format", "png"], ["--step", "0"], ["--format", "npz", "--count", "1"]
for run, how in ((digits, png), (points, noise), (digits, one)):
    name = f"{{out}}/{{'-'.join(how).strip('-')}}"
    sys.argv = ["sample.py", run, "--out", name, *{HOW}, *how]
    runpy.run_path("scripts/sample.py", run_name="__main__")
"""


def sample(run, out, *more):
    main(["sample", str(run), "--out", str(out), *HOW, *more])
    return out


def pictures(folder, count=COUNT):
    """All pictures of a folder, (N, H, W), by their names."""
    files = sorted((folder / "images").iterdir())
    assert [file.name for file in files] == [f"{seed:06d}.png" for seed in range(SEED, SEED + count)]
    return np.stack([np.array(Image.open(file)) for file in files]).astype(int)


def about(folder):
    return json.loads((folder / "samples.json").read_text())


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """100 pictures, drawn 32 at a time."""
    return sample(tiny.classes, tmp_path_factory.mktemp("whole") / "out", "--batch-size", "32")


@pytest.fixture(scope="module")
def shared_out(tiny, once):
    """Samples drawn by two processes."""

    def draw(folder):
        (folder / "twice.py").write_text(TWICE)
        go_on(2, folder / "twice.py", tiny.classes, tiny.points, folder)

    return once("drawn-by-two", draw)


# --- the same samples ------------------------------------------------------------------------------------------------


def test_pictures_agree_whatever_the_batch(tiny, whole, tmp_path):
    seven = pictures(sample(tiny.classes, tmp_path / "out", "--batch-size", "7"))
    assert np.abs(seven - pictures(whole)).max() <= 1
    assert pictures(whole).std() > 10


@pytest.mark.slow
def test_pictures_agree_whatever_the_number_of_processes(whole, shared_out):
    drawn = shared_out / "format-png"
    assert np.abs(pictures(drawn) - pictures(whole)).max() <= 1
    assert np.array(Image.open(drawn / "grid.png")).shape == np.array(Image.open(whole / "grid.png")).shape
    assert about(drawn)["nfe"] == about(whole)["nfe"] == 2


@pytest.mark.slow
def test_noise_is_equal_bit_for_bit_however_it_is_shared_out(tiny, shared_out, tmp_path):
    # at step 0 the velocity of points is zero: samples are the noise they began as
    wanted = noise(range(SEED, SEED + COUNT), (2,)).numpy()
    for name, batch in (("seven", "7"), ("all", "32")):
        sample(tiny.points, tmp_path / name, "--step", "0", "--batch-size", batch)
    for folder in (tmp_path / "seven", tmp_path / "all", shared_out / "step-0"):
        assert (np.load(folder / "samples.npz")["samples"] == wanted).all()


@pytest.mark.slow
def test_a_process_without_samples_knows_what_the_others_cost(shared_out):
    drawn = shared_out / "format-npz---count-1"
    assert len(np.load(drawn / "samples.npz")["samples"]) == 1 and about(drawn)["nfe"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells of threads")
def test_no_thread_of_the_processes_group_meets_the_end_of_the_interpreter(shared_out):
    # it might be aborted, and the launch be called a failure
    for rank in "01":
        threads = (shared_out / f"threads_of_{rank}").read_text().split()
        assert threads and not [name for name in threads if "gloo" in name]


def test_every_format_holds_the_same_pictures(tiny, whole, tmp_path):
    wanted, seeds = pictures(whole), list(range(SEED, SEED + COUNT))
    for form in ("npy", "npz", "parquet"):
        sample(tiny.classes, tmp_path / form, "--format", form, "--batch-size", "32")
        assert sorted(p.name for p in (tmp_path / form).iterdir()) == sorted(
            ["grid.png", f"samples.{form}", "samples.json"]
        )
    one = np.load(tmp_path / "npy" / "samples.npy", allow_pickle=False)
    assert one.shape == (COUNT, 8, 8, 1) and one.dtype == np.uint8 and (one[..., 0] == wanted).all()
    packed = np.load(tmp_path / "npz" / "samples.npz", allow_pickle=False)
    assert (packed["samples"] == one).all() and packed["seeds"].tolist() == seeds
    assert packed["labels"].tolist() == [seed % 10 for seed in seeds]
    grids = [np.array(Image.open(tmp_path / form / "grid.png")) for form in ("npy", "npz", "parquet")]
    assert all((grid == np.array(Image.open(whole / "grid.png"))).all() for grid in grids)


def test_parquet_is_data_to_train_on(tiny, whole, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sample(tiny.classes, tmp_path / "out", "--format", "parquet", "--batch-size", "32")
    found = find(tmp_path / "out" / "samples.parquet")
    images = decode(found)
    assert (images.pixels[:, 0].numpy() == pictures(whole)).all()
    assert images.classes == tuple(str(digit) for digit in range(10))
    assert images.labels.tolist() == [seed % 10 for seed in range(SEED, SEED + COUNT)]


# --- killed and started again ----------------------------------------------------------------------------------------


def times(folder):
    return {file: file.stat().st_mtime_ns for file in folder.iterdir() if not file.name.startswith(".")}


KILLED = """
import os, signal, sys
from flowimg.cli import main
from flowimg.spaces import pixels

to_file, made = pixels.to_file, []

def dying(row, *how):
    made.append(row)
    if len(made) == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return to_file(row, *how)

pixels.to_file = dying
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_where_it_stopped(tiny, whole, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "killed.py").write_text(KILLED)
    args = ["sample", tiny.classes, "--out", out, *HOW, "--batch-size", "2"]
    code, said = finish(begin(sys.executable, tmp_path / "killed.py", *args))
    assert code == -signal.SIGKILL, said
    before = times(out / "images")
    assert 10 <= len(before) < COUNT
    (out / "images" / ".000007.png.1.tmp").write_bytes(b"half of a pic")
    sample(tiny.classes, out)
    assert before.items() <= times(out / "images").items()  # none was drawn twice
    assert np.abs(pictures(out) - pictures(whole)).max() <= 1
    assert about(out)["nfe"] == 2


@pytest.mark.parametrize(("form", "parts"), [("png", 23), ("npz", 1), ("parquet", 1)])
def test_what_was_drawn_before_a_fault_is_kept(form, parts, tiny, whole, tmp_path, monkeypatch, refused):
    out, name = tmp_path / "out", "images" if form == "png" else ".parts"
    written = 0
    save, aside = np.save, pixels_space.to_file

    def full(write):
        def writing(*args):
            nonlocal written
            if written == parts:
                raise OSError(28, "No space left on device")
            written += 1
            return write(*args)

        return writing

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full(save))
        patch.setattr(pixels_space, "to_file", full(aside))
        status, said = refused("sample", tiny.classes, "--out", out, *HOW, "--format", form, "--batch-size", "32")
    assert status == 4 and "No space left" in said
    before = times(out / name)
    assert len(before) == parts == len(list((out / name).iterdir()))  # nothing half written is left
    drawn = []
    if form != "png":
        monkeypatch.setattr(np, "save", lambda file, rows: drawn.append(len(rows)) or save(file, rows))
    sample(tiny.classes, out, "--format", form)
    if form == "png":
        assert before.items() <= times(out / name).items()
        assert np.abs(pictures(out) - pictures(whole)).max() <= 1
    else:
        assert sum(drawn) == COUNT - 64 * parts and not (out / ".parts").exists()
        if form == "npz":
            assert np.abs(np.load(out / "samples.npz")["samples"][..., 0] - pictures(whole)).max() <= 1


def test_pictures_are_written_beside_the_next_batch_and_all_of_them(tmp_path, monkeypatch):
    output = writers.Output(tmp_path, "png", range(6), Condition(), (), Pixels((1, 8, 8)))
    (tmp_path / "images").mkdir()
    second = threading.Event()
    encode = pixels_space.to_file

    def slow(*row):
        assert second.wait(HANGING)  # not before the network is at the second batch
        return encode(*row)

    def batches():
        for number in range(3):
            if number == 1:
                second.set()
            if number == 2:  # memory holds one batch more, not all of them
                assert len(list((tmp_path / "images").iterdir())) >= 2
            yield np.full((2, 4, 4, 1), number, np.uint8)

    monkeypatch.setattr(pixels_space, "to_file", slow)
    assert list(writers.write_parts(output, output.parts(), batches())) == [2, 2, 2]
    seen = [np.array(Image.open(tmp_path / "images" / f"{row:06d}.png")).max() for row in range(6)]
    assert seen == [0, 0, 1, 1, 2, 2]


def test_a_file_that_could_not_be_joined_is_joined_from_its_parts(tiny, tmp_path, monkeypatch, refused):
    out = tmp_path / "out"

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers, "_join_npy", full)
        assert refused("sample", tiny.classes, "--out", out, *HOW, "--format", "npy")[0] == 4
    assert not (out / "samples.npy").exists() and len(list((out / ".parts").iterdir())) == 2
    sample(tiny.classes, out, "--format", "npy")
    assert len(np.load(out / "samples.npy")) == COUNT and not (out / ".parts").exists()


def test_the_same_again_draws_nothing(tiny, whole, capsys):
    before = times(whole / "images")
    sample(tiny.folder / "plain" / ".." / "classes", whole)  # the same run by another name
    assert times(whole / "images") == before
    assert "100 samples of step 2, 2 evaluations each" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [["--num-steps", "3"], ["--seed", "6"], ["--label", "3"], ["--format", "npz"], ["--weights", "raw"],
     ["--count", "101"], ["--guidance", "2"], ["--times", "edm"], ["--precision", "bf16"], ["--step", "0"]],
)  # fmt: skip
def test_a_folder_of_other_samples_is_refused(more, tiny, whole, refused):
    before = times(whole / "images")
    status, said = refused("sample", tiny.classes, "--out", whole, *HOW, *more)
    assert status == 2 and "not overwritten" in said
    assert times(whole / "images") == before


def test_a_folder_of_a_run_that_was_trained_anew_is_refused(tiny, tmp_path, refused):
    shutil.copytree(tiny.classes, tmp_path / "run")
    out = sample(tmp_path / "run", tmp_path / "out", "--count", "3")
    shutil.rmtree(tmp_path / "run")
    config = tiny.folder / "classes.yaml"
    main(["train", str(config), "--run", str(tmp_path / "run"), "--optim.lr", "0.01"])
    status, said = refused("sample", tmp_path / "run", "--out", out, *HOW, "--count", "3")
    assert status == 2 and "not overwritten" in said


@pytest.mark.parametrize("text", ["[]", "3", "{", "[[1, 2]]", ""])
def test_a_folder_that_tells_nothing_of_itself_is_refused(text, tiny, tmp_path, refused):
    (tmp_path / "samples.json").write_text(text)
    assert refused("sample", tiny.classes, "--out", tmp_path, *HOW)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]


# --- how the flow is followed ----------------------------------------------------------------------------------------


def test_an_adaptive_solver_agrees_with_a_fine_one_to_its_tolerance(tiny, tmp_path):
    run = open_run(str(tiny.points), "ema", None, torch.device("cpu"))
    x_0 = noise(range(SEED, SEED + COUNT), (2,))
    with torch.no_grad():
        exact = integrate(run.field, x_0, uniform_grid(200), RK4).x.numpy()
    for tolerance in (1e-2, 1e-4):
        for batch in ("7", "100"):
            more = ["--solver", "dopri5", "--tolerance", str(tolerance), "--batch-size", batch]
            drawn = np.load(sample(tiny.points, tmp_path / f"{tolerance}-{batch}", *more) / "samples.npz")["samples"]
            assert np.abs(drawn - exact).max() < 10 * tolerance
    assert about(tmp_path / "0.0001-7")["nfe"] > 6


def test_times_and_intervals_change_the_samples_and_evaluations_are_counted(tiny, tmp_path):
    ways = {
        "plain": ([], 4),
        "edm": (["--times", "edm"], 4),
        "diffusers": (["--times", "diffusers"], 4),
        "shift": (["--shift", "3"], 4),
        "guided": (["--guidance", "3"], 8),
        "early": (["--guidance", "3", "--guidance-interval", "0", "0.5"], 7),  # at 0, 0.25 and 0.5, not at 0.75
        "late": (["--guidance", "3", "--guidance-interval", "0.6", "1"], 5),
    }
    drawn = {}
    for name, (more, nfe) in ways.items():
        out = sample(tiny.classes, tmp_path / name, "--count", "10", "--num-steps", "4", "--format", "npy", *more)
        drawn[name] = np.load(out / "samples.npy").astype(int)
        assert about(out)["nfe"] == nfe, name
    names = list(drawn)
    same = [(a, b) for a in names for b in names if a < b and (drawn[a] == drawn[b]).all()]
    assert same == []
