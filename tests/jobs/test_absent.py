"""Classes that are declared and have no picture: said before a run, and never drawn or evaluated as if learned."""

import json

import numpy as np
import pytest
from pictures_made import dataset, picture, save
from tiny import write_settings

from flowimg.build.data import build_source
from flowimg.cli import main
from flowimg.data.store import hold_out
from flowimg.sampling.pipeline import LabelPipeline
from flowimg.settings.reading import load


def settings(folder, source, **data):
    data = {"kind": "images", "source": str(source), "workers": 1, "held_out": 1, **data}
    return write_settings(folder / "a.yaml", data=data)


@pytest.fixture
def insects(tmp_path):
    for number, kind in enumerate(("ant", "bee", "fly")):
        for n in range(4):
            save(tmp_path / "insects" / kind / f"{n}.png", picture(40 * number + n, (8, 8)))
    return tmp_path / "insects"


@pytest.mark.parametrize(("first", "absent"), [(4, ["bee", "fly"]), (6, ["fly"]), (12, [])])
def test_classes_that_the_first_pictures_leave_out_are_said(insects, tmp_path, first, absent):
    found = build_source(load(str(settings(tmp_path, insects, first=first))))
    assert [found.facts.classes[number] for number in found.facts.absent] == absent
    said = [f"no picture to train on is of class {', '.join(absent)}: samples are of other classes"] if absent else []
    assert found.doubts() == said


def test_a_class_whose_only_picture_is_held_out_is_not_learned(tmp_path):
    only = int(hold_out(9, 1))
    dataset("ab", [int(n == only) for n in range(9)]).to_parquet(tmp_path / "x.parquet")
    found = build_source(load(str(settings(tmp_path, tmp_path / "x.parquet"))))
    assert found.facts.classes == ("a", "b") and found.facts.absent == (1,) and found.facts.present == [0]


def test_samples_take_turns_among_the_classes_that_were_learned(tmp_path, capsys):
    rows = dataset(["ant", "bee", "fly"], [0, 2] * 6, size=(8, 8))
    rows.to_parquet(tmp_path / "x.parquet")
    config, run = settings(tmp_path, tmp_path / "x.parquet", held_out=2), tmp_path / "run"
    main(["train", str(config), "--run", str(run)])
    assert "warning   no picture to train on is of class bee" in capsys.readouterr().out
    main(["sample", str(run), "--count", "4", "--num-steps", "1", "--format", "npz", "--json"])
    drawn = np.load(json.loads(capsys.readouterr().out)["samples"])["labels"]
    assert drawn.tolist() == [0, 2, 0, 2]
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--label", "bee", "--count", "1"])
    assert "label bee:" in (said := capsys.readouterr().err) and "trained on no sample of this class" in said
    main(["sample", str(run), "--label", "fly", "--count", "1", "--num-steps", "1", "--out", str(tmp_path / "fly")])
    exported = LabelPipeline.from_pretrained(run / "model")
    exported.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="bee was not learned"):
        exported(["ant", "bee"], num_inference_steps=1)
    assert len(exported(["ant", "fly"], num_inference_steps=1).images) == 2
    card = (run / "model" / "README.md").read_text()
    assert "conditional on 2 classes" in card and "There was no picture of bee." in card
    state = json.loads((next((run / "checkpoints").glob("step_*")) / "state.json").read_text())
    assert state["classes"] == ["ant", "bee", "fly"] and state["absent"] == [1]


def test_the_example_of_a_card_is_a_class_that_was_learned(tmp_path):
    dataset(["ant", "bee"], [1] * 9, size=(8, 8)).to_parquet(tmp_path / "x.parquet")
    main(["train", str(settings(tmp_path, tmp_path / "x.parquet", held_out=2)), "--run", str(tmp_path / "run")])
    assert "pipeline(['bee'], " in (tmp_path / "run" / "model" / "README.md").read_text()


def test_what_looks_meant_and_is_not_used_is_said_before_a_run(insects, tmp_path, capsys):
    save(insects / "logo.png", picture(3, (8, 8)))
    for name in ("a.zip", "b.csv", "c.npy", "d.svg", "e.mp4", "f.nef"):
        (insects / name).touch()
    main(["train", str(settings(tmp_path, insects, held_out=2)), "--run", str(tmp_path / "run")])
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning   not used: ")]
    assert len(warned) == 6 and warned[-1] == "warning   not used: 2 more, which flowimg data check lists"
    main(["data", "check", str(insects)])
    said = capsys.readouterr().out
    assert "not used" in said and "move logo.png into one of them" in said and "a.zip: unpack it" in said


@pytest.mark.parametrize(("top", "dark"), [(4095, True), (16383, True), (65535, False), (255, True)])
def test_scans_of_few_bits_are_said_to_be_nearly_black(tmp_path, capsys, top, dark):
    from PIL import Image

    rng = np.random.default_rng(0)
    for n in range(6):
        save(tmp_path / f"scans/{n}.png", Image.fromarray(rng.integers(0, top + 1, (8, 8)).astype(np.uint16)))
    main(["data", "check", str(tmp_path / "scans"), "--workers", "1"])
    assert ("warning   6 are nearly black" in capsys.readouterr().out) == dark
    main(["data", "preview", str(tmp_path / "scans"), "--out", str(tmp_path / "p.png"), "--held-out", "1"])
    assert ("pictures are nearly black" in capsys.readouterr().out) == dark


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize(("top", "dark"), [(4095, True), (65535, False)])
def test_scans_of_twelve_bits_in_a_set_of_16_need_their_range(tmp_path, capsys, top, dark, channels):
    import tifffile

    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for n in range(6):
        array = rng.integers(0, top + 1, (8, 8, channels)).astype(np.uint16)
        array[0, 0, 0] = top
        more = {"planarconfig": "contig", "photometric": "minisblack"} if channels > 1 else {}
        if channels == 4:
            array[..., 3] = 65535
            more |= {"photometric": "rgb", "extrasamples": ["unassalpha"]}
        tifffile.imwrite(tmp_path / f"scans/{n}.tif", array.squeeze(), **more)
    kept = "rgba" if channels == 4 else "all"
    words = [str(tmp_path / "scans"), "--depth", "16", "--channels", kept, "--workers", "1"]
    preview = ["--out", str(tmp_path / "p.png"), "--held-out", "1"]

    def said():
        main(["data", "check", *words])
        main(["data", "preview", *words, *preview])
        lines = [line for line in capsys.readouterr().out.splitlines() if "nearly black" in line]
        assert all("give data.range" in line and "0 4095" in line for line in lines)
        return len(lines)

    assert said() == (2 if dark else 0)
    (tmp_path / "p.png").unlink()
    if dark and channels != 4:
        words += ["--range", "0", "4095"]
        assert said() == 0
