"""The tab of `flowimg play` for pictures that a visitor gives: the answers are those of the verbs, bounds hold."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flowimg.cli import main
from flowimg.errors import PageError
from flowimg.runs.opening import open_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def page():
    pytest.importorskip("gradio")
    from flowimg.app import given, images, page

    return SimpleNamespace(given=given, images=images, page=page)


@pytest.fixture(scope="module")
def classes(tiny):
    return open_run(str(tiny.classes), "ema", None, CPU)


LEVELS = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
BRUSHED = np.zeros((8, 8), bool)
BRUSHED[5:, 2:] = True
HOW = [6, "heun", 1.0, "7"]
"""Steps, solver, guidance and class."""


def editor(scale=1, brushed=BRUSHED):
    """What the editor sends: an enlarged picture, and a layer that is opaque where it was brushed."""
    large = np.kron(np.dstack([LEVELS] * 3), np.ones((scale, scale, 1), np.uint8))
    layer = np.zeros((*large.shape[:2], 4), np.uint8)
    layer[np.kron(brushed, np.ones((scale, scale), bool))] = (213, 94, 0, 255)
    return {"background": large, "layers": [layer], "composite": large}


def by_verb(words, capsys):
    capsys.readouterr()
    main([*map(str, words), "--json", "--num-steps", "6", "--solver", "heun", "--label", "7", "--precision", "fp32"])
    found = json.loads(capsys.readouterr().out)
    return np.stack([np.array(Image.open(file), dtype=int) for file in found["files"]])


@pytest.mark.parametrize("scale", [1, 40])
def test_a_brushed_part_is_drawn_as_the_verb_draws_it(tiny, classes, page, tmp_path, capsys, scale):
    Image.fromarray(LEVELS).save(tmp_path / "p.png")
    Image.fromarray(BRUSHED).save(tmp_path / "m.png")
    words = ["inpaint", tiny.classes, tmp_path / "p.png", "--mask", tmp_path / "m.png", "--seed", 5]
    answer = page.given.brushed(classes, editor(scale), 5, *HOW)
    ours = answer.pictures[..., 0].astype(int)
    assert abs(ours - by_verb(words, capsys)).max() <= 1
    assert (ours[:, ~BRUSHED] == LEVELS[~BRUSHED]).all() and len(np.unique(ours, axis=0)) == 4
    # six steps, of which all but the first are made ten times
    assert answer.said.startswith("heun in 6 steps: 102 evaluations")


def test_a_picture_of_another_size_with_a_transparent_part_is_read_as_the_verb_reads_it(
    tiny, classes, page, tmp_path, capsys
):
    picture = np.random.default_rng(1).integers(0, 256, (37, 50, 4), dtype=np.uint8)
    picture[..., 3] = 255
    picture[20:, :30, 3] = 60
    Image.fromarray(picture).save(tmp_path / "p.png")
    sent = {"background": picture, "layers": [np.zeros_like(picture)]}
    ours = page.given.brushed(classes, sent, 5, *HOW).pictures[..., 0].astype(int)
    assert abs(ours - by_verb(["inpaint", tiny.classes, tmp_path / "p.png", "--seed", 5], capsys)).max() <= 1
    like = page.given.like(classes, sent, 0, 5, *HOW).pictures[..., 0].astype(int)
    verb = by_verb(["vary", tiny.classes, tmp_path / "p.png", "--strength", 0, "--seed", 5], capsys)
    assert (like == verb).all() and (like != ours).any()


def test_pictures_like_one_are_those_of_the_verb(tiny, classes, page, tmp_path, capsys):
    Image.fromarray(LEVELS).save(tmp_path / "p.png")
    ours = page.given.like(classes, editor(40), 0.5, 3, *HOW).pictures[..., 0].astype(int)
    words = ["vary", tiny.classes, tmp_path / "p.png", "--strength", 0.5, "--seed", 3]
    assert abs(ours - by_verb(words, capsys)).max() <= 1
    same = page.given.like(classes, editor(), 0, 3, *HOW).pictures
    assert (same[..., 0] == LEVELS).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edited": None}, "there is no picture"), ({"edited": {"background": None}}, "there is no picture"),
        ({"edited": editor(brushed=np.zeros((8, 8), bool))}, "nothing is brushed"), ({"seed": 2**32 - 1}, "seed"),
        ({"solver": "dopri5"}, "dopri5 cannot draw a part"), ({"solver": "ab2"}, "ab2 cannot draw a part"),
        ({"steps": 1}, "give 2 or more for a part"),
        ({"steps": 1, "solver": "sde"}, "sde draws its noise between steps"), ({"away": 2.0}, "this page has no guide"),
        ({"away": -1.0}, "autoguidance is a number"), ({"label": "x"}, "there is no class x"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_drawn_is_a_sentence(classes, page, change, said):
    usual = {"edited": editor(), "seed": 0, "steps": 6, "solver": "euler", "guidance": 1.0, "label": "3", "away": 1.0}
    with pytest.raises(PageError, match=said):
        page.given.brushed(classes, *(usual | change).values())


@pytest.mark.parametrize("strength", [-0.1, 1.1, None, "1", float("nan"), True])
def test_other_strengths_are_refused(classes, page, strength):
    with pytest.raises(PageError, match="strength is a number"):
        page.given.like(classes, editor(), strength, 0, *HOW)


@pytest.mark.parametrize("solver", ["sde", "sde2", "churn"])
def test_noise_on_the_way_is_that_of_the_seed(tiny, classes, page, tmp_path, solver):
    how = ["--num-steps", "4", "--solver", solver, "--label", "7", "--precision", "fp32"]
    main(["sample", str(tiny.classes), "--seed", "11", "--count", "1", "--out", str(tmp_path / "s"), *how])
    (file,) = (tmp_path / "s" / "images").glob("*.png")
    ours = page.images.one_picture(classes, 11, 4, solver, 1.0, "7").pictures[-1, ..., 0].astype(int)
    assert abs(ours - np.array(Image.open(file), dtype=int)).max() <= 1


def test_with_a_guide_the_page_goes_away_from_it(tiny, classes, page):
    guided = replace(classes, guide=open_run(str(tiny.classes), "raw", None, CPU))
    plain, away = (page.images.one_picture(guided, 1, 4, "euler", 1.0, "7", scale) for scale in (1.0, 3.0))
    assert plain.said.startswith("euler in 4 steps: 4 evaluations")
    assert away.said.startswith("euler in 4 steps, autoguidance 3: 8 evaluations")
    assert (plain.pictures[0] == away.pictures[0]).all() and (plain.pictures[-1] != away.pictures[-1]).any()


def test_the_whole_page_can_be_put_together(classes, tiny, page):
    for run in (classes, replace(classes, guide=classes)):
        names = {part.get("props", {}).get("elem_id") for part in page.page.build_page(run).config["components"]}
        assert {"editor", "paint", "vary", "strength", "away", "away_3"} <= names
