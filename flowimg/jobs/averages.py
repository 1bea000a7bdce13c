"""Which averages of the weights can be made of those that a run kept aside, and making one."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.config import SettingsError
from flowimg.training.ema import LENGTHS, Combination, Profile, combine, gamma_of
from flowimg.training.snapshots import kept_steps, weigh

MOST_OFF = 0.1
"""An average whose profile would be off by more than this is not made."""


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
            f"{folder.parent} kept no averages to make others of: only a run trained from its first step on with, "
            "say, --train.snapshots 32 does"
        )
    if step is not None and step not in steps:
        raise SettingsError(f"{folder.parent} kept no averages at step {step}: there are {', '.join(map(str, steps))}")
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
            f"--weights {length}: of what {run} kept at {len(kept.steps)} steps, an average of this length would be "
            f"off by {percent(error)}; flowimg ema {run} lists those that can be made, more of them with a larger "
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
