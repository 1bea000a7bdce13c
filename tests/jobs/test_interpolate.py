"""`flowimg interpolate` and `flowimg invert`: from seed to seed, and from pictures to their noise and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from flowimg.cli import main
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import RK4, integrate
from flowimg.flow.times import uniform_grid
from flowimg.runs.opening import open_run
from flowimg.sampling.sampler import noise

SEEDS = [4, 9, 30]


def read(path):
    return np.array(Image.open(path), dtype=int)


@pytest.mark.parametrize(
    ("name", "label", "how"),
    [("plain", [], []), ("classes", ["--label", "3"], ["--guidance", "2", "--times", "edm"]), ("classes", [], [])],
)
def test_the_ends_of_a_row_are_the_samples_of_its_seeds(name, label, how, tiny, tmp_path, capsys):
    run, out = str(getattr(tiny, name)), tmp_path / "rows"
    how = ["--num-steps", "3", *how]
    seeds = [str(seed) for seed in SEEDS]
    main(["interpolate", run, "--seeds", *seeds, "--frames", "5", *label, *how, "--out", str(out)])
    assert f"10 pictures between 3 seeds, {6 if '2' in how else 3} evaluations each" in capsys.readouterr().out
    frames = {(row, k): read(out / f"row{row:02d}_frame{k:03d}.png") for row in range(2) for k in range(5)}
    assert len(list(out.iterdir())) == 11 and read(out / "grid.png").shape[1] > 2 * read(out / "grid.png").shape[0]
    if name == "classes":
        label = label or ["--label", "0"]  # the first class, where none is named
    drawn = {}
    for seed in SEEDS:
        to = tmp_path / str(seed)
        main(["sample", run, "--seed", str(seed), "--count", "1", *label, *how, "--out", str(to)])
        drawn[seed] = read(to / "images" / f"{seed:06d}.png")
    for row, (a, b) in enumerate([(4, 9), (9, 30)]):
        assert np.abs(frames[row, 0] - drawn[a]).max() <= 1
        assert np.abs(frames[row, 4] - drawn[b]).max() <= 1
        # and goes from one to the other, a little at a time
        steps = [np.abs(frames[row, k + 1] - frames[row, k]).mean() for k in range(4)]
        assert all(0 < step < np.abs(drawn[a] - drawn[b]).mean() for step in steps)
    assert (frames[0, 4] == frames[1, 0]).all()


def test_frames_of_the_last_time_are_not_left_beside_those_of_this(tiny, tmp_path, capsys):
    for frames in ("5", "3"):
        main(["interpolate", str(tiny.plain), "--frames", frames, "--num-steps", "1", "--precision", "fp32"])
    out = tiny.plain / "generated" / "step_00000002_ema_euler1_between_0_1"
    assert str(out) in capsys.readouterr().out
    names = [f"row00_frame{k:03d}.png" for k in range(3)]
    assert sorted(path.name for path in out.iterdir()) == ["grid.png", *names]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three real digits, as files."""
    folder = tmp_path_factory.mktemp("digits")
    pixels = np.round(load_digits().images[:3] * (255 / 16)).astype(np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(3)]


@pytest.mark.parametrize(
    ("name", "label"), [pytest.param("plain", [], marks=pytest.mark.slow), ("classes", ["--label", "2"])]
)
def test_a_picture_comes_back_from_its_noise(name, label, tiny, digits, tmp_path, capsys):
    run = getattr(tiny, name)
    main(["invert", str(run), *digits, *label, "--tolerance", "1e-4", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    errors = [float(line.split()[-1]) for line in said if line.split()[0].endswith(".png")]
    assert len(errors) == 3 and max(errors) < 0.5
    x_0 = load_file(tmp_path / "out" / "noise.safetensors")["x_0"]
    assert x_0.shape == (3, 1, 8, 8)
    field = open_run(str(run), "ema", None, torch.device("cpu")).field
    cond = Condition(torch.full((3,), 2) if label else None)
    with torch.no_grad():
        x_1 = integrate(field, x_0, uniform_grid(20), RK4, cond).x
        other = integrate(field, x_0, uniform_grid(20), RK4, Condition(torch.full((3,), 7) if label else None)).x
    there = np.stack([read(path) for path in digits])
    assert np.abs((x_1[:, 0].numpy() + 1) * 127.5 - there).max() < 2
    assert not label or np.abs((other[:, 0].numpy() + 1) * 127.5 - there).max() > 2  # it was that class's flow
    width, height = Image.open(tmp_path / "out" / "grid.png").size
    assert width == height


def test_the_noise_of_a_sample_is_found_again(tiny, tmp_path):
    how = ["--solver", "dopri5", "--tolerance", "1e-3"]
    main(["sample", str(tiny.plain), "--seed", "5", "--count", "1", *how, "--out", str(tmp_path / "a")])
    main(["invert", str(tiny.plain), str(tmp_path / "a" / "images" / "000005.png"), *how, "--out", str(tmp_path / "b")])
    found = load_file(tmp_path / "b" / "noise.safetensors")["x_0"]
    seed = noise([5], (1, 8, 8))
    inside = np.isin(read(tmp_path / "a" / "images" / "000005.png"), (0, 255), invert=True)  # the others were clipped
    assert inside.mean() > 0.5
    assert torch.corrcoef(torch.stack([found.flatten(), seed.flatten()]))[0, 1] > 0.9


def test_a_picture_is_brought_to_the_runs_size_and_its_reading_is_said(tiny, tmp_path):
    Image.new("RGB", (40, 20), (200, 100, 50)).save(tmp_path / "wide.png")
    main(["invert", str(tiny.plain), str(tmp_path / "wide.png"), "--solver", "euler", "--num-steps", "2"])
    out = tiny.plain / "generated" / "step_00000002_ema_euler2_inverted"
    assert load_file(out / "noise.safetensors")["x_0"].shape == (1, 1, 8, 8)


def test_what_invert_cannot_read_is_one_sentence(tiny, digits, tmp_path, refused):
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    for name in ("a.png", "cut.png", "nowhere.png", "."):
        status, said = refused("invert", tiny.plain, digits[0], tmp_path / name, "--out", tmp_path / "out")
        assert status == 3 and f"{tmp_path / name} cannot be read as a picture" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["interpolate", "invert"])
def test_wrong_requests_are_one_sentence(verb, tiny, digits, tmp_path, refused):
    given = digits[:1] if verb == "invert" else []
    (tmp_path / "mine.txt").write_text("mine")
    asked = [
        (tiny.points, [], "is a run on points"),
        (tiny.plain, ["--label", "1"], "needs a conditional run"),
        (tiny.classes, ["--label", "cat"], "is no class"),
        (tiny.plain, ["--guidance", "2"], "needs a conditional run"),
        (tiny.plain, ["--step", "1"], "there are 0, 2"),
        (tiny.plain, ["--out", str(tmp_path)], "is not overwritten"),
        (tiny.plain, ["--out", str(tmp_path / "mine.txt")], "is not overwritten"),
    ]
    for run, more, words in asked:
        status, said = refused(verb, run, *given, *more)
        assert status == 2 and words in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
