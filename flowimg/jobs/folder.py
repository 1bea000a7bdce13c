"""What lies where in a run's folder, and reading a run back from nothing but its folder."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowimg.config import Config, SettingsError, load
from flowimg.jobs.averages import find_kept, make_average, percent
from flowimg.jobs.build import DataFacts, build_field
from flowimg.jobs.machine import is_first
from flowimg.training.checkpoint import CheckpointError, newest_whole, read_checkpoint, read_state, step_folder


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A file to write to that is renamed in the end: `path` is there whole, as it was or as it is now."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; half a line, from a run that was killed, is passed over."""
    kept: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(record)
    return kept


def _while_training(evaluation: dict[str, Any]) -> bool:
    return bool(evaluation.get("during"))


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """All settings of the run, resolved."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine of the last start."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, every `train.log_every` steps."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """How the run is: running, done, preempted or failed, and why."""
        return self.path / "status.json"

    @property
    def evaluations(self) -> Path:
        """One JSON object a line, an evaluation each: its scores and how it was made."""
        return self.path / "evaluations.jsonl"

    @property
    def checkpoints(self) -> Path:
        """A folder for each checkpoint kept."""
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Averages of the weights kept aside, of which others are made."""
        return self.path / "snapshots"

    @property
    def samples(self) -> Path:
        """Grids drawn during training."""
        return self.path / "samples"

    @property
    def preview(self) -> Path:
        """What the field sees at the first step, for runs on pictures."""
        return self.path / "data.png"

    @property
    def left_out(self) -> Path:
        """Pictures that could not be used, a line each, with the reason."""
        return self.path / "left_out.txt"

    @property
    def figures(self) -> Path:
        """What the run looks like."""
        return self.path / "figures"

    @property
    def profile(self) -> Path:
        """Where the time of a step went, where it was asked for."""
        return self.path / "profile"

    @property
    def report(self) -> Path:
        """One page about the run."""
        return self.path / "report.html"

    @property
    def generated(self) -> Path:
        """What the verbs drew that name no other folder."""
        return self.path / "generated"

    @property
    def model(self) -> Path:
        """The averaged field as a folder that diffusers reads."""
        return self.path / "model"

    def grid(self, step: int, weights: str = "ema") -> Path:
        """The grid of a step: of the average, or of the raw weights."""
        return self.samples / f"step_{step:08d}{'' if weights == 'ema' else '_raw'}.png"

    def grids(self) -> list[tuple[int, Path]]:
        """The grids of the average that are there, with their steps, in order."""
        return [(int(path.stem[5:]), path) for path in sorted(self.samples.glob("step_*[0-9].png"))]

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics that are whole, in order; no events."""
        return [line for line in _lines(self.metrics) if "event" not in line]

    def events(self) -> list[dict[str, Any]]:
        """What happened to the run, in order: each start of it."""
        return [line for line in _lines(self.metrics) if "event" in line]

    def evaluated(self) -> list[dict[str, Any]]:
        """All evaluations, in order."""
        return _lines(self.evaluations)

    def cut_metrics(self, step: int) -> None:
        """Drop metrics past a step, which a continued run will write again; what happened, and was asked for, stays."""
        for path, again in ((self.metrics, lambda line: "event" not in line), (self.evaluations, _while_training)):
            if path.exists():
                lines = [line for line in _lines(path) if line["step"] <= step or not again(line)]
                write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def check_links(folder: RunFolder) -> None:
    """Refuse a run folder with links that lead out of it: what is written through them would be written elsewhere.

    Raises:
        SettingsError: With the first of them.
    """
    inside = folder.path.resolve()
    for path in [*folder.path.glob("*"), *folder.path.glob("*/*")]:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise SettingsError(
                f"{path} is a link out of the run's folder, and nothing is written through it: to keep a run on "
                f"another disk, make {folder.path} itself the link"
            )


@dataclass(frozen=True)
class Trained:
    """A run read back: settings, what its data looked like, field on a device, step, weights' SHA-256, data's name."""

    folder: RunFolder
    config: Config
    facts: DataFacts
    field: nn.Module
    step: int
    sha256: str
    data: str | None = None


def find_run(run: str) -> RunFolder:
    """The folder of a run.

    Raises:
        SettingsError: If the folder holds no run.
    """
    folder = RunFolder(Path(run))
    if not folder.config.exists():
        runs = sorted(str(path.parent) for path in Path("runs").glob("*/config.yaml"))
        hint = f"; runs here: {', '.join(runs)}" if runs else "; train one: flowimg train configs/digits.yaml"
        raise SettingsError(f"{run} holds no run (there is no {folder.config}){hint}")
    return folder


def weights_name(weights: str | float) -> str:
    """What the weights that were asked for are called: ema, raw, length0.1."""
    return weights if isinstance(weights, str) else f"length{weights}"


def open_run(run: str, weights: str | float, step: int | None, device: torch.device) -> Trained:
    """Read a run back from its folder.

    Args:
        run: The folder.
        weights: "ema", "raw", or the length of an average that is made of those kept aside.
        step: The checkpoint of this step, or averages at it; None for the newest.
        device: Where the field goes.
    Raises:
        SettingsError: If the folder holds no run, or no averages to make this one of.
        CheckpointError: If there is no whole checkpoint, or not the one asked for.
    """
    folder = find_run(run)
    config = load(str(folder.config))
    if isinstance(weights, str):
        path = find_checkpoint(folder, step)
        name = "ema" if weights == "ema" else "weights"
        checkpoint = read_checkpoint(path, (name,))
        tensors, at = checkpoint.tensors[name], checkpoint.state["step"]
        about = checkpoint.state
        facts = facts_of(about, path)
        check_network(config, facts, tensors, path)
        sha256 = json.loads((path / "manifest.json").read_text())[f"{name}.safetensors"]["sha256"]
    else:
        kept = find_kept(folder.snapshots, step)
        path = find_checkpoint(folder, None)  # any of them says what the data looked like
        about = read_state(path)
        facts = facts_of(about, path)
        tensors, at, error, sha256 = make_average(kept, weights, shapes_of(config, facts))
        if is_first():
            print(
                f"average   of length {weights} at step {at}, made of {len(kept.steps)} files; off by {percent(error)}"
            )
    field = build_field(config, facts)
    field.load_state_dict(tensors)
    field = field.to(device).eval().requires_grad_(False)
    return Trained(folder, config, facts, field, at, sha256, about.get("data"))


def find_checkpoint(folder: RunFolder, step: int | None) -> Path:
    """The checkpoint of a step; None for the newest whole one.

    Raises:
        SettingsError: If there is none of this step.
        CheckpointError: If none is whole.
    """
    run = folder.path
    if step is None:
        path, passed = newest_whole(folder.checkpoints)
        if path is None:
            raise CheckpointError(f"{run} has no whole checkpoint{''.join('; ' + line for line in passed)}")
        for line in passed:
            print(line)
    else:
        path = step_folder(folder.checkpoints, step)
        if not path.exists():
            there = ", ".join(str(int(p.name[5:])) for p in sorted(folder.checkpoints.glob("step_*"))) or "none"
            raise SettingsError(f"{run} has no checkpoint of step {step}: there are {there}")
    return path


def facts_of(state: dict[str, Any], path: Path) -> DataFacts:
    """What the data of a checkpoint looked like; the state may come from a stranger.

    Raises:
        CheckpointError: If no data look like that.
    """
    shape, classes = state.get("shape"), state.get("classes")
    right = isinstance(shape, list) and len(shape) in (1, 3) and all(type(n) is int and 1 <= n <= 4096 for n in shape)
    right = right and isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not right:
        raise CheckpointError(f"{path} was trained on data that cannot be: shape {str(shape)[:60]}")
    return DataFacts(tuple(state["shape"]), tuple(state["classes"]), state.get("architecture"))


def shapes_of(config: Config, facts: DataFacts) -> dict[str, torch.Size]:
    """Shape of each weight of the network of the settings, by name; no memory is taken for it."""
    with torch.device("meta"):
        return {name: value.shape for name, value in build_field(config, facts).state_dict().items()}


def check_network(config: Config, facts: DataFacts, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse a network of the settings that is not the one of the weights, before memory is taken for it.

    Raises:
        CheckpointError: If so.
    """
    described = shapes_of(config, facts)
    wrong = [
        name
        for name in sorted({*described, *tensors})
        if name not in described or name not in tensors or described[name] != tensors[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{path} does not hold the network of its settings: {len(wrong)} weights, as {wrong[0]}")


def check_guidance(guidance: float, facts: DataFacts, config: Config) -> None:
    """Refuse guidance that the field was not trained for.

    Raises:
        SettingsError: If the field has no classes, or never saw a picture without one.
    """
    if guidance == 1:
        return
    if not facts.classes:
        raise SettingsError(f"guidance {guidance:g} needs a conditional run, and {config.run} is not one")
    if config.train.label_drop == 0:
        raise SettingsError(f"guidance {guidance:g} needs a run with train.label_drop above 0, and {config.run} has 0")
