"""`flowimg play`: the answers are the run's own, bounds hold, and the page works in a real browser."""

import math
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flowimg.app.asked import class_number, solving, travel
from flowimg.cli import main
from flowimg.errors import PageError
from flowimg.names import one_line
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import open_run
from flowimg.sampling.sampler import noise
from flowimg.settings.flow import LinearPath

CPU = torch.device("cpu")
MOST = 2000  # particles that the page takes at once


@pytest.fixture(scope="module", autouse=True)
def pages():
    """What the two pages answer. Gradio takes seconds to import: only where it is needed."""
    pytest.importorskip("gradio")
    from flowimg.app import images, points

    return SimpleNamespace(images=images, points=points)


@pytest.fixture(scope="module")
def classes(tiny):
    return open_run(str(tiny.classes), "ema", None, CPU)


@pytest.fixture(scope="module")
def points(tiny):
    return open_run(str(tiny.points), "ema", None, CPU)


def pixels(folder):
    return [np.array(Image.open(path), dtype=int) for path in sorted(folder.glob("images/*.png"))]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_picture_of_a_seed_is_the_one_that_sample_draws(tiny, classes, tmp_path, pages):
    how = ["--num-steps", "4", "--solver", "heun", "--guidance", "2", "--label", "7"]
    main(["sample", str(tiny.classes), "--seed", "11", "--count", "1", "--out", str(tmp_path / "s"), *how])
    answer = pages.images.one_picture(classes, 11, 4, "heun", 2.0, "7")
    assert answer.pictures.shape == (len(pages.images.MOMENTS), 8, 8, 3)
    assert abs(answer.pictures[-1, ..., 0].astype(int) - pixels(tmp_path / "s")[0]).max() <= 1
    assert answer.said.startswith("heun in 4 steps, guidance 2: 16 evaluations of the network")
    start = ((noise([11], (1, 8, 8))[0, 0] / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    assert (answer.pictures[0, ..., 0] == start).all()


def test_between_two_seeds_the_ends_are_their_own_pictures(tiny, classes, pages):
    between = pages.images.two_seeds(classes, 3, 9, 5, 3, "euler", 1.0, "2").pictures
    assert len(between) == 5
    for seed, picture in ((3, between[0]), (9, between[-1])):
        alone = pages.images.one_picture(classes, seed, 3, "euler", 1.0, "2").pictures[-1]
        assert abs(picture.astype(int) - alone).max() <= 1
    main(["interpolate", str(tiny.classes), "--seeds", "3", "9", "--frames", "5", "--num-steps", "3", "--label", "2"])
    (folder,) = (tiny.classes / "generated").glob("*between*")
    drawn = [np.array(Image.open(path), dtype=int) for path in sorted(folder.glob("row*.png"))]
    assert abs(between[..., 0].astype(int) - np.stack(drawn)).max() <= 1


def test_particles_flow_where_the_field_carries_them(pages):
    class Turning(torch.nn.Module):
        """dx/dt = 2 pi (-y, x): once round from t = 0 to 1."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))

        def forward(self, x, t, cond=None):
            return 2 * math.pi * x @ self.weight.T

    run = SimpleNamespace(
        field=Turning(), facts=SimpleNamespace(classes=()), folder=SimpleNamespace(path="r"),
        config=SimpleNamespace(train=SimpleNamespace(label_drop=0), path=LinearPath()),
        space=SimpleNamespace(shape=(2,), at_once=10),
    )  # fmt: skip
    answer, said = pages.points.flow_particles(run, {"particles": [[1, 0], [0, -2]]}, 100, "rk4", None, None)
    assert said.startswith("2 particles; rk4 in 100 steps: 400 evaluations")
    paths = np.array(answer["paths"]).reshape(2, len(answer["times"]), 2)
    t = np.array(answer["times"])
    assert np.abs(paths[0] - np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], 1)).max() < 0.01
    assert np.abs(paths[1] - 2 * np.stack([np.sin(2 * np.pi * t), -np.cos(2 * np.pi * t)], 1)).max() < 0.01
    coarse, _ = pages.points.flow_particles(run, {"particles": [[1, 0]]}, 2, "euler", None, None)
    assert coarse["paths"][0][-2:] == pytest.approx([1 - math.pi**2, 2 * math.pi], abs=0.01)  # two tangents, no more


def test_gaussian_particles_are_the_noise_of_their_seeds(points, pages):
    got = pages.points.gaussian(5, 42)["particles"]
    assert torch.allclose(torch.tensor(got), noise(range(42, 47), (2,)))


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": -1}, "seed: give a whole number"), ({"seed": 1.5}, "seed"), ({"seed": None}, "seed"),
        ({"seed": 2**70}, "seed"), ({"seed": 2**32}, "from 0 to 4294967295, not"),
        ({"seed": "1"}, "seed"), ({"seed": math.nan}, "seed"), ({"seed": True}, "seed"),
        ({"steps": 0}, "steps: give a whole number from 1 to 200, not 0"), ({"steps": 10**9}, "steps"),
        ({"solver": "__class__"}, "the solver is one of euler"), ({"solver": None}, "the solver"),
        ({"guidance": 1e9}, "guidance is a number from 0 to 10"), ({"guidance": math.nan}, "guidance"),
        ({"label": "cat"}, "there is no class cat"), ({"label": "x" * 10_000}, "there is no class"),
        ({"label": "11"}, "there is no class 11: there are 1, 0, 2, 3"), ({"label": 10}, "there is no class 10"),
        ({"label": True}, "there is no class True"), ({"label": ["3"]}, "there is no class"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused_in_a_sentence(change, said, classes, pages):
    asked = {"seed": 0, "steps": 2, "solver": "euler", "guidance": 1.0, "label": "3"} | change
    with pytest.raises(PageError, match=said) as told:
        pages.images.one_picture(classes, *asked.values())
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    "particles",
    [
        None, [], {}, [[0, 0]] * (MOST + 1), [[0, math.nan]], [[0, math.inf]], [[0, 1e30]], [[1, 2, 3]], [["0", 0]],
        [0, 1], [[True, 0]], "many",
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_particles_that_are_none_are_refused(particles, points, pages):
    for plane in ({"particles": particles}, particles):
        with pytest.raises(PageError):
            pages.points.flow_particles(points, plane, 2, "euler", None, None)


def test_other_bounds(points, classes, pages):
    assert len(pages.points.gaussian(1, 2**32 - 1)["particles"]) == 1  # the last seed of a sample
    for count, seed in ((0, 0), (MOST + 1, 0), (5, -1), (1, 2**32), (2, 2**32 - 1)):
        with pytest.raises(PageError):
            pages.points.gaussian(count, seed)
    with pytest.raises(PageError, match="no classes"):
        pages.points.flow_particles(points, {"particles": [[0, 0]]}, 2, "euler", 2.0, None)
    with pytest.raises(PageError, match="two that differ"):
        pages.images.two_seeds(classes, 4, 4, 5, 2, "euler", 1.0, "3")
    with pytest.raises(PageError, match="second seed"):
        pages.images.two_seeds(classes, 5, 5 + 2**32, 5, 2, "euler", 1.0, "3")
    with pytest.raises(PageError, match="pictures"):
        pages.images.two_seeds(classes, 4, 5, 500, 2, "euler", 1.0, "3")


def test_numbers_that_are_not_finite_are_told(points):
    broken = points.__class__(**{**vars(points), "field": torch.nn.Linear(2, 2)})
    broken.field.forward = lambda x, t, cond=None: x / 0
    how = solving(points, 2, "euler", None)
    with pytest.raises(PageError, match="not finite"):
        travel(broken, how, torch.ones(1, 2), None, [0.0, 1.0])


def test_without_gradio_it_says_how_to_get_it(tiny, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, said = refused("play", tiny.points)
    assert status == 4 and "pip install -e '.[play]'" in said


def test_a_port_that_is_taken_is_told(tiny, refused):
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        status, said = refused("play", tiny.points, "--port", door.getsockname()[1])
    assert status == 4 and str(door) and "cannot be used" in said and "--port" in said


@pytest.mark.parametrize("name", ["my_run *x* [a](b)", "$$x$$ `c`", "<img src=x onerror=y>", "a\nb", "a\udce9"])
def test_the_heading_is_the_name_of_the_run_as_it_is(name, classes, tmp_path):
    import html

    from flowimg.app.controls import heading

    run = replace(classes, folder=RunFolder(tmp_path / name))
    title, head = heading(run, "text")
    first, rest = head.value.split("\n")
    assert title == html.unescape(first.removeprefix("# ")) == one_line(name) and rest == "text"
    assert re.fullmatch(r"# ([^\W_]|[ .,'+-]|&#\d+;)*", first) and head.latex_delimiters == []


def test_a_refusal_is_words(classes):
    import gradio

    from flowimg.app.controls import kindly

    with pytest.raises(gradio.Error, match="no class &lt;b&gt;x"):
        kindly(class_number, classes, "<b>x")


# --- in a browser ----------------------------------------------------------------------------------------------------


def browser():
    return next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


@pytest.fixture
def served(request):
    """Serve a run, as a person does; Ctrl-C ends it."""
    processes = []

    def served(run):
        command = [sys.executable, "-m", "flowimg", "play", str(run), "--port", "0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # tests started in the background (`make slow &`) ignore SIGINT, and what they start would too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        processes.append(process)
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return found[0]
        raise AssertionError(said)

    yield served
    for process in processes:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=600)
        assert process.returncode == 130 and "Traceback" not in rest, rest


@pytest.fixture
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield opened
        opened.close()


def watched(page):
    """Where a page's requests go, and what is wrong in its console, as they come."""
    hosts, wrong = set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else ""))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    return hosts, wrong


def picture(page, name):
    """The source of a picture, once it is there."""
    page.wait_for_selector(f"#{name} img")
    return page.get_attribute(f"#{name} img", "src")


def changed(page, name, before):
    page.wait_for_function(
        "([name, before]) => { const i = document.querySelector(`#${name} img`); return i && i.src !== before }",
        arg=[name, before], timeout=600_000,
    )  # fmt: skip
    return page.get_attribute(f"#{name} img", "src")


def fill(page, name, value):
    box = page.locator(f"#{name} input[type=number]").first
    box.fill(str(value))
    box.blur()


def choose(page, name, option):
    box = page.locator(f"#{name} input")
    box.click()
    page.get_by_role("option", name=option, exact=True).click()
    box.blur()  # as when one presses somewhere else
    page.wait_for_selector("[role=option]", state="detached")
    assert box.input_value() == option


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
def test_the_page_of_pictures_in_a_browser(tiny, served, chromium):
    address = served(tiny.classes)
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    hosts, wrong = watched(page)
    page.goto(address)
    seen = picture(page, "picture")  # there is one at once
    page.wait_for_selector("#said :text('evaluations')")
    for control, act in (
        ("seed", lambda: fill(page, "seed", 5)),
        ("class", lambda: choose(page, "class", "8")),
        ("steps", lambda: fill(page, "steps", 7)),
        ("solver", lambda: choose(page, "solver", "heun")),
        ("guidance", lambda: fill(page, "guidance", 3)),
    ):
        act()
        page.click("#draw")
        assert changed(page, "picture", seen) != seen, control
        seen = page.get_attribute("#picture img", "src")
    page.wait_for_selector("#said :text('heun in 7 steps, guidance 3: 28 evaluations')")
    fill(page, "moment", 0.4)  # on the way: nothing is computed for it
    seen = changed(page, "picture", seen)
    page.click("#dice")
    changed(page, "picture", seen)
    assert page.locator("#seed input").input_value() != "5"

    fill(page, "seed", -3)  # refused kindly, and the page goes on
    page.click("#draw")
    page.wait_for_selector("text=give a whole number from 0")
    assert "Traceback" not in page.content()
    before = page.get_attribute("#picture img", "src")
    fill(page, "seed", 77)
    page.click("#draw")
    changed(page, "picture", before)

    page.get_by_role("tab", name="Between two seeds").click()
    for name, value in (("first", 3), ("second", 4), ("frames", 5), ("steps_2", 3), ("guidance_2", 2)):
        fill(page, name, value)
    choose(page, "class_2", "4")
    choose(page, "solver_2", "midpoint")
    page.click("#draw_2")
    frame = picture(page, "frame")
    fill(page, "place", 1)
    assert changed(page, "frame", frame) != frame
    assert page.locator("#row img").count() == 1
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert hosts <= {address.split("/")[2], ""} and wrong == []


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
def test_the_page_of_points_in_a_browser(tmp_path, served, chromium):
    settings = ["--train.steps", "300", "--grid.count", "50", "--grid.num-steps", "2", "--figures", "false"]
    main(["train", "configs/moons.yaml", "--run", str(tmp_path / "moons"), *settings])
    address = served(tmp_path / "moons")
    page = chromium.new_page(viewport={"width": 390, "height": 900}, has_touch=True)
    hosts, wrong = watched(page)
    page.goto(address)
    data = "(document.querySelector('[data-count]')?.dataset ?? {})"

    def at():
        return float(page.evaluate(f"{data}.at"))

    def drawn():
        return page.evaluate("document.querySelector('#plane canvas').toDataURL()")

    page.wait_for_function(f"{data}.count == 500")
    page.wait_for_function(f"{data}.at > 0.1")  # they flow by themselves
    first, then = drawn(), at()
    page.wait_for_function(f"Math.abs({data}.at - {then}) > 0.2")
    assert drawn() != first
    page.click("#plane button")  # pause
    still = at()
    page.wait_for_timeout(300)
    assert at() == still
    page.locator("#plane input[type=range]").fill("0.5")
    page.wait_for_function(f"{data}.at == 0.5")

    page.click("#clear")
    page.wait_for_function(f"{data}.count == 0")
    page.click("#flow")  # refused kindly: there is nothing to flow
    page.wait_for_selector("text=there are no particles")
    box = page.locator("#plane canvas").bounding_box()
    page.touchscreen.tap(box["x"] + 50, box["y"] + 60)
    page.wait_for_function(f"{data}.count == 1")
    page.mouse.move(box["x"] + 100, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 100, steps=12)
    page.mouse.up()
    count = int(page.evaluate(f"{data}.count"))
    assert count > 5  # a stroke
    for name, value in (("steps", 9), ("guidance", 2)):
        fill(page, name, value)
    choose(page, "solver", "heun")
    choose(page, "class", "1")
    page.click("#flow")
    page.wait_for_selector(f"#said :text('{count} particles; heun in 9 steps, guidance 2: 36 evaluations')")
    page.wait_for_function(f"{data}.at > 0.05")
    fill(page, "count", 40)
    fill(page, "seed", 3)
    page.click("#gaussian")
    page.wait_for_function(f"{data}.count == 40")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait_for_function("(c => c.width === c.height && c.width > 200)(document.querySelector('#plane canvas'))")
    assert hosts <= {address.split("/")[2], ""} and wrong == []


@pytest.mark.slow
def test_ten_at_once_each_get_their_own(tiny, classes, served, pages):
    client = pytest.importorskip("gradio_client")
    address = served(tiny.classes)
    visitors = [client.Client(address, verbose=False) for _ in range(10)]

    def ask(number):
        asked = (1.0, number, 3 + number, "euler", 1.0, str(number))
        return visitors[number].predict(*asked, api_name="/draw")

    with ThreadPoolExecutor(10) as together:
        answers = list(together.map(ask, range(10)))
    for number, (shown, _, said) in enumerate(answers):
        assert f"in {3 + number} steps" in said
        wanted = pages.images.one_picture(classes, number, 3 + number, "euler", 1.0, str(number)).pictures[-1]
        got = np.array(Image.open(shown).convert("RGB"))
        factor = got.shape[0] // 8
        assert abs(got[::factor, ::factor].astype(int) - wanted).max() <= 1
    with pytest.raises(Exception, match="give a whole number"):
        visitors[0].predict(1.0, -5, 3, "euler", 1.0, "1", api_name="/draw")
    assert ask(3)[2]  # alive
