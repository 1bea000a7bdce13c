"""A single picture, to see whether a network can learn it: nothing is held out, and what needs more is left out."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import QUICK, write_settings

from flowimg.cli import main

ALL_OF_IT = {"kind": "images", "held_out": 0, "labels": False}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with one picture, and where more may be made."""
    folder = tmp_path_factory.mktemp("one")
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (folder / "photos").mkdir()
    Image.fromarray(picture).save(folder / "photos" / "a.png")
    return folder


@pytest.fixture(scope="module")
def run(one, own_folders):
    """A run on it, with an evaluation during training."""
    data = {**ALL_OF_IT, "source": str(one / "photos")}
    config = write_settings(one / "a.yaml", data=data, train={"evaluate_every": 2, "evaluate_count": 8})
    main(["train", str(config), "--run", str(one / "run")])
    return one / "run"


def test_a_run_on_one_picture_trains_and_is_evaluated_without_a_held_out_loss(run):
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "event" not in record]
    assert records[-1]["loss"] > 0 and not any("held_out_loss" in record for record in records)
    (scores,) = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert scores["frechet"] > 0 and scores["reference"].startswith("1 training pictures")
    assert not scores.keys() & {"kid", "nearest", "precision", "judge"} and "not_finite" not in scores
    assert all((run / name).exists() for name in ("data.png", "samples/step_00000002.png", "model/README.md"))


def test_an_evaluation_says_in_one_line_what_needs_more_pictures(run, capsys):
    main(["evaluate", str(run), "--count", "12", "--num-steps", "1"])
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("left out")]
    assert "kid and nearest need 2 training pictures" in line and "precision" in line and "nan" not in said
    assert (run / "figures" / "nearest.png").exists()


def test_the_other_verbs_take_such_a_run(run, one, capsys, refused):
    main(["sample", str(run), "--count", "2", "--num-steps", "1"])
    main(["figures", str(run), "--num-steps", "1"])
    main(["data", "check", str(one / "photos")])
    main(["data", "preview", str(one / "photos"), "--out", str(one / "preview.png"), "--count", "4"])
    said = capsys.readouterr().out
    assert "held out  0 and not 97 as in a run" in said and "1 pictures are" not in said
    status, said = refused("likelihood", run)
    assert status == 2 and "data.held_out is 0" in said and "--split" in said


def test_pictures_that_are_all_held_out_are_refused_with_the_number_that_works(one, tmp_path, refused):
    config = write_settings(tmp_path / "a.yaml", data={**ALL_OF_IT, "source": str(one / "photos")})
    for more in ("1", "97"):
        status, said = refused("train", config, "--run", tmp_path / "run", "--data.held-out", more)
        assert status == 3 and f"data.held_out {more} leaves nothing to train on" in said
        assert said.endswith("give a smaller data.held_out, or 0 for none")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("metric", ["held_out_loss", "held_out_loss_ema"])
def test_the_best_held_out_loss_is_refused_where_there_is_none(metric, tmp_path, refused):
    data = {**ALL_OF_IT, "source": "digits"}
    config = write_settings(tmp_path / "a.yaml", data=data, train={"keep_best": metric})
    status, said = refused("train", config, "--run", tmp_path / "run")
    assert status == 2 and f"train.keep_best {metric} needs held-out images, and data.held_out is 0" in said


@pytest.mark.usefixtures("quick_judge")
def test_labelled_pictures_of_which_none_is_held_out_have_no_judge(tmp_path, capsys):
    """Two classes, one of a single picture: the classifier is trained, but nothing tells how good it is."""
    for number in range(3):
        path = tmp_path / "photos" / f"class {number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 80 * number, dtype=np.uint8)).save(path)
    data = {**ALL_OF_IT, "source": str(tmp_path / "photos"), "labels": True}
    main(["train", str(write_settings(tmp_path / "a.yaml", data=data)), "--run", str(tmp_path / "run")])
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), "--count", "8", "--num-steps", "1", "--guidance", "2"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert "judge needs held-out pictures" in line and "kid" not in line
    scores = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert scores["agreement"] >= 0 and scores["spread"] > 0 and scores["kid"] is not None and "judge" not in scores


def test_a_stream_of_one_picture_trains(one, tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"image": [str(one / "photos" / "a.png")]})
    table = table.cast_column("image", datasets.Image())
    (tmp_path / "shards").mkdir()
    table.to_parquet(tmp_path / "shards" / "train-0.parquet")
    data = {**ALL_OF_IT, "source": str(tmp_path / "shards"), "stream": True, "workers": 1}
    config = write_settings(tmp_path / "a.yaml", data=data, train={**QUICK, "batch_size": 4})
    main(["train", str(config), "--run", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
