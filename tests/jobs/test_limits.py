"""Limits of seeds and of files that would be met after the work are met before it."""

import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import flowimg
from flowimg.build.facts import DataFacts
from flowimg.build.field import build_field
from flowimg.cli import main
from flowimg.data.order import sample_indices
from flowimg.errors import MachineError, SettingsError
from flowimg.figures import pictures
from flowimg.runs.opening import open_run
from flowimg.sampling.sampler import Sampler, noise
from flowimg.settings import base
from flowimg.settings.field import MLP
from flowimg.settings.run import Config
from flowimg.spaces.pixels import Pixels, tiled

LAST = 2**32 - 1
"""The largest seed of a sample: a CPU generator keeps 32 bits."""


@pytest.fixture
def idle(monkeypatch):
    """Nothing may be drawn."""

    def flow(*how, **more):
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(Sampler, "_flow", flow)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_the_noise_of_a_seed_is_of_no_other():
    assert not torch.equal(noise([LAST], (4,)), noise([0], (4,)))
    for seed in (-1, LAST + 1, 5 + 2**32, 2**63 - 1):  # 5 and 5 + 2^32 would be the same
        with pytest.raises(SettingsError, match=f"seed {seed}"):
            noise([0, seed], (4,))


def test_a_sampler_refuses_before_it_draws_the_first_batch(idle, tiny):
    run = flowimg.load(tiny.points, device="cpu")
    sampler = Sampler(run.velocity, (2,), None, torch.tensor([0.0, 1.0]), batch_size=2)
    with pytest.raises(SettingsError, match="seed 4294967296"):
        next(sampler.samples(range(LAST - 5, LAST + 2)))


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("run", "args"),
    [
        ("classes", ["sample", "--seed", "4294967296", "--count", "1"]),
        ("classes", ["sample", "--seed", "4294967295", "--count", "2"]),
        ("classes", ["sample", "--seed", "4294967295"]),
        ("classes", ["sample", "--count", "4294967297"]),
        ("classes", ["sample", "--seed", "9223372036854775807", "--count", "2", "--format", "parquet"]),
        ("points", ["sample", "--seed", "4294967290", "--count", "10", "--format", "npz"]),
        ("classes", ["evaluate", "--seed", "4294967295", "--count", "2"]),
        ("classes", ["evaluate", "--seed", "4294966297"]),  # 1,000 by default
        ("points", ["evaluate", "--seed", "4294947297"]),  # 20,000
        ("classes", ["evaluate", "--seed", "4294967295", "--sweep-nfe", "2"]),
        ("plain", ["interpolate", "--seeds", "5", "4294967301"]),
        ("plain", ["figures", "--seed", "4294967289"]),  # 8 pictures
        ("points", ["figures", "--seed", "4294900000"]),  # 100,000 points
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_seed_that_is_too_large_is_refused_before_anything_is_drawn(run, args, tiny, refused, tmp_path):
    out = ["--out", tmp_path / "out"] if args[0] in ("sample", "interpolate") else []
    status, said = refused(args[0], getattr(tiny, run), *args[1:], *out)
    assert status == 2 and ("2^32" in said or "less than 4294967296" in said)
    assert not (tmp_path / "out").exists()


def test_python_refuses_them_too(idle, tiny):
    run = flowimg.load(tiny.classes, device="cpu")
    for how in ({"seed": LAST + 1, "count": 1}, {"seed": LAST, "count": 2}, {"count": 2**32 + 1}):
        with pytest.raises(SettingsError, match=r"2\^32|less than 4294967296"):
            run.sample(**how)
        with pytest.raises(SettingsError, match=r"2\^32|less than 4294967296"):
            run.evaluate(**{**how, "count": max(how["count"], 2)})


@pytest.mark.parametrize("form", ["png", "npz", "npy", "parquet"])
def test_the_last_seed_is_drawn_and_written(form, tiny, tmp_path):
    out = tmp_path / "out"
    how = ["--seed", str(LAST - 1), "--count", "2", "--num-steps", "1", "--format", form]
    main(["sample", str(tiny.classes), *how, "--out", str(out)])
    if form == "png":
        assert sorted(path.name for path in (out / "images").iterdir()) == [f"{LAST - 1}.png", f"{LAST}.png"]
    if form == "npz":
        assert np.load(out / "samples.npz")["seeds"].tolist() == [LAST - 1, LAST]


def test_seeds_of_training_are_exact():
    config = Config(field=MLP(width=8, depth=1, zero_output=False))
    facts = DataFacts((2,), ())
    first = {seed: build_field(config.model_copy(update={"seed": seed}), facts) for seed in (5, 5 + 2**32, 5 + 2**33)}
    weights = [torch.cat([p.flatten() for p in field.parameters()]) for field in first.values()]
    assert len({tuple(row.tolist()) for row in weights}) == 3  # they began with the same weights
    torch.manual_seed(5)
    assert any(torch.equal(p, torch.nn.Linear(*p.shape[::-1]).weight) for p in first[5].parameters() if p.ndim == 2)
    orders = [tuple(sample_indices(seed, 0, range(8), 8, 1000).tolist()) for seed in first]
    assert len(set(orders)) == 3


def test_the_settings_know_how_many_seeds_there_are():
    from flowimg.flow.randomness import SEEDS

    assert SEEDS == base.SEEDS == LAST + 1
    for group, name in (("grid", "count"), ("train", "evaluate_count")):
        with pytest.raises(SettingsError, match=f"{group}.{name} is 4294967297"):
            flowimg.configure("configs/digits.yaml", {f"{group}.{name}": 2**32 + 1})


# --- formats of samples ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("idle")
def test_what_parquet_cannot_name_is_refused_before_anything_is_drawn(tiny, monkeypatch, refused, tmp_path):
    from flowimg.jobs import drawing

    def opened(*how):
        run = open_run(*how)
        return replace(run, facts=run.facts._replace(classes=("a",) * 10))

    monkeypatch.setattr(drawing, "open_run", opened)
    status, said = refused("sample", tiny.classes, "--format", "parquet", "--out", tmp_path / "out")
    assert status == 2 and "--format parquet" in said and not (tmp_path / "out").exists()


def test_an_array_that_grows_past_the_old_limit_of_zip_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # 2 GiB: 268 million seeds
    main(["sample", str(tiny.points), "--count", "30", "--num-steps", "1", "--out", str(tmp_path / "out")])
    assert np.load(tmp_path / "out" / "samples.npz")["seeds"].tolist() == list(range(30))


def test_a_number_that_json_does_not_have_is_null(tiny, tmp_path, monkeypatch, capsys):
    """`invert` of a field that diverged ended in a stack trace, after all was drawn."""
    Image.new("L", (8, 8), 100).save(tmp_path / "a.png")
    monkeypatch.setattr(Pixels, "encode", lambda self, stored, noise=None: torch.full(stored.shape, math.nan))
    how = ["--solver", "euler", "--num-steps", "1", "--out", str(tmp_path / "out")]
    main(["invert", str(tiny.plain), str(tmp_path / "a.png"), *how, "--json"])
    assert json.loads(capsys.readouterr().out)["pictures"][0]["noise_mean"] is None


# --- where results go ------------------------------------------------------------------------------------------------


@pytest.fixture
def blocked(tiny, tmp_path):
    """A run like `points` or `classes` in which nothing can be written to one of its files or folders."""

    def blocked(name, place):
        run = tmp_path / name
        run.mkdir()
        for path in getattr(tiny, name).iterdir():
            if path.name not in ("figures", "evaluations.jsonl"):
                (run / path.name).symlink_to(path)
        (run / "evaluations.jsonl").mkdir() if place == "evaluations.jsonl" else (run / "figures").touch()
        return run

    return blocked


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("run", "place", "args"),
    [
        ("points", "evaluations.jsonl", ["evaluate", "--count", "20"]),
        ("classes", "evaluations.jsonl", ["evaluate", "--count", "20"]),
        ("classes", "figures", ["evaluate", "--count", "20"]),
        ("points", "figures", ["evaluate", "--count", "20", "--sweep-nfe", "2"]),
        ("points", "evaluations.jsonl", ["likelihood", "--count", "20"]),
        ("points", "figures", ["likelihood", "--count", "20"]),
        ("points", "figures", ["figures"]),
        ("points", "figures", ["report"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_result_that_could_not_be_written_is_not_computed(run, place, args, blocked, refused, monkeypatch):
    for name in ("jobs.likelihood.log_density", "jobs.report.draw_curves", "jobs.evaluate.run.compiled"):
        monkeypatch.setattr(f"flowimg.{name}", pytest.fail)
    status, said = refused(args[0], blocked(run, place), *args[1:])
    assert status == 4 and f"{place}" in said and "cannot be written" in said


def test_a_check_of_a_place_leaves_nothing_behind(tiny, tmp_path):
    from flowimg.jobs.drawing import check_places

    (tmp_path / "a").write_text("mine")
    for path in (tmp_path / "a", tmp_path / "b", tmp_path / "new" / "c"):
        check_places(path)
    assert (tmp_path / "a").read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    with pytest.raises(MachineError, match="cannot be written"):
        check_places(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("args", "first"),
    [
        (["report", "{run}", "--out", "{file}/a.html"], "flowimg.jobs.report.draw_curves"),
        (["data", "preview", "digits", "--out", "{file}/a.png"], "flowimg.jobs.data.build_source"),
    ],
    ids=["report", "preview"],
)
def test_a_page_or_a_preview_below_a_file_is_refused_first(args, first, tiny, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(first, pytest.fail)
    (tmp_path / "file").touch()
    status, said = refused(*(arg.format(run=tiny.points, file=tmp_path / "file") for arg in args))
    assert status == 4 and str(tmp_path / "file") in said


def test_many_seeds_make_no_name_that_is_too_long(tiny, capsys):
    for last in ("70", "71"):
        seeds = [*map(str, range(1000, 1070)), last]
        main(["interpolate", str(tiny.plain), "--seeds", *seeds, "--frames", "2", "--num-steps", "1", "--json"])
    first, second = [json.loads(line)["folder"] for line in capsys.readouterr().out.splitlines()]
    assert first != second and len(second.rpartition("/")[2]) < 255


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (3, 1024, 1024), (3, 4096, 4096), (3, 333, 1999)])
def test_a_grid_has_as_many_pictures_as_can_be_opened(shape):
    space, most = Pixels(shape), 2 * Image.MAX_IMAGE_PIXELS
    count = space.fits_a_figure
    side = math.isqrt(count)
    assert side**2 == count and space.fits(count) and space.grid_pixels(count) <= most
    assert space.grid_pixels((side + 1) ** 2) > most


def test_the_pixels_of_a_grid_are_counted_before_it_is_made():
    for count, columns in ((1, None), (2, None), (7, None), (7, 3), (10, 2), (3, 9)):
        height, width, _ = tiled(torch.zeros(count, 1, 8, 9, dtype=torch.uint8), columns).shape
        assert Pixels((1, 8, 9)).grid_pixels(count, columns) == height * width


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    "args",
    [
        ["interpolate", "{run}", "--frames", "1000000"],
        ["invert", "{run}", *["{picture}"] * 3],
        ["data", "preview", "digits", "--size", "1024", "--count", "4096"],
    ],
    ids=["interpolate", "invert", "preview"],
)
def test_a_grid_that_no_viewer_opens_is_refused_before_it_is_drawn(args, tiny, tmp_path, refused, monkeypatch):
    if args[0] == "invert":
        monkeypatch.setattr("flowimg.spaces.pixels.MAX_PIXELS", 108**2)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    more = ["--out", tmp_path / "out.png"]
    status, said = refused(*(arg.format(run=tiny.plain, picture=tmp_path / "a.png") for arg in args), *more)
    assert status == 2 and "pixels" in said and not (tmp_path / "out.png").exists()


def test_samples_that_fit_in_no_grid_are_refused_by_save(tiny, tmp_path, monkeypatch):
    drawn = flowimg.load(tiny.plain, device="cpu").sample(5, num_steps=1)
    monkeypatch.setattr("flowimg.spaces.pixels.MAX_PIXELS", 108**2)  # two by two
    with pytest.raises(SettingsError, match="pixels"):
        drawn.save(tmp_path / "grid.png")


def test_a_grid_of_a_run_shows_as_many_as_fit_and_says_so(tmp_path, monkeypatch, capsys):
    from tiny import write_settings

    monkeypatch.setattr("flowimg.spaces.pixels.MAX_PIXELS", 108**2)  # two by two
    settings = write_settings(tmp_path / "a.yaml", grid={"count": 9, "num_steps": 1})
    main(["train", str(settings), "--run", str(tmp_path / "run"), "--grid.count", "9"])
    assert "grids show the first 4 of 9 samples" in capsys.readouterr().out
    with Image.open(tmp_path / "run" / "samples" / "step_00000002.png") as grid:
        assert grid.size == (2 * 52 + 4, 2 * 52 + 4)


def test_a_tall_grid_still_becomes_an_animation(tmp_path):
    """WebP holds 16,383 pixels a side: two classes of many pictures ended in an error after the training."""
    for step in (1, 2):
        Image.new("RGB", (108, 30_000), (step * 9, 0, 0)).save(tmp_path / f"{step}.png")
    pictures.growth_animation([(step, tmp_path / f"{step}.png") for step in (1, 2)], tmp_path / "growth.webp")
    with Image.open(tmp_path / "growth.webp") as made:
        assert made.n_frames == 2 and made.height <= 16383
        assert made.width >= 1


def test_a_table_of_large_pictures_can_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 6 * 50 * 50)
    pixels = torch.zeros(2, 3, 1, 200, 200, dtype=torch.uint8)
    pictures.picture_table(pixels, ["", ""], ["", "", ""], tmp_path / "table.png", "t")
    with Image.open(tmp_path / "table.png") as made:
        assert made.width < 3 * 60 + 40


def test_a_figure_of_many_points_stays_small(tiny):
    space = open_run(str(tiny.points), "ema", None, torch.device("cpu")).space
    assert space.in_a_figure == space.fits_a_figure == 1_000_000


def test_steps_of_nine_digits_come_after_those_of_eight(tmp_path):
    """Names in order of their letters would have the newest checkpoint before the older ones, and drop it."""
    from flowimg.jobs.export import grid_for
    from flowimg.runs.folder import RunFolder
    from flowimg.training.checkpoint import step_folders

    for step in (99_999_999, 100_000_000, 5):
        (tmp_path / f"step_{step:08d}").mkdir()
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / "samples" / f"step_{step:08d}.png").touch()
    assert [int(path.name[5:]) for path in step_folders(tmp_path)] == [5, 99_999_999, 100_000_000]
    assert [step for step, _ in RunFolder(tmp_path).grids()] == [5, 99_999_999, 100_000_000]
    for step in (5, 99_999_999, 100_000_000):
        assert grid_for(RunFolder(tmp_path), step).stem == f"step_{step:08d}"
    assert grid_for(RunFolder(tmp_path), 3) is None
