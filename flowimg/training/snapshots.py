"""Power averages kept aside during a run, a file a step, of which averages of other lengths are made.

    step_00000500.safetensors    0.05/NAME and 0.1/NAME for each weight, fp32

A file is written aside, synced and renamed. It follows from the run up to its step, so that a continued run that comes
by once more writes the same. A run's folder may come from a stranger: a file is looked at before it is read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowimg.errors import CheckpointError, SettingsError
from flowimg.files import written
from flowimg.names import word
from flowimg.training.averages import LENGTHS, Combination, Profile, combine, gamma_of
from flowimg.training.parts import save_tensors

MOST_OFF = 0.1
"""An average whose profile would be off by more than this is not made."""
WIDEST = max(LENGTHS)
"""The longest of the averages that a snapshot holds as they are."""
TINY = 1e-9
"""What is added with a smaller weight than this is lost in the rounding of fp32, hundreds of them together too."""


def snapshot_file(folder: Path, step: int) -> Path:
    """Where the averages of a step lie."""
    return folder / f"step_{step:08d}.safetensors"


def kept_steps(folder: Path) -> list[int]:
    """The steps whose averages are there, in order."""
    names = [path.name.removesuffix(".safetensors")[5:] for path in folder.glob("step_*.safetensors")]
    return sorted(int(name) for name in names if name.isdecimal() and int(name) > 0)


def write_snapshot(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the averages of a step, whole or not at all.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = snapshot_file(folder, step)
    for leftover in folder.glob(".step_*.tmp"):  # of a process that died while it wrote
        leftover.unlink()
    with written(final, synced=True) as aside:
        save_tensors(aside, tensors)


def drop_later(folder: Path, step: int) -> None:
    """Drop averages past a step, which a run that was killed comes to once more."""
    for later in kept_steps(folder):
        if later > step:
            snapshot_file(folder, later).unlink()


def weigh(folder: Path, parts: Sequence[tuple[int, str, float]], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The weighted sum of averages, added up in float64, one tensor of one file in memory at a time.

    Args:
        folder: Where they lie.
        parts: Step, length (as files name it) and weight of each.
        shapes: Shape of each weight of the network, by name.
    Returns:
        fp32 tensors by name.
    Raises:
        CheckpointError: If a file is missing or broken, or does not hold averages of this network.
    """
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for step, length, weight in parts:
        if abs(weight) < TINY:
            continue
        path = snapshot_file(folder, step)
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is missing, or a link")
        try:
            with safe_open(path, "pt") as file:
                held = {name.removeprefix(f"{length}/") for name in file.keys() if name.startswith(f"{length}/")}  # noqa: SIM118
                for name in sorted(held ^ set(shapes)):
                    raise CheckpointError(f"{path} does not hold the network of its settings: {length}/{name}")
                for name, shape in shapes.items():
                    if (there := file.get_slice(f"{length}/{name}").get_shape()) != list(shape):
                        raise CheckpointError(f"{path} has {length}/{name} of shape {there}, not {list(shape)}")
                    total[name] += weight * file.get_tensor(f"{length}/{name}").double()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as averages: {error}") from None
    made = {name: value.float() for name, value in total.items()}
    for name, value in made.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"the averages in {folder} hold a value that is not finite in {name}")
    return made


class Kept(NamedTuple):
    """The averages of a run up to a step: where they lie, that step, and all steps at which some were kept."""

    folder: Path
    step: int
    steps: list[int]


class Average(NamedTuple):
    """An average that was made: its tensors, the step, the error of its profile, its SHA-256."""

    tensors: dict[str, Tensor]
    step: int
    error: float
    sha256: str


def find_kept(folder: Path, step: int | None) -> Kept:
    """The averages that a run kept up to a step; None for the last that kept some.

    Raises:
        SettingsError: If there are none, or none at this step.
    """
    steps = kept_steps(folder)
    if not steps:
        raise SettingsError(
            f"{folder.parent} has no snapshots to build averages from: train from the first step with, for example, "
            "--train.snapshots 32"
        )
    if step is not None and step not in steps:
        raise SettingsError(f"{folder.parent} has no snapshot of step {step}: there are {', '.join(map(str, steps))}")
    last = step or steps[-1]
    return Kept(folder, last, [each for each in steps if each <= last])


def plan(kept: Kept, length: float) -> Combination:
    """Weights for the averages kept, step by step and length by length, that make one of another length."""
    profiles = [Profile(step, gamma_of(there)) for step in kept.steps for there in LENGTHS]
    return combine(profiles, Profile(kept.step, gamma_of(length)))


def make_average(kept: Kept, length: float, shapes: Mapping[str, torch.Size]) -> Average:
    """Make an average of a length of those that were kept.

    Raises:
        SettingsError: If its profile would be off by more than a tenth.
        CheckpointError: If the files are not averages of a network of these shapes.
    """
    weights, error = plan(kept, length)
    if error > MOST_OFF:
        run = kept.folder.parent
        raise SettingsError(
            f"--weights {length}: built from the {len(kept.steps)} snapshots of {run}, this average would be off by "
            f"{percent(error)}; flowimg ema {word(run)} lists those that can be made, more of them with a larger "
            "train.snapshots"
        )
    parts = [(step, f"{there:g}") for step in kept.steps for there in LENGTHS]
    tensors = weigh(kept.folder, [(*part, weight) for part, weight in zip(parts, weights, strict=True)], shapes)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return Average(tensors, kept.step, error, digest.hexdigest())


def percent(error: float) -> str:
    """An error as people say it: 18 %, 1.2 %, 0.03 %."""
    return f"{round(100 * error, 4):.2g} %" if error < 0.995 else f"{100 * error:.0f} %"
