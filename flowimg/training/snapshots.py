"""Power averages kept aside during a run, a file a step, of which averages of other lengths are made.

    step_00000500.safetensors    0.05/NAME and 0.1/NAME for each weight, fp32

A file is written aside, synced and renamed. It follows from the run up to its step, so that a continued run that comes
by once more writes the same. A run's folder may come from a stranger: a file is looked at before it is read.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowimg.training.checkpoint import CheckpointError, save_tensors, sync

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
    aside = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        save_tensors(aside, tensors)
        sync(aside)
        aside.replace(final)
        sync(folder)
    finally:
        aside.unlink(missing_ok=True)


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
