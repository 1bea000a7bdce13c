"""Reading a run back from nothing but its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowimg.build.data import build_space
from flowimg.build.facts import DataFacts
from flowimg.build.field import build_field
from flowimg.errors import CheckpointError, SettingsError
from flowimg.machine.processes import is_first
from flowimg.runs.folder import RunFolder, find_run
from flowimg.runs.places import read_config
from flowimg.settings.run import Config
from flowimg.spaces.space import Space
from flowimg.training.checkpoint import newest_whole, read_checkpoint, read_state, step_folder, weights_sha256, whole
from flowimg.training.snapshots import find_kept, make_average, percent


@dataclass(frozen=True)
class OpenRun:
    """A run read back from its folder.

    `facts` and `space` are what its data looked like; `field` lies on a device; `sha256` is that of its weights; `data`
    is the fingerprint of what it learned from, where it is known. `guide` is what autoguidance goes away from.
    """

    folder: RunFolder
    config: Config
    facts: DataFacts
    space: Space
    field: nn.Module
    step: int
    sha256: str
    data: str | None = None
    guide: "OpenRun | None" = None


def weights_name(weights: str | float) -> str:
    """What the weights that were asked for are called: ema, raw, length0.1."""
    return weights if isinstance(weights, str) else f"length{weights}"


def made_by(run: OpenRun, weights: str | float, precision: str) -> dict[str, Any]:
    """What samples were made by, for the record of an evaluation: the weights, and the precision."""
    return {
        "step": run.step,
        "weights": weights_name(weights),
        "arithmetic": precision,
        "weights_sha256": run.sha256[:16],
        **made_away_from(run.guide),
    }


def made_away_from(guide: OpenRun | None) -> dict[str, Any]:
    """What a guide was, for the record of samples: its step and its weights."""
    return {} if guide is None else {"guide_step": guide.step, "guide_sha256": guide.sha256[:16]}


def open_run(
    run: str,
    weights: str | float,
    step: int | None,
    device: torch.device,
    shape: tuple[int, int] | None = None,
) -> OpenRun:
    """Read a run back from its folder.

    Args:
        run: The folder.
        weights: "ema", "raw", or the length of an average that is made of those kept aside.
        step: The checkpoint of this step, or averages at it; None for the newest.
        device: Where the field goes.
        shape: Height and width to draw, of a run with `data.buckets`; None keeps all of them.
    Raises:
        SettingsError: If the folder holds no run, no averages to make this one of, or another shape.
        CheckpointError: If there is no whole checkpoint, or not the one asked for.
    """
    folder = find_run(run)
    config = read_config(folder)
    if isinstance(weights, str):
        path = find_checkpoint(folder, step)
        name = "ema" if weights == "ema" else "weights"
        held, about = read_checkpoint(path, (name,))
        tensors, at, facts = held[name], about["step"], facts_of(about, path)
        check_network(config, facts, tensors, path)
        sha256 = weights_sha256(path, name)
    else:
        kept = find_kept(folder.snapshots, step)
        path = find_checkpoint(folder, None)  # any of them says what the data looked like
        about = read_state(path)
        facts = facts_of(about, path)
        tensors, at, error, sha256 = make_average(kept, weights, shapes_of(config, facts))
        if is_first():
            made = f"made of {len(kept.steps)} files; off by {percent(error)}"
            print(f"average   of length {weights} at step {at}, {made}")
    field = loaded_field(config, facts, tensors, device)
    facts = facts if shape is None else _of_shape(facts, shape, run)
    return OpenRun(folder, config, facts, build_space(config, facts), field, at, sha256, about.get("data"))


def loaded_field(config: Config, facts: DataFacts, tensors: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The network of a run with these weights, on a device, to be evaluated only."""
    field = build_field(config, facts)
    field.load_state_dict(tensors)
    return field.to(device).eval().requires_grad_(False)


def _of_shape(facts: DataFacts, shape: tuple[int, int], run: str) -> DataFacts:
    """The facts of the pictures of one bucket."""
    there: list[tuple[int, ...]] = [bucket[:2] for bucket in facts.buckets] or [facts.shape[1:]]
    if shape not in there:
        known = ", ".join(" ".join(map(str, one)) for one in there)
        asked = f"--shape {shape[0]} {shape[1]} (height, width) is none that {run} learned"
        raise SettingsError(f"{asked}: {f'give one of {known}' if known else 'it has points'}")
    return facts._replace(shape=(facts.shape[0], *shape), buckets=())


def find_checkpoint(folder: RunFolder, step: int | None) -> Path:
    """The checkpoint of a step; None for the newest whole one.

    Raises:
        SettingsError: If there is none of this step.
        CheckpointError: If none is whole.
    """
    if step is None:
        newest, passed = newest_whole(folder.checkpoints)
        if newest is None:
            raise CheckpointError(f"{folder.path} has no whole checkpoint{''.join('; ' + line for line in passed)}")
        for line in passed:
            print(line)
        return newest
    path = step_folder(folder.checkpoints, step)
    if not path.exists():
        there = ", ".join(str(int(p.name[5:])) for p in sorted(folder.checkpoints.glob("step_*"))) or "none"
        raise SettingsError(f"{folder.path} has no checkpoint of step {step}: there are {there}")
    return path


def facts_of(state: dict[str, Any], path: Path) -> DataFacts:
    """What the data of a checkpoint looked like; the state may come from a stranger.

    Raises:
        CheckpointError: If no data look like that.
    """
    shape, classes, absent = state.get("shape"), state.get("classes"), state.get("absent", [])
    buckets = state.get("buckets", [])
    right = isinstance(shape, list) and len(shape) in (1, 3) and all(whole(n) and 1 <= n <= 4096 for n in shape)
    right = right and isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    right = right and isinstance(absent, list) and all(whole(n) and 0 <= n < len(classes or ()) for n in absent)
    right = right and isinstance(buckets, list) and all(isinstance(one, list) and len(one) == 3 for one in buckets)
    right = right and all(whole(n) and n >= 1 for one in buckets for n in one)
    right = right and all(n <= 4096 for one in buckets for n in one[:2])
    if not right:
        raise CheckpointError(f"{path} records an impossible shape of the data: {str(shape)[:60]}")
    facts = DataFacts(tuple(state["shape"]), tuple(state["classes"]), state.get("architecture"), absent=tuple(absent))
    return facts._replace(buckets=tuple(map(tuple, buckets)))


def shapes_of(config: Config, facts: DataFacts) -> dict[str, torch.Size]:
    """Shape of each weight of the network of the settings, by name; no memory is taken for it."""
    with torch.device("meta"):
        return {name: value.shape for name, value in build_field(config, facts).state_dict().items()}


def check_network(config: Config, facts: DataFacts, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse a network of the settings that is not the one of the weights, before memory is taken for it.

    Raises:
        CheckpointError: If so.
    """
    described, there = shapes_of(config, facts), {name: value.shape for name, value in tensors.items()}
    wrong = sorted(name for name in {*described, *there} if described.get(name) != there.get(name))
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
        raise SettingsError(
            f"guidance {guidance:g} needs a conditional run, and {config.run} is not one, for its data have no "
            "classes: give guidance 1 (grid.guidance of a training)"
        )
    if config.train.label_drop == 0:
        raise SettingsError(f"guidance {guidance:g} needs a run with train.label_drop above 0, and {config.run} has 0")


def check_null(run: OpenRun, mend: str) -> None:
    """Refuse to draw without class by a network, or a guide, that learned no picture without its class.

    Raises:
        SettingsError: With what `mend`s it.
    """
    for one in (run, run.guide):
        if one and one.facts.classes and one.config.train.label_drop == 0:
            raise SettingsError(
                f"{one.folder.path} learned no pictures without their class (train.label_drop 0): {mend}"
            )
