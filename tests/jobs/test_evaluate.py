"""`flowimg evaluate` and its sweeps on runs of two steps: what is told, kept, drawn and refused; no quality here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from survival import ROOT, go_on
from tiny import write_settings

from flowimg.cli import main
from flowimg.evaluation.distances import frechet, moments
from flowimg.evaluation.features import random_convolutions
from flowimg.jobs.evaluate.sweep import least
from flowimg.runs.folder import RunFolder

QUICK = ("--count", "40", "--num-steps", "2", "--precision", "fp32")
pytestmark = pytest.mark.usefixtures("quick_judge")


@pytest.fixture
def run(tiny, tmp_path):
    """A copy of one of the tiny runs."""

    def run(name):
        return Path(shutil.copytree(getattr(tiny, name), tmp_path / name))

    return run


def evaluated(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_pictures_with_labels_are_scored_and_all_that_decides_it_is_told(run, capsys):
    folder = run("classes")
    main(["evaluate", str(folder), *QUICK])
    found = evaluated(folder)[-1]
    shares = ("precision", "recall", "coverage", "agreement", "judge")
    assert all(0 <= found[name] <= 1 for name in shares)
    assert found["frechet"] > 1 and found["kid"] > 0 and found["nearest"] > 0
    assert (found["distance"], found["features"]) == ("FD@40", "proxy-classifier")
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith(str(folder)))
    for word in (
        "40 samples of seeds 0 to 39",
        "euler, 2 steps",
        "2 evaluations",
        "fp32",
        "ema weights",
        "resize none",
        found["reference_hash"],
        found["features_sha256"],
        found["weights_sha256"],
        "training pictures of digits",
    ):
        assert word in line, word  # fmt: skip
    assert "FD@40 " in said and "FID" not in said
    manifest = json.loads((folder / "checkpoints/step_00000002/manifest.json").read_text())
    assert manifest["ema.safetensors"]["sha256"].startswith(found["weights_sha256"])


def test_the_distance_is_that_of_the_pictures_that_sample_writes(run, tmp_path):
    """Drawn again by another verb, read from its PNGs, and set against the data that scikit-learn has."""
    from sklearn.datasets import load_digits

    folder = run("plain")
    main(["evaluate", str(folder), *QUICK, "--features", "proxy-random", "--seed", "7"])
    main(["sample", str(folder), *QUICK, "--seed", "7", "--out", str(tmp_path / "out")])
    drawn = [np.array(Image.open(path)) for path in sorted((tmp_path / "out/images").glob("*.png"))]
    extractor = random_convolutions(1, 8, torch.device("cpu"))
    data = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert len(drawn) == 40
    apart = {bytes(p) for p in _held_out(folder)}
    real = np.stack([picture for picture in data if picture.tobytes() not in apart])
    x = [torch.from_numpy(np.stack(part))[:, None] / 127.5 - 1 for part in (real, drawn)]
    seen = [extractor.features(part) for part in x]
    assert evaluated(folder)[-1]["frechet"] == pytest.approx(frechet(*map(moments, seen)), rel=1e-4)


def _held_out(folder):
    from flowimg.build.data import build_source
    from flowimg.settings.reading import load

    pictures, _ = build_source(load(str(folder / "config.yaml"))).load(torch.device("cpu")).held_out(100)
    return ((pictures + 1) * 127.5).round().to(torch.uint8).numpy().reshape(len(pictures), -1)


def test_a_run_without_labels_is_judged_by_those_of_its_data(run):
    folder = run("plain")
    main(["evaluate", str(folder), *QUICK])
    found = evaluated(folder)[-1]
    assert found["features"] == "proxy-classifier" and "agreement" not in found and found["frechet"] > 0


def test_the_same_twice_is_the_same_and_other_seeds_are_not(run):
    folder = run("plain")
    for seed in ("0", "0", "40"):
        main(["evaluate", str(folder), *QUICK, "--seed", seed, "--batch-size", str(7 + int(seed))])
    first, second, third = (found["frechet"] for found in evaluated(folder))
    assert first == second != third


@pytest.mark.slow
def test_the_arithmetic_of_the_samples_is_not_that_of_the_features(run, monkeypatch, tmp_path):
    """In bf16 the reference and the classifier are those of fp32: both are made anew here, each in its own cache."""
    folder = run("classes")
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("FLOWIMG_CACHE", str(tmp_path / precision))
        main(["evaluate", str(folder), *QUICK, "--precision", precision])
    exact, rough = evaluated(folder)
    assert exact["features_sha256"] == rough["features_sha256"]
    assert exact["judge"] == rough["judge"] > 0.9
    assert exact["frechet"] != rough["frechet"] == pytest.approx(exact["frechet"], rel=0.05)


def test_other_pictures_of_one_source_are_another_reference(run):
    """A cache that took one for the other would give distances to the wrong data."""
    folder = run("plain")
    config = folder / "config.yaml"
    found = []
    for change in (("held_out: 8", "held_out: 8"), ("held_out: 8", "held_out: 30"), ("first: null", "first: 500")):
        text = config.read_text()
        assert change[0] in text
        config.write_text(text.replace(*change))
        main(["evaluate", str(folder), *QUICK, "--features", "proxy-random"])
        config.write_text(text)
        found.append(evaluated(folder)[-1])
    assert len({one["reference_hash"] for one in found}) == len({one["frechet"] for one in found}) == 3


def test_the_nearest_training_pictures_are_shown_in_the_report(run):
    folder = run("classes")
    main(["evaluate", str(folder), *QUICK])
    with Image.open(folder / "figures/nearest.png") as picture:
        assert picture.width > 200 and picture.height > 400
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert "Is any sample a copy?" in page and "FD@40" in page
    main(["evaluate", str(folder), *QUICK])
    noted = [figure.file for figure in kept(folder)]
    assert noted.count("nearest.png") == 1


def kept(folder):
    from flowimg.figures.record import kept_figures

    return kept_figures(RunFolder(folder).figures)


def test_an_evaluation_of_another_version_is_told_as_far_as_it_is_known(run):
    folder = run("classes")
    old = {"agreement": 0.5, "step": 2, "weights": "ema", "count": 3, "seeds": [0, 2], "precision": "fp32", "nfe": 4}
    (folder / "evaluations.jsonl").write_text(json.dumps(old) + "\n")
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert "agreement" in page and "weights ema" in page


@pytest.mark.parametrize(
    ("name", "options", "status", "word"),
    [
        ("classes", ["--max-off", "1"], 2, "are for runs on points"),
        ("points", ["--features", "inception"], 2, "are for runs on images"),
        ("points", ["--max-frechet", "1"], 2, "are for runs on images"),
        ("classes", ["--inception", "w.pth"], 2, "needs --features inception"),
        ("plain", ["--sweep-guidance", "1", "2"], 2, "needs a conditional run on images"),
        ("classes", ["--sweep-guidance", "1", "--sweep-nfe", "2"], 2, "give one of them"),
        ("classes", ["--features", "inception", "--inception", "nowhere.pth"], 4, "nowhere.pth is not a file"),
        ("classes", ["--features", "./nowhere"], 4, "no picture network in safetensors at ./nowhere"),
        ("classes", ["--features", "proxy-classifier"], 2, "there are no features proxy-classifier: proxy is"),
        ("classes", ["--count", "1"], 2, "count is 1"),
        ("classes", ["--guidance-interval", "0.2", "0.8"], 2, "without guidance does nothing"),
        (
            "classes",
            ["--sweep-solvers", "euler"],
            2,
            "sweep_solvers is only for --sweep-nfe: leave it out, or give both",
        ),
        ("classes", ["--sweep-nfe", "4", "--times", "edm"], 2, "times: --sweep-nfe sets it"),
        ("classes", ["--sweep-nfe", "4", "--sweep-times", "edm", "--sweep-shifts", "3"], 2, "only the uniform grid"),
        (
            "classes",
            ["--sweep-nfe", "2", "--max-frechet", "1"],
            2,
            "a sweep has more than one score, so no limit applies",
        ),
        ("points", ["--sweep-nfe", "2", "--max-off", "1"], 2, "a sweep has more than one score, so no limit applies"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, name, options, status, word, refused):
    code, said = refused("evaluate", getattr(tiny, name), *options)
    assert code == status and word in said


@pytest.mark.parametrize("count", ["2", "5", "6"])
def test_few_samples_have_the_scores_that_few_have(run, count):
    folder = run("classes")
    main(["evaluate", str(folder), "--count", count, "--num-steps", "1"])
    found = evaluated(folder)[-1]
    assert found["frechet"] > 0 and ("coverage" in found) == (int(count) > 5)


def test_a_limit_on_the_distance_is_a_gate(run, refused, capsys):
    folder = run("classes")
    main(["evaluate", str(folder), *QUICK, "--max-frechet", "1e6"])
    assert "within all limits" in capsys.readouterr().out
    status, said = refused("evaluate", folder, *QUICK, "--max-frechet", "0.001")
    assert status == 1 and "FD@40 is" in said and "more than 0.001" in said


def launch(folder, *options):
    """`accelerate launch` of two processes."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--main_process_port", "0", ROOT / "scripts/evaluate.py", folder]
    return subprocess.run([*command, *options], env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(run):
    folder = run("classes")
    go_on(2, ROOT / "scripts" / "evaluate.py", folder, "--count", "41", "--num-steps", "2")
    main(["evaluate", str(folder), "--count", "41", "--num-steps", "2"])
    two, one = evaluated(folder)
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name


def test_a_run_is_evaluated_while_it_trains_and_not_twice_when_it_goes_on(tmp_path):
    train = {"steps": 6, "evaluate_every": 2, "evaluate_count": 20, "checkpoint_every": 2}
    file = write_settings(tmp_path / "r.yaml", train=train)
    command = ["train", str(file), "--run", str(tmp_path / "r")]
    main([*command, "--train.stop-at", "4"])
    assert [found["step"] for found in evaluated(tmp_path / "r")] == [2, 4]
    shutil.rmtree(tmp_path / "r/checkpoints/step_00000004")
    main(["evaluate", str(tmp_path / "r"), *QUICK])
    main(command)
    found = evaluated(tmp_path / "r")
    assert [(one["step"], one.get("during", False)) for one in found] == [(2, True), (2, False), (4, True), (6, True)]
    assert found[-1]["distance"] == "FD@20" and found[-1]["weights"] == "ema"


def test_features_that_are_not_there_are_refused_before_the_first_step(tmp_path, refused):
    file = write_settings(tmp_path / "r.yaml", train={"evaluate_every": 2, "evaluate_features": "./nowhere"})
    status, said = refused("train", file, "--run", tmp_path / "r")
    assert status == 4 and "there is no picture network in safetensors at ./nowhere" in said
    assert not (tmp_path / "r/metrics.jsonl").exists() or '"loss"' not in (tmp_path / "r/metrics.jsonl").read_text()


def test_other_pictures_than_the_run_learned_from_are_told(run, capsys):
    """Of the same shape and classes: 500 of them, where the run learned from all."""
    folder = run("classes")
    main(["evaluate", str(folder), *QUICK])
    assert "has changed" not in capsys.readouterr().out
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("first: null", "first: 500"))
    main(["evaluate", str(folder), *QUICK])
    assert "warning   digits has changed: the run was trained on data of fingerprint" in capsys.readouterr().out


@pytest.mark.slow
def test_one_process_tells_what_is_wrong_and_none_ends_in_a_trace(run, monkeypatch):
    monkeypatch.setenv("FLOWIMG_CACHE", "/dev/null/cache")  # which the first process alone has to write to
    done = launch(run("classes"))
    assert done.returncode and "/dev/null/cache" in done.stderr
    assert "fault of flowimg" not in done.stderr and 'jobs/evaluate/comparison.py", line' not in done.stderr


def test_points_are_evaluated_while_they_train(tmp_path):
    quick = ["--train.steps", "2", "--train.batch-size", "16", "--grid.num-steps", "1", "--grid.count", "10"]
    quick += ["--figures", "false", "--train.evaluate-every", "1", "--train.evaluate-count", "50"]
    main(["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "r"), *quick])
    assert [(found["step"], found["count"]) for found in evaluated(tmp_path / "r")] == [(1, 50), (2, 50)]


# --- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distances", "wanted"),
    [
        ({10: 2.0, 20: 1.04, 40: 1.01, 80: 1.0}, 20),
        ({10: 1.0, 20: 1.2, 40: 1.0}, 40),  # near by chance, and away again
        ({10: 2.0, 20: 1.06}, None),
        ({10: 0.9, 20: 0.96}, 20),  # below is away as well
        ({10: 1.0, 20: float("nan"), 40: 1.0}, 40),
    ],
)
def test_enough_is_where_the_distance_comes_near_and_stays(distances, wanted):
    assert least(list(distances.items()), 1.0) == wanted
    assert least(list(distances.items()), float("inf")) is None


@pytest.mark.slow
def test_a_sweep_over_evaluations_tries_every_solver_and_grid_at_what_was_asked_for(run):
    folder = run("classes")
    main(["evaluate", str(folder), "--count", "20", "--sweep-nfe", "3", "4", "--sweep-solvers", "euler", "heun", "ab2"])
    told = json.loads((folder / "figures/nfe.json").read_text())
    rows = {(row["solver"], row["grid"], row["nfe"]): row["score"] for row in told["rows"]}
    grids = ("uniform", "uniform, shift 0.5", "uniform, shift 2", "edm")
    for grid in grids:
        assert {n for s, g, n in rows if (s, g) == ("euler", grid)} == {3, 4}
        assert {n for s, g, n in rows if (s, g) == ("ab2", grid)} == {3, 4}
    assert {n for s, g, n in rows if (s, g) == ("heun", "edm")} == {4}
    assert {n for s, g, n in rows if (s, g) == ("heun", "uniform")} == {2, 4}
    assert len(set(rows.values())) > len(rows) // 2  # each was followed in its own way
    assert told["converged"]["nfe"] > 10 and set(told["enough"]) == {f"{s}, {g}" for s, g, _ in rows}
    assert "nfe.png" in [figure.file for figure in kept(folder)]
    main(["evaluate", str(folder), "--count", "20", "--num-steps", "3"])  # what a line of the sweep says of itself
    assert evaluated(folder)[-1]["frechet"] == pytest.approx(rows["euler", "uniform", 3], rel=1e-9)


def test_a_sweep_over_guidance_draws_quality_against_diversity(run, capsys):
    folder = run("classes")
    main(["evaluate", str(folder), "--count", "20", "--num-steps", "2", "--sweep-guidance", "3", "1"])
    rows = json.loads((folder / "figures/guidance.json").read_text())["rows"]
    assert [(row["scale"], row["nfe"]) for row in rows] == [(1, 2), (3, 4)]
    assert all({"agreement", "coverage", "precision", "frechet", "score"} <= set(row) for row in rows)
    assert (folder / "figures/guidance.png").exists()
    said = capsys.readouterr().out
    assert "20 samples of seeds 0 to 19" in said and "features proxy-classifier" in said


def test_a_sweep_over_evaluations_counts_those_of_guidance(run, monkeypatch):
    monkeypatch.setattr("flowimg.jobs.evaluate.sweep.CONVERGED", {"solver": "heun", "num_steps": 5})
    folder = run("classes")
    main(["evaluate", str(folder), "--count", "20", "--sweep-nfe", "4", "--guidance", "2", "--sweep-times", "uniform"])
    rows = json.loads((folder / "figures/nfe.json").read_text())["rows"]
    assert {row["solver"]: row["nfe"] for row in rows} == {"euler": 4, "midpoint": 4, "heun": 4, "ab2": 4}


def test_points_are_swept_by_their_distance(run):
    folder = run("points")
    main(["evaluate", str(folder), "--count", "200", "--sweep-nfe", "2", "8", "--sweep-solvers", "euler"])
    told = json.loads((folder / "figures/nfe.json").read_text())
    assert len(told["rows"]) == 8 and told["converged"]["score"] == told["converged"]["sw2"]


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--sweep-nfe", "1", "--sweep-solvers", "rk4"], "too few evaluations for a step of rk4"),
        (["--sweep-nfe", "1", "--sweep-times", "edm"], "over edm times"),
        (["--sweep-guidance", "1", "2", "--count", "5"], "too few for --sweep-guidance: give more than 5"),
    ],
)
def test_a_sweep_over_nothing_is_one_sentence(tiny, options, word, refused):
    status, said = refused("evaluate", tiny.classes, *options)
    assert status == 2 and word in said


def test_an_evaluation_goes_behind_a_line_that_was_cut(run):
    folder = run("classes")
    (folder / "evaluations.jsonl").write_text('{"step": 2, "fre')
    main(["evaluate", str(folder), *QUICK])
    assert [found["count"] for found in RunFolder(folder).evaluated()] == [40]


def test_samples_that_are_no_numbers_are_counted_and_fail_a_gate(run, monkeypatch, refused):
    from flowimg.sampling.sampler import Sampler

    stream = Sampler.samples

    def broken(*args):
        for batch in stream(*args):
            batch.x_1[::4, 0, 0, 0] = float("nan")
            yield batch

    monkeypatch.setattr(Sampler, "samples", broken)
    folder = run("classes")
    status, said = refused("evaluate", folder, *QUICK, "--max-frechet", "1e9")
    assert status == 1 and "10 samples are not finite" in said
    assert evaluated(folder)[-1]["not_finite"] == 10


def test_training_goes_on_when_an_evaluation_cannot_be_kept(tmp_path, monkeypatch, capsys):
    from flowimg.jobs.train import callbacks

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callbacks, "keep", full)
    file = write_settings(tmp_path / "r.yaml", train={"evaluate_every": 1, "evaluate_count": 6})
    main(["train", str(file), "--run", str(tmp_path / "r")])
    assert "the evaluation of step 1 was not written" in capsys.readouterr().out
    assert (tmp_path / "r/checkpoints/step_00000002").is_dir()


def test_of_one_class_there_is_no_judge_and_no_classifier(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        file = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    data = {"kind": "images", "source": str(tmp_path / "pictures"), "held_out": 3, "labels": True, "classes": ["cat"]}
    main(["train", str(write_settings(tmp_path / "r.yaml", data=data)), "--run", str(tmp_path / "run")])
    main(["evaluate", str(tmp_path / "run"), *QUICK])
    found = evaluated(tmp_path / "run")[-1]
    assert found["features"] == "proxy-random" and not {"agreement", "judge"} & set(found)
    main(["evaluate", str(tmp_path / "run"), *QUICK, "--sweep-guidance", "1", "2"])  # says what it can


def test_a_network_of_texts_is_one_sentence(tiny, tmp_path, refused, capsys):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=9, **small)).save_pretrained(tmp_path / "bert")
    capsys.readouterr()  # its bar
    status, said = refused("evaluate", tiny.classes, "--features", tmp_path / "bert", *QUICK)
    assert status == 4 and "gives no features of an image" in said


@pytest.fixture
def of_folders(tmp_path):
    """A conditional run on a folder a class, and that folder."""
    source = tmp_path / "pictures"
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        file = source / ("b", "c", "d")[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    data = {"kind": "images", "source": str(source), "held_out": 3}
    main(["train", str(write_settings(tmp_path / "r.yaml", data=data)), "--run", str(tmp_path / "run")])
    return tmp_path / "run", source


def test_data_of_other_classes_or_shape_than_the_runs_are_refused(of_folders, refused):
    run, source = of_folders
    main(["evaluate", str(run), *QUICK])
    (source / "a").mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0]).save(source / "a" / "new.png")
    status, said = refused("evaluate", run, *QUICK)
    assert status == 3 and "has the classes a, b, c, d, and the run was trained on b, c, d" in said
    Image.fromarray(pixels).save(source / "a" / "new.png")
    status, said = refused("evaluate", run, *QUICK)
    assert status == 3 and "has pictures of 3 x 8 x 8, and the run was trained on 1 x 8 x 8" in said
    shutil.rmtree(source)
    status, said = refused("evaluate", run, *QUICK)
    assert status == 3 and str(source) in said


def test_the_data_themselves_are_covered_however_few_are_looked_at():
    """A thousand more of the data against ten thousand are as good as samples get."""
    from flowimg.data.store import Images
    from flowimg.evaluation import comparison, reference
    from flowimg.flow.condition import Condition
    from flowimg.spaces.pixels import Pixels

    g = torch.Generator().manual_seed(0)
    features, few = torch.randn(10_000, 8, generator=g), torch.randn(500, 8, generator=g)
    pictures = Images(torch.randint(0, 256, (50, 1, 4, 4), generator=g, dtype=torch.uint8), None, ())
    data = reference.DataSet("", "", pictures, (torch.zeros(1), Condition()), False)
    seen = reference.Reference(data, moments(features), features)
    extractor = random_convolutions(1, 4, torch.device("cpu"))
    yard = comparison.Comparison(Pixels((1, 4, 4)), extractor, seen, None)
    drawn = comparison.SampleFeatures(500, 1, moments(few), few, pictures.pixels, Condition(), 0)
    scores, near = comparison.score(drawn, yard)
    assert scores["coverage"] > 0.9 and 0.8 < scores["density"] < 1.2
    assert scores["nearest"] == 0 and near.row[:, 0].tolist() == list(range(50))
