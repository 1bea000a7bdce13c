"""Pages: whole in themselves, and nothing that a run's names say becomes part of them."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flowimg.figures.report import STILL_BYTES, RunSummary, Scores, compare_page, report_page, shot

EVIL = "<script>alert('x')</script><img src=http://example.com/x>"


@pytest.fixture
def told(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    picture = shot(tmp_path / "a.png", EVIL, EVIL, "pictures")
    return RunSummary(
        name=EVIL, evaluate="flowimg evaluate runs/a", story=f"story {EVIL}", state="trained", running=False,
        written="now", pictures=[picture], curves=[picture._replace(title="curve")],
        evaluations=[Scores("how made", [("off", "3 %")])],
        commands=[("Draw", "flowimg sample runs/a")], changed=[("seed", "1", "0")], settings=f"seed: {EVIL}",
        environment=[("torch", "2")],
    )  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("several", [False, True])
def test_names_stay_words(told, several):
    page = (
        compare_page([told, told], told.curves[0], [("seed", [EVIL, "1"])], "now")
        if several
        else report_page(told, None)
    )
    tags = Tags(page).tags
    assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "link") and tag != "link"]
    sources = [attrs[key] for _, attrs in tags for key in ("src", "href") if key in attrs]
    assert sources and all(source.startswith("data:") for source in sources)
    assert "default-src 'none'" in page
    assert "http://example.com" in page  # said, as words


def test_everything_that_is_told_is_there(told):
    page = report_page(told, None)
    for words in ("how made", "3 %", "flowimg sample runs/a", "<td>1</td>", "curve", "torch", "trained"):
        assert words in page
    assert 'http-equiv="refresh"' not in page
    assert re.search(r'http-equiv="refresh" content="20"', report_page(told._replace(running=True), 20))


def test_a_picture_is_packed_as_it_is_unless_it_is_heavy(tmp_path):
    Image.new("RGB", (300, 150), "blue").save(tmp_path / "light.png", dpi=(150, 150))
    light = shot(tmp_path / "light.png", "t", "c", "drawing")
    assert base64.b64decode(light.src.split(",")[1]) == (tmp_path / "light.png").read_bytes()
    assert (light.width, light.height) == (192, 96)  # as large as on paper
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1500, 2400, 3), dtype=np.uint8)).save(tmp_path / "heavy.png")
    assert (tmp_path / "heavy.png").stat().st_size > 10 * STILL_BYTES
    heavy = shot(tmp_path / "heavy.png", "t", "c", "pictures")
    packed = Image.open(io.BytesIO(base64.b64decode(heavy.src.split(",")[1])))
    assert packed.format == "WEBP" and packed.size == (1600, 1000) and heavy.wide


def test_an_animation_stays_one(tmp_path):
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    packed = shot(tmp_path / "a.webp", "t", "c", "drawing")
    assert packed.src.startswith("data:image/webp")
    assert Image.open(io.BytesIO(base64.b64decode(packed.src.split(",")[1]))).n_frames == 2
