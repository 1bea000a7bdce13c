"""Classes as the label of a condition."""

from collections.abc import Sequence
from difflib import get_close_matches

import torch

from flowimg.errors import SettingsError
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.names import one_line


def turns(seeds: Sequence[int], classes: Sequence[str]) -> Condition:
    """The condition if no class is requested: the classes take turns, by seed; without classes it is empty."""
    return Condition(torch.tensor([seed % len(classes) for seed in seeds])) if classes else Condition()


def labelled(label: int | None, count: int, classes: Sequence[str]) -> Condition:
    """A condition of `count` rows of one class, None for "no class"; without classes it is empty."""
    return Condition(torch.full((count,), NO_CLASS if label is None else label)) if classes else Condition()


def parse_label(label: int | str | None, classes: Sequence[str], run: str) -> int | None:
    """The number of a class that a user gave by number or name.

    Args:
        label: What was typed; None for nothing.
        classes: The names of the run's classes.
        run: Names the run in errors.

    Raises:
        SettingsError: If the run has no such class.
    """
    if label is None:
        return None
    if not classes:
        raise SettingsError(f"--label {label} needs a conditional run, and {run} is not one")
    if str(label) in classes:
        return list(classes).index(str(label))
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    near = get_close_matches(str(label), classes, n=1, cutoff=0.5)
    known = ", ".join(map(one_line, classes[:16])) + (f" and {len(classes) - 16} more" if len(classes) > 16 else "")
    hint = f"did you mean {one_line(near[0])}?" if near else f"known are {known}"
    raise SettingsError(f"--label {one_line(str(label))} is no class of {run}: {hint}")
