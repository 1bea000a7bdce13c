"""flowimg data check, preview, prepare, and what a run says and keeps of its data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from shards_made import write_tars
from tiny import write_settings

from flowimg.cli import main


@pytest.fixture
def photos(tmp_path):
    """Two classes of noise, one of them near-empty; a twin; two broken files."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        file = tmp_path / "photos" / ("rare" if number < 3 else "common") / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    Image.fromarray(noise[5]).save(tmp_path / "photos/common/twin.bmp")  # another file, the same picture
    (tmp_path / "photos/common/empty.jpg").touch()
    os.symlink("nowhere", tmp_path / "photos/rare/gone.png")
    return tmp_path / "photos"


def run(capsys, *args):
    """Exit status, what `--json` put on stdout, and the words on stderr."""
    status = 0
    try:
        main([*map(str, args), "--json"])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def test_check_counts_everything_and_names_what_is_odd(photos, capsys):
    status, found, words = run(capsys, "data", "check", photos, "--max-bad", "0.1")
    assert status == 0
    assert (found["pictures"], found["good"]) == (43, 41)
    assert {Path(bad["name"]).name: bad["reason"] for bad in found["bad"]} == {
        "empty.jpg": "the file is empty",
        "gone.png": "a link to nothing",
    }
    assert found["classes"] == {"common": 38, "rare": 3} and found["near_empty"] == ["rare"]
    assert [sorted(Path(name).name for name in group) for group in found["twice"]] == [["05.png", "twin.bmp"]]
    assert (
        found["sizes"] == {"24 x 20": 41}
        and found["formats"] == {"PNG": 40, "BMP": 1}
        and found["modes"] == {"RGB": 41}
    )
    assert "24 x 20 (41); width x height" in words
    for said in ("empty.jpg: the file is empty", "near-empty classes: rare", "twin.bmp", "41 pictures are few"):
        assert said in words


def test_check_ends_with_3_above_the_share_and_tells_all_the_same(photos, capsys):
    status, found, words = run(capsys, "data", "check", photos)
    assert status == 3 and len(found["bad"]) == 2
    assert "2 of 43 pictures (4.7%) cannot be used, more than max_bad 0.01 allows" in words.splitlines()[-1]


def test_check_finds_what_only_decoding_finds(photos, capsys):
    whole = (photos / "common/10.png").read_bytes()
    (photos / "common/10.png").write_bytes(whole[: len(whole) // 2])
    _, found, _ = run(capsys, "data", "check", photos, "--max-bad", "0.1")
    assert "10.png" in {Path(bad["name"]).name for bad in found["bad"]}


def test_check_takes_a_settings_file_and_a_run(photos, tmp_path, tiny, capsys):
    settings = write_settings(tmp_path / "c.yaml")
    assert run(capsys, "data", "check", settings)[1]["pictures"] == 1797
    assert run(capsys, "data", "check", tiny.plain)[1]["pictures"] == 1797
    assert run(capsys, "data", "check", settings, "--source", photos, "--max-bad", "0.1")[1]["pictures"] == 43


def test_check_of_shards(tmp_path, capsys):
    found = run(capsys, "data", "check", write_tars(tmp_path / "s", [7, 8]))[1]
    assert found["pictures"] == 15 and found["kind"] == "2 tar shards" and sum(found["classes"].values()) == 15


def test_preview_of_a_run_is_what_it_drew_of_itself(tiny, tmp_path, capsys):
    # the run's batch has 16 places, which is what its own grid shows
    main(["data", "preview", str(tiny.plain), "--out", str(tmp_path / "p.png"), "--count", "16"])
    assert np.array_equal(np.array(Image.open(tmp_path / "p.png")), np.array(Image.open(tiny.plain / "data.png")))


def test_preview_shows_flips(photos, tmp_path):
    common = ["data", "preview", str(photos), "--max-bad", "0.1", "--size", "48", "--count", "9"]
    main([*common, "--out", str(tmp_path / "plain.png")])
    main([*common, "--flip", "true", "--out", str(tmp_path / "flipped.png")])
    plain, flipped = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "flipped"))
    tiles = [(slice(4 + 52 * y, 52 + 52 * y), slice(4 + 52 * x, 52 + 52 * x)) for y in range(3) for x in range(3)]
    mirrored = [bool((flipped[tile] == plain[tile][:, ::-1]).all()) for tile in tiles]
    assert all((flipped[tile] == plain[tile]).all() or turned for tile, turned in zip(tiles, mirrored, strict=True))
    assert 0 < sum(mirrored) < 9


def test_what_is_prepared_is_not_decoded_again(photos, tmp_path, monkeypatch, capsys):
    data = {"kind": "images", "source": str(photos), "size": 16, "max_bad": 0.1, "held_out": 4}
    settings = write_settings(tmp_path / "c.yaml", data=data)
    status, made, _ = run(capsys, "data", "prepare", settings)
    assert status == 0 and made["shape"] == [41, 3, 16, 16] and len(made["bad"]) == 2
    assert made["bytes"] == 41 * 3 * 16 * 16 == (Path(made["store"]) / "pixels").stat().st_size

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("flowimg.data.store.decode_into", never)
    monkeypatch.setattr("flowimg.data.scan.look", never)
    main(["train", str(settings), "--run", str(tmp_path / "run")])
    left = (tmp_path / "run/left_out.txt").read_text().splitlines()
    assert [line.split(": ")[1] for line in left] == ["the file is empty", "a link to nothing"]
    said = capsys.readouterr().out
    assert "2 unusable pictures skipped" in said and "37 pictures are few" in said
    assert Image.open(tmp_path / "run/data.png").size[0] > 100


def test_the_cache_is_where_it_is_asked_to_be(photos, tmp_path, capsys):
    data = {"kind": "images", "source": str(photos), "size": 16, "max_bad": 0.1, "cache": str(tmp_path / "mine")}
    made = run(capsys, "data", "prepare", write_settings(tmp_path / "c.yaml", data=data))[1]
    assert made["store"].startswith(str(tmp_path / "mine"))


def test_a_run_on_shards_as_they_come(tmp_path, capsys):
    data = {
        "kind": "images",
        "source": str(write_tars(tmp_path / "s", [30, 40])),
        "stream": True,
        "size": 8,
        "held_out": 4,
    }
    settings = write_settings(tmp_path / "c.yaml", data=data)
    assert run(capsys, "data", "prepare", settings)[0] == 0
    main(["train", str(settings), "--run", str(tmp_path / "run")])
    assert "2 tar shards, 70 pictures, streamed" in capsys.readouterr().out
    assert (tmp_path / "run/data.png").exists()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["stream"] is True


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["data"], 2, "needs one of check, preview, prepare"),
        (["data", "chek", "x"], 2, "did you mean check?"),
        (["data", "check"], 2, "needs a source first"),
        (["data", "check", "/nowhere"], 3, "does not exist"),
        (["data", "check", "digits", "--sise", "3"], 2, "did you mean size?"),
        (["data", "preview", "digits", "--random-crop", "8"], 2, "must be larger than size None, the window it cuts"),
        (["data", "preview", "digits", "--out", "README.md"], 2, "out README.md is not a PNG file"),
        (["data", "prepare", "configs/moons.yaml"], 2, "needs no preparation"),
        (["data", "check", "configs/moons.yaml"], 2, "a run on points"),
        (
            ["train", "configs/digits.yaml", "--data.stream", "true", "--data.first", "3"],
            2,
            "leave out classes and first",
        ),
    ],
)
def test_a_mistake_is_one_sentence(refused, args, status, said):
    code, line = refused(*args)
    assert code == status and said in line
