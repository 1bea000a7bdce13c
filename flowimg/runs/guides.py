"""Opening the network that autoguidance goes away from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowimg.build.data import build_space
from flowimg.build.facts import DataFacts
from flowimg.errors import SettingsError
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import OpenRun, loaded_field, open_run, shapes_of
from flowimg.settings.run import Config
from flowimg.settings.sampling import EARLY, GuideName
from flowimg.training.checkpoint import step_folders
from flowimg.training.snapshots import WIDEST, find_kept, kept_steps, make_average

SHARE = 1 / 8
"""How far in its training the early guide is, as a share of the steps of the network that it guides."""


def with_guide(run: OpenRun, asked: str | None) -> OpenRun:
    """The run with the network that autoguidance goes away from, on the same device; None leaves it as it is.

    Raises:
        SettingsError: If there is no such network, or it does not fit the run.
        CheckpointError: If it cannot be read.
    """
    if asked is None:
        return run
    found = open_guide(asked, run.folder, run.step, next(run.field.parameters()).device)
    if found.sha256 == run.sha256:
        raise SettingsError(f"guide {asked} is the network that it should guide: name an earlier or a smaller one")
    check_fits(asked, found, str(run.folder.path), run.facts, run.config)
    return replace(run, guide=found)


def open_guide(asked: str, folder: RunFolder, step: int, device: torch.device) -> OpenRun:
    """The requested guide, as in `Solving.guide`, of a network of this run at this step.

    Raises:
        SettingsError: If there is no such network.
        CheckpointError: If it cannot be read.
    """
    name = early(folder, step) if asked == EARLY else GuideName.read(asked)
    if Path(asked).is_dir() and asked != EARLY:  # a folder whose name looks like a step or weights
        name = GuideName(asked, None, None)
    there = RunFolder(Path(name.run)) if name.run else folder
    if name.run and not there.path.exists() and {*name.run} & {*"@:"}:
        raise SettingsError(
            f"guide {asked}: there is no run {name.run}; @ goes before a step, and : before ema, raw or a length "
            "such as 0.1"
        )
    at, weights = step if name.run is None and name.step is None else name.step, name.weights or "ema"
    if name.weights is None and name.step is not None and _only_a_snapshot(there, name.step):
        weights = WIDEST
    try:
        return open_run(name.run or str(folder.path), weights, at, device)
    except SettingsError as error:
        unsaved = name.step is not None and isinstance(weights, str) and name.step not in _checkpoints(there)
        kept = kept_steps(there.snapshots) if unsaved else []
        also = f"; snapshots of steps {', '.join(map(str, kept))}" if kept else ""
        raise SettingsError(f"guide {asked}: {error}{also}") from None


def _only_a_snapshot(folder: RunFolder, step: int) -> bool:
    """Whether a run keeps a snapshot of a step, and no checkpoint."""
    return step in kept_steps(folder.snapshots) and step not in _checkpoints(folder)


def _checkpoints(folder: RunFolder) -> list[int]:
    return [int(path.name[5:]) for path in step_folders(folder.checkpoints)]


def early(folder: RunFolder, step: int) -> GuideName:
    """What a run keeps nearest to an eighth of a step: a snapshot, or else the average of a checkpoint.

    Raises:
        SettingsError: If it keeps nothing from the first half of the steps.
    """
    if found := early_snapshot(folder, step):
        return found
    if (at := _nearest(_checkpoints(folder), step)) is not None:
        return GuideName(None, at, "ema")
    raise SettingsError(
        f"guide {EARLY}: {folder.path} keeps nothing from the first half of its {step:,} steps: train with, for "
        "example, --train.snapshots 32, or name another run"
    )


def early_snapshot(folder: RunFolder, step: int) -> GuideName | None:
    """The snapshot that is nearest to an eighth of a step; None if none is from the first half of the steps."""
    at = _nearest(kept_steps(folder.snapshots), step)
    return None if at is None else GuideName(None, at, WIDEST)


def _nearest(steps: Sequence[int], step: int) -> int | None:
    return min(
        (each for each in steps if 0 < each <= step / 2), key=lambda each: abs(each - SHARE * step), default=None
    )


def open_snapshot(
    folder: RunFolder, name: GuideName, config: Config, facts: DataFacts, device: torch.device
) -> OpenRun:
    """The network of a snapshot, of a run that trains: nothing but the snapshot is read.

    Raises:
        SettingsError, CheckpointError: If it cannot be made.
    """
    average = make_average(
        find_kept(folder.snapshots, name.step), float(name.weights or WIDEST), shapes_of(config, facts)
    )
    field = loaded_field(config, facts, average.tensors, device)
    return OpenRun(folder, config, facts, build_space(config, facts), field, average.step, average.sha256)


def check_fits(asked: str, guide: OpenRun, run: str, facts: DataFacts, config: Config) -> None:
    """Refuse a guide of other samples, other classes or another path than those of a run.

    Raises:
        SettingsError: With what differs.
    """
    ours, theirs = build_space(config, facts), guide.space
    lacking = [shape for shape in facts.shapes if shape not in guide.facts.shapes]
    compared = {
        "data": (config.data.kind, guide.config.data.kind),
        **_points(config, guide.config),
        "shape": (lacking[0], guide.facts.shape) if lacking else (None, None),
        "kind of samples": (ours.words, theirs.words),
        "path": (config.path.kind, guide.config.path.kind),
        "number of classes": (len(facts.classes), len(guide.facts.classes)),
        "classes": (facts.classes, guide.facts.classes),
    }
    for name, (here, there) in compared.items():
        if here != there:
            raise SettingsError(f"guide {asked} does not fit {run}: its {name} {_differ(here, there)}")


def _points(config: Config, guide: Config) -> dict[str, tuple[Any, Any]]:
    """Which points two runs are on, by setting; pictures may come from anywhere."""
    if config.data.holds_pictures or guide.data.holds_pictures:
        return {}
    return {f"data.{name}": (getattr(config.data, name), getattr(guide.data, name)) for name in ("source", "cells")}


def _differ(ours: Any, theirs: Any) -> str:
    if isinstance(ours, tuple) and isinstance(next(iter(ours)), str):
        return "differ"
    here, there = (" x ".join(map(str, value)) if isinstance(value, tuple) else value for value in (ours, theirs))
    return f"is {there}, not {here}"
