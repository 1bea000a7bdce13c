"""`python examples/frequency/run.py`: equal compute means equal, and what it tells is what was measured."""

import json
from functools import partial

import pytest
import torch
from frequency import run as experiment
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from flowimg.build.data import build_toy
from flowimg.build.facts import DataFacts
from flowimg.build.field import build_field
from flowimg.build.sampler import build_sampler
from flowimg.cli import main
from flowimg.evaluation.points import score_points
from flowimg.runs.opening import open_run
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import load

RECIPES, Experiment, flops, plan = experiment.RECIPES, experiment.Experiment, experiment.flops, experiment.plan

pytestmark = pytest.mark.usefixtures("sketches")

COUNT = 1000


@pytest.fixture
def few(monkeypatch):
    """Two recipes and a few samples are enough to see how it goes."""
    monkeypatch.setattr(experiment, "RECIPES", (RECIPES[0], RECIPES[-1]))
    monkeypatch.setattr(experiment, "Evaluate", partial(Evaluate, count=COUNT))
    monkeypatch.setattr(experiment, "POINTS", 500)


@pytest.mark.slow
def test_it_trains_measures_and_tells(few, tmp_path, capsys, monkeypatch):
    run = tmp_path / "frequency"
    experiment.main(["--run", str(run), "--cells", "2", "4", "--steps", "2", "--json"])
    out, err = capsys.readouterr()
    assert "4 runs into" in err and "run  4 of 4" in err and "training  steps" not in err
    rows = json.loads((run / "frequency.json").read_text())
    assert json.loads(out)["runs"] == rows
    assert [(row["recipe"], row["cells"]) for row in rows] == [
        (recipe.name, cells) for recipe in (RECIPES[0], RECIPES[-1]) for cells in (2, 4)
    ]
    for row in rows:  # measured again, apart from the verb that evaluates
        trained = open_run(row["run"], "ema", None, torch.device("cpu"))
        toy = build_toy(trained.config)
        how = trained.config.grid.model_copy(update={"num_steps": 100})
        samples = build_sampler(trained.field, trained.config, trained.space, how).draw(range(COUNT)).x_1
        scores = score_points(samples, samples, toy.part(samples), toy.parts)
        assert row["off"] == pytest.approx(scores.off, abs=1e-3) and row["nfe"] == 100
        assert toy.cells == row["cells"]
    table = (run / "frequency.md").read_text()
    assert f"{100 * rows[0]['off']:.1f} %" in table and RECIPES[-1].name in table
    for name in ("frequency.png", "boards.png"):
        assert Image.open(run / name).width > 500

    monkeypatch.setattr("flowimg.jobs.train.run.run_loop", None)  # what is trained is not trained again
    monkeypatch.setattr(experiment, "evaluate", None)
    experiment.main(["--run", str(run), "--cells", "2", "4", "--steps", "2"])
    assert json.loads((run / "frequency.json").read_text()) == rows


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_equal_compute_is_equal(recipe, tmp_path):
    settings = Experiment(run=str(tmp_path / "r"), steps=8000)
    plain = plan(settings, RECIPES[0], 8)
    config = plan(settings, recipe, 8)
    spent = flops(config, config.train.steps * 512)
    assert spent == pytest.approx(recipe.compute * flops(plain, 8000 * 512), rel=1e-3)
    assert plain.train.steps == 8000 and config.data.cells == 8 and not config.figures
    assert config.run != plan(settings, recipe, 4).run


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_flops_are_those_that_torch_counts(recipe):
    config = plan(Experiment(), recipe, 4)
    field = build_field(config, DataFacts((2,), ()))
    x = torch.randn(32, 2, requires_grad=True)  # as if something lay before the first layer
    with FlopCounterMode(display=False) as counter:
        field(x, torch.rand(32)).square().sum().backward()
    assert flops(config, 32) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_settings_reach_the_experiment(monkeypatch):
    seen = []
    monkeypatch.setattr(experiment, "experiment", seen.append)
    experiment.main(["--cells", "2", "4", "--steps=3", "--plain-only", "true"])
    assert seen == [Experiment(cells=(2, 4), steps=3, plain_only=True)]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cells", "1"], "command line: cells[0] is 1, but should be greater than or equal to 2"),
        (["--steps", "0"], "command line: steps is 0, but should be greater than or equal to 1"),
        (["--steps"], "--steps needs a value"),
        (["--cels", "2"], "unknown setting --cels: did you mean cells?"),
        (["frequency"], "frequency is not a setting: settings are given as --key value"),
    ],
)
def test_wrong_settings_are_one_sentence(args, said, capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.main(args)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"frequency: {said}\n"


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.main(["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.replace("│", " ").split()
    assert {"--run", "--cells", "--steps", "--plain-only", "--seed"} <= set(words)


def test_the_runs_of_the_plain_network_alone_are_runs_like_others(few, tmp_path):
    run = tmp_path / "f"
    experiment.main(["--run", str(run), "--cells", "2", "4", "--steps", "1", "--plain-only", "true"])
    rows = json.loads((run / "frequency.json").read_text())
    assert [(row["recipe"], row["cells"]) for row in rows] == [("plain", 2), ("plain", 4)]
    assert Image.open(run / "boards.png").height < 900  # data, plain
    plain = run / "plain_2_seed0"
    assert load(str(plain / "config.yaml")).data.cells == 2
    main(["evaluate", str(plain), "--count", "10", "--num-steps", "1"])
