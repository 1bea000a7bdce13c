"""Grids and figures have a stated share of a run's time; a run that will take days says so."""

from types import SimpleNamespace

import pytest
import torch
from tiny import write_settings

from flowimg.cli import main
from flowimg.jobs.train import metrics
from flowimg.jobs.train.metrics import duration
from flowimg.jobs.train.pace import Pace, sampling_seconds
from flowimg.settings.sampling import Grid

GRID = Grid(count=64, num_steps=50)


def state(step, each, batch=64, others=()):
    """A run of `step` steps that took `each` seconds; other processes would afford `others` solver steps."""

    def gather(mine):
        return torch.cat([mine, *(torch.tensor([float(steps)]) for steps in others)])

    strategy = SimpleNamespace(gather_rows=gather, device="cpu", is_first=True)
    return SimpleNamespace(
        step=step, seconds=step * each, objective=SimpleNamespace(batch_size=batch), strategy=strategy
    )


def test_an_evaluation_is_a_third_of_a_step():
    assert sampling_seconds(state(10, 3.0), 0, 64, GRID) == pytest.approx(1.0)
    assert sampling_seconds(state(10, 3.0), 0, 64, Grid(guidance=2.0)) == pytest.approx(2.0)
    assert sampling_seconds(state(0, 0.0), 0, 64, GRID) == 0


@pytest.mark.parametrize(
    ("step", "each", "steps"),
    [
        (2, 6.0, 15),  # a trial of two steps: 60 s for 2 x 50 evaluations of 2 s each, of two weights
        (2, 0.5, 50),  # the whole takes 17 s
        (1000, 6.0, 50),  # 200 s, and a tenth of the steps' time is 600
        (2, 60.0, None),  # not even five solver steps
    ],
)
def test_a_grid_has_the_solver_steps_that_a_tenth_of_the_time_or_a_minute_affords(step, each, steps, capsys):
    found = Pace().affordable(state(step, each), 0, GRID)
    assert (found and found.num_steps) == steps
    said = capsys.readouterr().out
    assert bool(said) == (steps != 50) and ("not drawn" in said) == (steps is None)


def test_what_grids_took_counts_and_processes_agree(capsys):
    pace = Pace()
    pace.add(50.0, 50)
    assert pace.affordable(state(2, 1.0), 0, GRID).num_steps == 10  # a second a solver step, and ten seconds are left
    assert pace.affordable(state(2, 1.0, others=[7]), 0, GRID).num_steps == 7
    assert pace.affordable(state(2, 1.0), 0, GRID.model_copy(update={"solver": "dopri5"})) is None
    assert "grids may take 10 % of the steps' time" in capsys.readouterr().out


def test_a_run_on_a_slow_machine_leaves_grids_and_figures_out_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flowimg.jobs.train.pace.SECONDS", 0.0)
    monkeypatch.setattr("flowimg.jobs.train.pace.SHARE", 1e-9)
    run = tmp_path / "run"
    config = write_settings(tmp_path / "a.yaml", figures=True)
    main(["train", str(config), "--run", str(run)])
    said = capsys.readouterr().out
    assert "grid      not drawn" in said and f"flowimg figures {run} draws them" in said
    assert not list(run.glob("samples/*.png")) and (run / "report.html").exists()


@pytest.mark.parametrize("day", [1e-9, 1e9])
def test_a_run_of_days_names_the_recipe_that_fits(day, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "DAY", day)
    monkeypatch.setattr(metrics, "TRIED_SECONDS", 0.0)
    config = write_settings(tmp_path / "a.yaml", train={"steps": 4})
    main(["train", str(config), "--run", str(tmp_path / "run")])
    advice = "left on this CPU: give fewer train.steps, or the network and image size of configs/folder_cpu.yaml"
    assert (advice in capsys.readouterr().out) == (day < 1)


@pytest.mark.parametrize(
    ("seconds", "said"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h"), (100_000, "27.8 h"), (360_000, "4.2 days")]
)
def test_times_as_people_say_them(seconds, said):
    assert duration(seconds) == said
