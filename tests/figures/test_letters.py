"""Names in figures: no boxes, no mathematics, no line breaks, none left out, and nothing said on the terminal."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry
from PIL import Image

from flowimg.figures import letters
from flowimg.figures.curves import compare_figure
from flowimg.figures.letters import USUAL, drawable
from flowimg.figures.pictures import picture_table
from flowimg.figures.quality import guidance_figure, nfe_figure

RECORD = {"step": 1, "samples": 1, "held_out_loss_ema": 1.0, "grad_norm": 1.0, "samples_per_second": 1.0}


@pytest.fixture(autouse=True)
def only_fonts_of_the_test(monkeypatch):
    """No font of this machine, which may have any letters."""
    monkeypatch.setattr(letters, "fontManager", SimpleNamespace(ttflist=[]))
    for cached in (letters.drawable, letters._others):
        cached.cache_clear()
    yield
    for cached in (letters.drawable, letters._others):
        cached.cache_clear()


def font(path, text):
    """A font in which these letters are full squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):X}" for letter in text)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(text, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"), ("кот", "кот"), ("café", "café"), ("$x_1$", "$x_1$"), ("_x", "_x"), ("", ""),
        ("猫", r"\u732b"), ("猫 cat", r"\u732b cat"), ("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"),
        ("🐈", r"\U0001f408"), ("caf\udce9", r"caf\xe9"), ("ไทย", r"\u0e44\u0e17\u0e22"),
    ],
)  # fmt: skip
def test_a_letter_that_no_font_has_is_escaped(name, shown):
    assert drawable(name) == (shown, USUAL)


def test_a_font_of_the_machine_that_has_all_letters_is_taken(tmp_path, monkeypatch):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [
        ("Emoji", font(tmp_path / "emoji.ttf", "猫犬")), ("Broken", str(tmp_path / "broken.ttf")),
        ("Half", font(tmp_path / "half.ttf", "猫")), ("Whole", font(tmp_path / "whole.ttf", "猫犬")),
    ]  # fmt: skip
    monkeypatch.setattr(letters.fontManager, "ttflist", [FontEntry(fname=file, name=name) for name, file in files])
    assert drawable("猫") == ("猫", files[2][1])
    assert drawable("犬猫") == ("犬猫", files[3][1])
    assert drawable("cat") == ("cat", USUAL)
    assert drawable("猫 cat") == (r"\u732b cat", USUAL)
    picture_table(torch.full((1, 1, 1, 48, 48), 255, dtype=torch.uint8), ["猫猫"], ["0"], tmp_path / "t.png", "t")
    sheet = np.array(Image.open(tmp_path / "t.png").convert("L"))
    assert (sheet[60:, :45] < 100).sum() > 200  # two squares of 15 pixels a side


@pytest.mark.parametrize("names", [["a\nb", "猫"], ["\x1b[31m", "it's"], ["$x$", "🐈\u200d"]])
def test_a_table_of_pictures_has_its_rows_where_they_were(names, tmp_path):
    pixels = torch.zeros(2, 2, 3, 48, 48, dtype=torch.uint8)
    for file, rows in (("names", names), ("plain", [drawable(name)[0] for name in names])):
        picture_table(pixels, rows, ["0", "1"], tmp_path / f"{file}.png", "a table")
    assert (tmp_path / "names.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


@pytest.fixture
def drawn(monkeypatch):
    """The texts of every figure that is written, and nothing is warned of."""
    texts = []
    real = Figure.savefig

    def savefig(self, *args, **more):
        real(self, *args, **more)
        texts.extend(text for text in self.findobj(lambda part: hasattr(part, "get_parse_math")))

    monkeypatch.setattr(Figure, "savefig", savefig)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield texts


ODD = ["_hidden", "$x_1$", "100 % of $", "猫", "a\nb", "$\\broken{$"]


def test_every_run_of_a_comparison_is_in_the_legend_as_it_is_called(drawn, tmp_path):
    compare_figure({name: [RECORD] for name in ODD}, tmp_path / "a.png")
    shown = [text for text in drawn if text.get_text() in {drawable(name)[0] for name in ODD}]
    assert len(shown) == len(ODD) and not any(text.get_parse_math() for text in shown)


@pytest.mark.parametrize("name", ["FD in folder $x_1$", "FD in folder 猫", "FD in _a\nb $"])
def test_the_network_of_a_distance_is_called_as_it_is(name, drawn, tmp_path):
    nfe_figure({("euler", "uniform"): [(1, 2.0), (2, 1.0)]}, 1.0, name, tmp_path / "a.png")
    rows = [{"scale": s, "agreement": 0.5, "coverage": 0.5, "precision": 0.5, "score": 1.0} for s in (1.0, 2.0)]
    guidance_figure(rows, 0.9, name, tmp_path / "b.png")
    shown = [text for text in drawn if text.get_text() == drawable(name)[0]]
    assert len(shown) == 2 and not any(text.get_parse_math() for text in shown)
