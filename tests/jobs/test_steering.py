"""`flowimg inpaint` and `flowimg vary`, and samples guided away from an earlier network, as a person uses them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from survival import go_on
from tiny import write_settings

import flowimg
from flowimg.cli import main
from flowimg.errors import SettingsError
from flowimg.runs.guides import check_fits
from flowimg.runs.opening import open_run
from flowimg.sampling.sampler import noise
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import validate
from flowimg.settings.verbs import Sample

CPU = torch.device("cpu")


def read(path):
    return np.array(Image.open(path), dtype=int)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of eight steps that keeps what it was on the way."""
    folder = tmp_path_factory.mktemp("steered")
    train = {"steps": 8, "snapshots": 4, "checkpoint_every": 2, "keep_every": 2, "sample_every": 8}
    main(["train", str(write_settings(folder / "run.yaml", train=train)), "--run", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of 8 x 8 and a mask of their size, white below; one more with a transparent corner."""
    folder = tmp_path_factory.mktemp("pictures")
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for name, one in zip("ab", levels, strict=True):
        Image.fromarray(one).save(folder / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "black.png")
    Image.fromarray(mask[:4]).save(folder / "small.png")
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:2, :2] = 0
    Image.merge("LA", [Image.fromarray(levels[0]), Image.fromarray(alpha)]).save(folder / "corner.png")
    return folder


def told(args, capsys):
    capsys.readouterr()
    main([*map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("how", [[], ["--rounds", "1", "--solver", "ab2"], ["--label", "3", "--guidance", "2"]])
def test_what_is_black_in_the_mask_comes_back_to_the_grey_level(run, pictures, how, tmp_path, capsys):
    a, b, mask = (pictures / f"{name}.png" for name in ("a", "b", "mask"))
    asked = ["inpaint", run, a, b, "--mask", mask, "--count", 3, "--num-steps", 10, *how, "--out", tmp_path / "o"]
    found = told(asked, capsys)
    assert found["nfe"] == {0: 82, 4: 10 if "ab2" in how else 164}[len(how)]
    drawn = {}
    for number, (name, given) in enumerate((("a", read(a)), ("b", read(b)))):
        for seed in range(3):
            drawn[name, seed] = read(tmp_path / "o" / f"{number:03d}_{name}_seed{seed}.png")
            assert (drawn[name, seed][:4] == given[:4]).all()
            assert not (drawn[name, seed][4:] == given[4:]).all()
    assert (drawn["a", 0] != drawn["a", 1]).any() and (drawn["a", 0][4:] != drawn["b", 0][4:]).any()
    assert len(found["files"]) == 6 and read(found["grid"]).shape[1] > read(found["grid"]).shape[0]


def test_the_transparent_part_is_drawn_where_no_mask_says_more(run, pictures, capsys):
    found = told(["inpaint", run, pictures / "corner.png", "--count", 1, "--num-steps", 6], capsys)
    (drawn,), given = (read(file) for file in found["files"]), read(pictures / "a.png")
    differs = drawn != given
    assert not differs[2:].any() and not differs[:, 2:].any() and differs[:2, :2].any()


@pytest.mark.parametrize(("side", "kept"), [(24, 2), (64, 2), (4, 1), (8, 4)])
def test_nothing_of_what_the_mask_covers_is_left_in_a_resized_picture(run, side, kept, tmp_path, capsys):
    """Flat above the mask, and as far as levels go below it: the filter's rings reach two pixels up."""
    levels, mask = np.full((side, side), 100, np.uint8), np.zeros((side, side), np.uint8)
    levels[side // 2 :], mask[side // 2 :] = 255, 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    asked = ["inpaint", run, tmp_path / "a.png", "--mask", tmp_path / "mask.png", "--count", 1, "--num-steps", 6]
    found = told([*asked, "--out", tmp_path / "o"], capsys)
    whole = told(["vary", run, tmp_path / "a.png", "--strength", 0, "--count", 1, "--out", tmp_path / "w"], capsys)
    resized, drawn = read(whole["files"][0]), read(found["files"][0])
    assert (drawn[:kept] == 100).all() and (resized[:kept] == 100).all()
    assert side == 8 or (resized[kept:4] != 100).all()
    assert not (drawn[kept:] == resized[kept:]).all(axis=1).any()


@pytest.mark.parametrize("soft", [128, 200, 249, 250, 254])
def test_what_is_nearly_opaque_keeps_its_own_colour_and_a_soft_edge_is_drawn(run, soft, tmp_path, capsys):
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[5:], alpha[4] = 0, soft
    Image.merge("LA", [Image.fromarray(np.full((8, 8), 200, np.uint8)), Image.fromarray(alpha)]).save(
        tmp_path / "p.png"
    )
    found = told(["inpaint", run, tmp_path / "p.png", "--count", 1, "--num-steps", 6, "--out", tmp_path / "o"], capsys)
    kept = (read(found["files"][0]) == 200).all(axis=1).tolist()
    assert kept == [True] * 4 + [soft >= 250] + [False] * 3


def test_pictures_like_one(run, pictures, tmp_path, capsys):
    given, off = read(pictures / "a.png"), {}
    for strength in (0, 0.2, 1):
        asked = ["vary", run, pictures / "a.png", "--strength", strength, "--count", 2, "--num-steps", 20]
        found = told([*asked, "--precision", "fp32", "--solver", "euler", "--label", 3], capsys)
        off[strength] = np.mean([abs(read(file) - given).mean() for file in found["files"]])
        assert found["nfe"] == round(20 * strength)
    assert off[0] == 0 < off[0.2] < off[1]
    # all anew is what the seeds draw
    drawn = flowimg.load(run).sample(2, label=3, num_steps=20, precision="fp32").pixels[..., 0].astype(int)
    assert abs(np.stack([read(file) for file in found["files"]]) - drawn).max() <= 1
    inverted = told(["vary", run, pictures / "a.png", "--inversion", "true", "--strength", 0, "--count", 1,
                     "--num-steps", 50, "--solver", "rk4", "--precision", "fp32"], capsys)  # fmt: skip
    assert abs(read(inverted["files"][0]) - given).max() <= 1 and inverted["nfe"] == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inpaint", "a"], "a.png has no transparent part: say by --mask what is to be drawn"),
        (["inpaint", "a", "--mask", "black"], "no white pixel of"),
        (["inpaint", "a", "--mask", "small"], "is 8 x 4, and"),
        (["inpaint", "a", "b", "corner", "--mask", "mask", "mask"], "--mask has 2 files for 3 pictures"),
        (["inpaint"], "needs pictures: flowimg inpaint RUN PICTURE ..."),
        (["inpaint", "a", "--mask", "mask", "--solver", "dopri5"], "solver dopri5 chooses its own steps"),
        (["inpaint", "a", "--mask", "mask", "--solver", "ab2"], "solver ab2 uses the step before"),
        (["inpaint", "a", "--mask", "mask", "--guidance", "2"], "guidance 2 needs a class to guide towards"),
        (
            ["inpaint", "a", "--mask", "mask", "--num-steps", "5", "--stretch", "5"],
            "rounds go back from the second stretch",
        ),
        (["inpaint", "a", "--mask", "mask", "--rounds", "1", "--stretch", "3"], "with rounds 1 does nothing"),
        (["vary", "a", "--strength", "1.5"], "strength"),
        (["vary", "a", "--inversion", "true", "--solver", "sde"], "solver sde draws noise"),
        (["vary", "a", "--seed", "4294967295"], "seed 4294967298 of a sample is not below 2^32"),
        (["invert", "a", "--solver", "churn"], "solver churn draws noise, so its flow has no way back and no density"),
        (["sample", "--noise", "2"], "noise is for the solvers sde, sde2 and churn, and solver is euler"),
        (["sample", "--solver", "churn", "--noise-shape", "middle"], "noise_shape is for the solvers sde and sde2"),
        (["sample", "--guide-scale", "3"], "guide_scale without a guide does nothing"),
        (["sample", "--noise-interval", "0.5", "0.2", "--solver", "sde"], "noise_interval [0.5, 0.2] must rise"),
        (["likelihood", "--solver", "sde2"], "no density"),
        (["likelihood", "--guide", "early"], "only an unguided field has a density"),
        (["sample", "--guide", ":0.9"], "guide :0.9: an average has a length from 0.001 to 0.28"),
        (["play", "--guide", ":0.9"], "guide :0.9: an average has a length from 0.001 to 0.28"),
        (["sample", "--guide", ":.0"], "guide :.0: an average has a length"),
        (["sample", "--guide", "early:raw"], "early takes no step and no weights"),
        (["sample", "--step", "4", "--guide", ":ema"], "is the network that it should guide"),
        (["sample", "--solver", "sde", "--num-steps", "1"], "with num_steps 1 draws no noise"),
        (["evaluate", "--sweep-nfe", "10", "--noise", "2"], "noise is for the solvers sde, sde2 and churn"),
        (["evaluate", "--sweep-nfe", "10", "--sweep-solvers", "sde", "churn", "--noise", "2"], "sweep either"),
        (["sample", "--guide", "nowhere"], "guide nowhere: nowhere holds no run"),
        (["sample", "--guide", "@5"], "has no checkpoint of step 5: there are 0, 2, 4, 6, 8"),
        (["sample", "--guide", "@8"], "guide @8 is the network that it should guide"),
    ],
)
def test_mistakes_are_one_sentence(run, pictures, words, said, refused):
    verb, *rest = (str(pictures / f"{word}.png") if (pictures / f"{word}.png").exists() else word for word in words)
    status, sentence = refused(verb, run, *rest)
    assert status == 2 and said in sentence


def test_what_is_no_picture_is_refused(run, pictures, tmp_path, refused):
    (tmp_path / "x.png").write_bytes(b"nothing")
    for more in ([tmp_path / "x.png"], [pictures / "a.png", "--mask", tmp_path / "x.png"]):
        status, said = refused("inpaint", run, *more)
        assert status == 3 and f"x.png cannot be read as a {'mask: give' if '--mask' in more else 'picture'}" in said


# --- guides ----------------------------------------------------------------------------------------------------------


def test_samples_go_away_from_the_guide_that_is_named(run):
    """Against the formula, with both networks opened by hand, one Euler step long."""
    drawn = flowimg.load(run).sample(4, num_steps=1, guide="@2:raw", guide_scale=3.0, precision="fp32")
    main_, guide = (open_run(str(run), weights, step, CPU).field for weights, step in (("ema", 8), ("raw", 2)))
    x, t = flowimg.load(run).sample(4, num_steps=1, precision="fp32"), torch.zeros(4)
    x_0, cond = noise(range(4), (1, 8, 8)), x.cond
    a, b = main_(x_0, t, cond), guide(x_0, t, cond)
    assert (a - b).abs().max() > 1e-4
    torch.testing.assert_close(drawn.x, x_0 + b + 3 * (a - b), atol=1e-5, rtol=0)
    assert drawn.nfe == 2 and x.nfe == 1


def test_what_names_a_guide_finds_it(run):
    drawn = {
        guide: flowimg.load(run).sample(2, num_steps=1, guide=guide).x for guide in ("early", "@4", f"{run}@4:ema")
    }
    assert torch.equal(drawn["@4"], drawn[f"{run}@4:ema"]) and not torch.equal(drawn["@4"], drawn["early"])


def test_a_step_of_which_only_a_snapshot_is_left_is_found_too(run, tmp_path, refused):
    there = tmp_path / "run"
    shutil.copytree(run, there, symlinks=True)
    shutil.rmtree(there / "checkpoints" / "step_00000004")
    snapshot, early = (flowimg.load(there).sample(2, num_steps=1, guide=guide).x for guide in ("@4", "@4:0.1"))
    assert torch.equal(snapshot, early)
    assert not torch.equal(snapshot, flowimg.load(run).sample(2, num_steps=1, guide="@4").x)
    status, said = refused("sample", there, "--guide", "@5")
    assert status == 2 and said.endswith("snapshots of steps 2, 4, 6, 8")


def test_a_folder_whose_name_looks_like_a_step_is_a_run(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "a@2", symlinks=True)
    main(["sample", str(run), "--count", "1", "--guide", str(tmp_path / "a@2"), "--step", "4", "--num-steps", "1"])
    for asked in (f"{run}@2:EMA", ":1.5", "@2:"):
        status, said = refused("sample", run, "--guide", asked)
        assert status == 2 and "@ goes before a step, and : before ema, raw or a length" in said


def test_the_record_of_samples_names_the_guide(run, tmp_path, capsys):
    found = told(["sample", run, "--count", 4, "--num-steps", 2, "--guide", "early", "--guide-interval", 0, 0.3,
                  "--guidance", 2, "--out", tmp_path / "s"], capsys)  # fmt: skip
    assert found["nfe"] == 2 * 2 + 1 and found["guide"] == "early" and found["guide_step"] == 2
    scores = flowimg.load(run).evaluate(count=20, num_steps=2, guide="early", features="proxy-random")
    assert scores["nfe"] == 4 and scores["guide_step"] == 2 and len(scores["guide_sha256"]) == 16
    plain = flowimg.load(run).evaluate(count=20, num_steps=2, features="proxy-random")
    assert "guide" not in plain and plain["FD@20" if "FD@20" in plain else "frechet"] != scores["frechet"]


def test_guided_samples_are_not_taken_for_plain_ones(run, tmp_path, refused):
    out = ["--count", 2, "--num-steps", 2, "--out", tmp_path / "s"]
    for more in (["--guide", "early"], ["--solver", "sde"]):
        main([*map(str, ["sample", run, *out, *more])])
        status, said = refused("sample", run, *out)
        assert status == 2 and "holds other files" in said
        shutil.rmtree(tmp_path / "s")


def test_what_was_drawn_before_stays(run, pictures, capsys):
    """Other pictures, masks and seeds have other folders, and a folder that exists is refused before the work."""
    mask = ["--mask", pictures / "mask.png", "--num-steps", 6, "--count", 1]
    asked = [["inpaint", run, pictures / "a.png", *mask], ["inpaint", run, pictures / "b.png", *mask],
             ["inpaint", run, pictures / "a.png", *mask, "--seed", 9],
             ["inpaint", run, pictures / "corner.png", *mask[2:]]]  # fmt: skip
    found = [told(words, capsys) for words in asked]
    assert len({one["folder"] for one in found}) == 4 and all(
        Path(file).exists() for one in found for file in one["files"]
    )
    assert json.loads((Path(found[0]["folder"]) / "samples.json").read_text())["pictures"] == [str(pictures / "a.png")]


def test_a_place_that_is_taken_is_refused_before_anything_is_drawn(run, pictures, tmp_path, refused, monkeypatch):
    (tmp_path / "x").write_text("")
    monkeypatch.setattr("flowimg.jobs.vary.draw_from", None)
    status, said = refused("vary", run, pictures / "a.png", "--out", tmp_path)
    assert status == 2 and "exists and is not overwritten" in said


def test_a_guide_of_other_pictures_or_classes_is_refused(run, tiny, refused):
    status, said = refused("sample", run, "--guide", tiny.plain)
    assert status == 2 and f"guide {tiny.plain} does not fit {run}: its number of classes is 0, not 10" in said
    status, said = refused("sample", run, "--guide", tiny.points)
    assert status == 2 and "its data is points, not images" in said


def test_a_guide_of_other_points_is_refused(tiny, tmp_path, refused):
    quick = ["--train.steps", "2", "--train.batch-size", "16", "--figures", "false", "--grid.count", "10"]
    for name, there in (
        ("data.cells is 8, not 4", "data: {kind: points, cells: 8}"),
        ("path is cosine, not linear", "path: {kind: cosine}"),
    ):
        (tmp_path / "other.yaml").write_text(there)
        main(["train", str(tmp_path / "other.yaml"), "--run", str(tmp_path / name), *quick])
        status, said = refused("sample", tiny.points, "--guide", tmp_path / name)
        assert status == 2 and said.endswith(f"its {name}")


@pytest.mark.parametrize(
    ("ours", "theirs", "lacks"),
    [
        ([(8, 8), (4, 16)], [(8, 8)], "1 x 4 x 16"),
        ([(8, 8)], [(8, 8), (4, 16)], None),
        ([(4, 16)], [(8, 8), (16, 4)], "1 x 4 x 16"),
    ],
)
def test_a_guide_knows_every_shape_of_its_run(run, ours, theirs, lacks):
    main_ = open_run(str(run), "ema", None, CPU)
    here, there = (main_.facts._replace(buckets=tuple((*shape, 9) for shape in shapes)) for shapes in (ours, theirs))
    guide = replace(main_, facts=there)
    if lacks is None:
        check_fits("g", guide, "r", here, main_.config)
    else:
        with pytest.raises(SettingsError, match=f"guide g does not fit r: its shape is 1 x 8 x 8, not {lacks}"):
            check_fits("g", guide, "r", here, main_.config)


def test_no_network_is_asked_for_pictures_without_class_that_it_never_saw(run, pictures, tmp_path, refused):
    """Neither the run nor its guide."""
    shutil.copytree(run, tmp_path / "sure", symlinks=True)
    file = tmp_path / "sure" / "config.yaml"
    file.write_text(file.read_text().replace("label_drop: 0.1", "label_drop: 0.0"))
    asked = ["--count", 1, "--num-steps", 2]
    for verb, which, more in (
        ("vary", run, ["--guide", tmp_path / "sure@2"]), ("vary", tmp_path / "sure", []),
        ("invert", tmp_path / "sure", []), ("inpaint", run, ["--guide", tmp_path / "sure@2", "--num-steps", 6]),
    ):  # fmt: skip
        wanted = [] if verb == "invert" else asked
        status, said = refused(verb, which, pictures / "corner.png", *wanted, *more)
        assert status == 2 and "sure learned no pictures without their class (train.label_drop 0): give --label" in said
    main(["vary", str(run), str(pictures / "a.png"), "--guide", f"{tmp_path}/sure@2", "--label", "3", "--count", "1"])


def test_what_is_not_finite_is_said(run, pictures, capsys):
    main(["vary", str(run), str(pictures / "a.png"), "--label", "3", "--guidance", "1e30", "--count", "2"])
    assert "warning   2 of 2 pictures are not finite: use more steps or less guidance" in capsys.readouterr().out


def test_a_sweep_may_shape_the_noise_of_the_solvers_that_draw_it():
    how = {"run": "r", "sweep_nfe": [10], "sweep_solvers": ["euler", "sde"], "noise_shape": "constant"}
    assert validate(Evaluate, how, "test").shape_of_noise == "constant"
    with pytest.raises(SettingsError, match="noise_shape is for the solvers sde and sde2, and solver is churn"):
        validate(Evaluate, how | {"sweep_solvers": ["churn"]}, "test")


def test_the_value_that_a_default_has_is_refused_too_where_it_does_nothing():
    for name, value in (("guide_scale", 1.5), ("noise_shape", "sigma")):
        with pytest.raises(SettingsError, match=f"{name} "):
            validate(Sample, {"run": "r", name: value}, "test")


def test_figures_are_drawn_without_a_guide_where_nothing_is_early(tmp_path, capsys):
    file = write_settings(tmp_path / "r.yaml", train={"steps": 2, "snapshots": 1})
    guided = ["--grid.guide", "early", "--figures", "true"]
    main(["train", str(file), "--run", str(tmp_path / "r"), *guided])
    assert "no figures" not in capsys.readouterr().out and (tmp_path / "r" / "report.html").exists()


def test_grids_are_guided_once_the_run_has_been_early(tmp_path, capsys, refused):
    train = {"steps": 8, "snapshots": 4, "sample_every": 2, "evaluate_every": 8, "evaluate_count": 20,
             "evaluate_features": "proxy-random"}  # fmt: skip
    file = write_settings(tmp_path / "r.yaml", train=train)
    guided, plain = (tmp_path / name for name in ("guided", "plain"))
    main(["train", str(file), "--run", str(guided), "--grid.guide", "early", "--grid.guide-scale", "4"])
    main(["train", str(file), "--run", str(plain)])
    same = [(guided / "samples" / name).read_bytes() == (plain / "samples" / name).read_bytes()
            for name in ("step_00000002.png", "step_00000008.png")]  # fmt: skip
    assert same == [True, False]  # of two steps, nothing is early
    (scores,) = (json.loads(line) for line in (guided / "evaluations.jsonl").read_text().splitlines())
    assert scores["nfe"] == 2 and scores["guide"] == "early" and scores["guide_step"] == 2
    early = ["--train.evaluate-every", "2", "--train.stop-at", "2", "--grid.guide", "early"]
    main(["train", str(file), "--run", str(tmp_path / "not_yet"), *early])
    (scores,) = (json.loads(line) for line in (tmp_path / "not_yet" / "evaluations.jsonl").read_text().splitlines())
    assert scores["nfe"] == 1 and "guide" not in scores
    other = ["--grid.guide", str(plain), "--run", str(tmp_path / "away"), "--train.snapshots", "0"]
    main(["train", str(file), *other])
    assert (tmp_path / "away" / "samples" / "step_00000002.png").exists()
    for wrong, why in (("early", "train.snapshots is 0"), ("@2", "names no run"), ("nowhere", "holds no run")):
        status, said = refused("train", file, "--run", tmp_path / "w", "--train.snapshots", 0, "--grid.guide", wrong)
        assert status == 2 and why in said


# --- batches and processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_pictures_of_any_batch_size_and_number_of_processes(run, pictures, tmp_path):
    script = tmp_path / "verb.py"
    script.write_text("import sys\nfrom flowimg.cli import main\nmain(sys.argv[1:])\n")
    mask, names = pictures / "mask.png", [pictures / "a.png", pictures / "b.png"]
    verbs = {
        "inpaint": ["inpaint", run, *names, "--mask", mask, "--count", "5"],
        "vary": ["vary", run, *names, "--count", "5"],
        "inverted": ["vary", run, *names, "--count", "5", "--inversion", "true"],
        **{solver: ["sample", run, "--count", "10", "--solver", solver] for solver in ("sde", "sde2", "churn")},
        "guided": ["sample", run, "--count", "10", "--guide", "early", "--guidance", "2"],
    }
    for name, words in verbs.items():
        drawn = []
        for processes, size in ((1, 7), (1, 64), (2, 64)):
            out = tmp_path / f"{name}_{processes}_{size}"
            how = ["--num-steps", "6", "--precision", "fp32", "--batch-size", str(size), "--out", str(out)]
            go_on(processes, script, *map(str, words), *how)
            files = sorted(file for file in out.rglob("*.png") if file.name != "grid.png")
            drawn.append(np.stack([read(file) for file in files]))
            assert len(files) == 10
        assert abs(drawn[0] - drawn[1]).max() <= 1 and abs(drawn[0] - drawn[2]).max() <= 1, name
        assert len(np.unique(drawn[0], axis=0)) == 10
