"""`flowimg report`: one file that tells the whole run, opened as a person opens it."""

import json
import os
import re
import shutil

import pytest
from tiny import write_settings

from flowimg.cli import main
from flowimg.jobs import report
from flowimg.jobs.figures import irreducible, points
from flowimg.jobs.train import callbacks


@pytest.fixture
def run(tiny, once, tmp_path, monkeypatch):
    """A copy of the run on points, evaluated twice."""

    def evaluate(folder):
        shutil.copytree(tiny.points, folder / "points")
        for count in ("200", "300"):
            main(["evaluate", str(folder / "points"), "--count", count, "--num-steps", "2"])

    for name, value in {"CROWD": 500, "FRAMES": 4, "PARTICLES": 50}.items():
        monkeypatch.setattr(points, name, value)
    for name, value in {"DRAWS": 128, "DATA": 32_768}.items():
        monkeypatch.setattr(irreducible, name, value)
    return shutil.copytree(once("evaluated", evaluate) / "points", tmp_path / "points")


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>|data:image[^\"]*", " ", page))


def test_a_report_tells_the_whole_run(run, capsys):
    main(["figures", str(run), "--num-steps", "2"])
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    assert str(run / "report.html") in capsys.readouterr().out
    told = words(page)
    for said in (
        "An MLP with 59,522 parameters, trained on checkerboard", "2 steps of 16 (32 samples)", "trained: step 2 of 2",
        "200 samples of seeds 0 to 199", "300 samples of seeds 0 to 299", "euler, 2 steps, 2 evaluations",
        f"flowimg train {run}", f"flowimg sample {run}", f"flowimg evaluate {run}",
        "field.x_frequencies 16 0", "optim.lr 0.005 0.001", "torch 2.",
    ):  # fmt: skip
        assert said in told, said
    assert "optim.betas" not in told.split("all settings")[0].split("differ from the defaults")[1]
    kinds = re.findall(r'src="data:image/(\w+);', page)
    assert kinds == ["png", "webp", "png", "png", "png", "png", "png"]  # the grid, the flow, ..., the curves
    scores = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert len(scores) == 2 and all(f"off {score['off']:.4g}" in told for score in scores)
    assert len(page) < 10e6 and 'http-equiv="refresh"' not in page


def test_a_run_says_that_it_goes_on_and_the_page_reloads(tmp_path, monkeypatch):
    pages = []
    real = callbacks.write_report

    def kept(folder, running):
        real(folder, running)
        pages.append(folder.report.read_text())

    monkeypatch.setattr(callbacks, "write_report", kept)
    monkeypatch.setattr(callbacks, "REPORT_SECONDS", 0.0)
    settings = write_settings(tmp_path / "a.yaml", figures=True, train={"steps": 4})
    main(["train", str(settings), "--run", str(tmp_path / "run")])
    assert len(pages) == 2  # at steps 1 and 2; the last is written at the end
    assert all('http-equiv="refresh"' in page and "training: step" in page for page in pages)
    assert not any(word in pages[0] for word in ("Samples", "Training loss"))
    assert all(word in pages[1] for word in ("Samples", "Training loss"))
    last = (tmp_path / "run" / "report.html").read_text()
    assert "trained: step 4 of 4" in last and 'http-equiv="refresh"' not in last and "Class by seed" in last


def test_a_report_is_not_rewritten_all_the_time(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(callbacks, "REPORT_SECONDS", 1e9)  # however slow the machine
    monkeypatch.setattr(callbacks, "write_report", lambda folder, running: asked.append(folder))
    settings = write_settings(tmp_path / "a.yaml", figures=True, train={"steps": 4})
    main(["train", str(settings), "--run", str(tmp_path / "run"), "--train.stop-at", "3"])
    assert len(asked) == 1


def test_runs_side_by_side(run, tiny, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other" / "points")
    settings = (other / "config.yaml").read_text().replace("lr: 0.005", "lr: 0.007")
    (other / "config.yaml").write_text(settings)
    main(["report", str(run), str(other), "--out", str(tmp_path / "both.html")])
    page = (tmp_path / "both.html").read_text()
    told = words(page)
    assert "data:image/webp" not in page  # animations of many runs are too heavy to send
    assert f"{run} and {other}" in told  # both are called points: their paths tell them apart
    assert re.search(r"optim\.lr 0\.005 0\.007", told) and "optim.ema" not in told
    assert told.count("300 samples of seeds") == 2
    main(["report", str(run), str(other)])
    assert (run / "comparison.html").exists() and not (other / "comparison.html").exists()


def test_nothing_of_the_users_is_overwritten(run, tmp_path, refused):
    (tmp_path / "mine.html").write_text("mine")
    status, said = refused("report", run, "--out", tmp_path / "mine.html")
    assert status == 2 and "not overwritten" in said and (tmp_path / "mine.html").read_text() == "mine"
    status, said = refused("report", run, tmp_path / "nowhere")
    assert status == 2 and "nowhere holds no run" in said


def test_a_run_of_which_nothing_is_known_has_a_page_too(run, tmp_path):
    for file in ("environment.json", "metrics.jsonl", "evaluations.jsonl"):
        (run / file).unlink()
    shutil.rmtree(run / "samples")
    main(["report", str(run)])
    assert "None yet: flowimg evaluate" in words((run / "report.html").read_text())


def test_half_a_line_and_odd_values_in_evaluations_are_no_failure(run):
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 2, "off": null, "mass": [1, null], "seeds": 3}\n{"step": 2, "of')
    main(["report", str(run)])
    assert words((run / "report.html").read_text()).count("off ") >= 3


def test_diffusers_lines_of_a_report_are_those_that_load_the_model(tiny):
    told = [report.summarise(report.find_run(str(getattr(tiny, name)))) for name in ("plain", "classes", "points")]
    code = [dict(run.commands).get("Load it in Python") for run in told]
    assert code[0].startswith("from diffusers import DiffusionPipeline")
    assert code[1].startswith("from flowimg.sampling.pipeline import LabelPipeline")
    assert code[2] is None


def browser():
    return next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


def listen(page):
    """The addresses a page asks for, and what its console says, as they come."""
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    return asked, said


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
@pytest.mark.parametrize("name", ["points", "classes"])
def test_a_report_opens_from_disk_with_the_network_off(name, run, tiny, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    where = run if name == "points" else shutil.copytree(tiny.classes, tmp_path / "classes")
    main(["figures", str(where), "--num-steps", "2"])
    main(["report", str(where)])
    assert os.path.getsize(where / "report.html") < 10e6
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                context = chromium.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
                )
                page = context.new_page()
                asked, said = listen(page)
                page.goto((where / "report.html").as_uri())
                assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 50)")
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                ground, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
                dark = sum(map(int, re.findall(r"\d+", ground)[:3])) < sum(map(int, re.findall(r"\d+", ink)[:3]))
                assert dark == (scheme == "dark")
                turned = page.evaluate(
                    "[...document.querySelectorAll('.drawing img')].map(i => getComputedStyle(i).filter)"
                )
                assert turned and all(("invert" in filter) == dark for filter in turned)
                assert {url.split(":")[0] for url in asked} <= {"file", "data"} and said == []
                context.close()
        chromium.close()
