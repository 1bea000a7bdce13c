"""The stages of a run: what takes long between steps is no step, or the watchdog would end those that wait for it."""

import signal

import pytest
from tiny import write_settings

import flowimg.jobs.train.callbacks as callbacks
import flowimg.jobs.train.metrics as metrics
import flowimg.jobs.train.run as run
import flowimg.training.loop as loop
from flowimg.cli import main
from flowimg.data.batches import ImageBatches
from flowimg.data.prefetch import Prefetch
from flowimg.errors import NotFiniteError
from flowimg.files import read_json
from flowimg.runs.status import Status
from flowimg.settings.reading import load
from flowimg.training.strategies import Strategy


@pytest.mark.usefixtures("sketches")
def test_what_one_process_does_while_others_wait_has_a_stage_of_its_own(tmp_path, monkeypatch):
    stages, own = {}, []

    def noted(holder, name):
        call = getattr(holder, name)

        def inside(*args, **more):
            stages.setdefault(name, set()).add(own[-1].stage)
            return call(*args, **more)

        monkeypatch.setattr(holder, name, inside)

    begin = Status.__init__
    monkeypatch.setattr(Status, "__init__", lambda status, *args: own.append(status) or begin(status, *args))
    not_ready = property(lambda batches: False, lambda batches, ready: None)
    monkeypatch.setattr(ImageBatches, "ready", not_ready)  # as for pictures that are decoded as they are needed
    monkeypatch.setattr(callbacks, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(callbacks, "write_report", lambda *args, **more: None)
    for name in ("draw_figures", "draw_curves", "write_report"):
        monkeypatch.setattr(run, name, lambda *args, **more: None)
    for holder, name in (
        (callbacks, "write_report"), (callbacks, "draw_portions"), (metrics, "in_parts"), (Prefetch, "__call__"),
        (Strategy, "wait"), (loop, "train_step"), (loop, "clip"), (Strategy, "sum"),
    ):  # fmt: skip
        noted(holder, name)
    settings = write_settings(tmp_path / "a.yaml", figures=True, train={"steps": 4})
    main(["train", str(settings), "--run", str(tmp_path / "run")])
    assert stages == {
        "write_report": {"writing the report"},
        "draw_portions": {"drawing samples"},
        "in_parts": {"evaluating on held-out data"},
        "__call__": {"waiting for data"},
        "wait": {"drawing samples", "saving"},
        # where processes wait for each other
        "train_step": {"training"},
        "clip": {"training"},
        "sum": {"training"},
    }


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("error", [NotFiniteError(2, 2), RuntimeError("a fault")])
def test_a_process_that_failed_misses_no_step(error, tmp_path, monkeypatch):
    """What it does then may take long: it reads the newest checkpoint, and waits for what is being written."""
    own, seen, begin = [], [], Status.__init__

    def fail(*args):
        assert not own[0].leaving
        raise error

    def left(*args):
        seen.append(own[0].leaving)
        return error

    monkeypatch.setattr(Status, "__init__", lambda status, *args: own.append(status) or begin(status, *args))
    monkeypatch.setattr(run, "run_loop", fail)
    monkeypatch.setattr(run, "not_finite", left)
    monkeypatch.setattr(run, "_ended", left)
    with pytest.raises(type(error)):
        run.train(load(str(write_settings(tmp_path / "a.yaml", run=str(tmp_path / "run")))))
    assert seen and all(seen)


@pytest.mark.usefixtures("sketches")
def test_a_signal_does_not_keep_a_run_from_writing_how_it_ended(tmp_path, monkeypatch):
    """The launcher of a process that died ends the others, which are about to find out."""
    dead = Status.dead

    def fail(*args):
        raise RuntimeError("a fault")

    def meanwhile(*args, **more):
        signal.raise_signal(signal.SIGTERM)
        return dead(*args, **more)

    monkeypatch.setattr(run, "run_loop", fail)
    monkeypatch.setattr(Status, "dead", meanwhile)
    with pytest.raises(RuntimeError, match="a fault"):
        run.train(load(str(write_settings(tmp_path / "a.yaml", run=str(tmp_path / "run")))))
    told = read_json(tmp_path / "run" / "status.json")
    assert (told["state"], told["why"], told["exit"]) == ("failed", "a fault", 70)
