"""Classes as the label of a condition.

A label that a user gives is the name of a class, wherever it is given: 1 and "1" both mean the class called "1", which
need not be the second one, and a label that no class is called by is refused. Classes that only have a number are
called by it.
"""

from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from typing import Any

import torch

from flowimg.errors import SettingsError
from flowimg.flow.condition import NO_CLASS, Condition

SHOWN = 60
"""The most characters of a name in a sentence."""
NOTHING = ("none", "None", "null")
"""Words for no label, unless a class is called so."""


def turns(seeds: Sequence[int], numbers: Sequence[int]) -> Condition:
    """The condition if no class is requested: these classes take turns, by seed; without classes it is empty."""
    return Condition(torch.tensor([numbers[seed % len(numbers)] for seed in seeds])) if numbers else Condition()


def labelled(label: int | None, count: int, classes: Sequence[str]) -> Condition:
    """A condition of `count` rows of one class, None for "no class"; without classes it is empty."""
    return Condition(torch.full((count,), NO_CLASS if label is None else label)) if classes else Condition()


def class_number(label: Any, classes: Sequence[str]) -> int | None:
    """The number of the class that a label names; None if no class is called so, and for what is no name.

    Args:
        label: A name, or a whole number (of Python, NumPy or torch) that stands for its digits. True is no number.
        classes: The names of the classes, in order.
    """
    name = label.item() if hasattr(label, "item") and label.ndim == 0 else label
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    return list(classes).index(name) if isinstance(name, str) and name in classes else None


def there_are(classes: Sequence[str], label: Any) -> str:
    """The names of the classes for a sentence about a label that is none of them, those like it first."""
    asked = _folded(str(label)[:SHOWN])

    def likeness(name: str) -> float:
        alike = SequenceMatcher(None, asked, _folded(name)).ratio()
        return alike if alike >= 0.5 else 0.0

    known = [shown(name) for name in sorted(classes, key=likeness, reverse=True)[:16]]
    return f"there are {', '.join(known)}" + (f" and {len(classes) - 16} more" if len(classes) > 16 else "")


def shown(name: str) -> str:
    """A name for a sentence: as it is, or in quotes if not all of it would be seen; its start if it is long."""
    short = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
    return short if short.isprintable() and short == short.strip() != "" else repr(short)


def _folded(name: str) -> str:
    return name.strip().casefold()


def parse_label(label: Any, classes: Sequence[str], run: str, absent: Collection[int] = ()) -> int | None:
    """The number of the class that a user named.

    Args:
        label: What was given; None for nothing, and so are `NOTHING` where no class is called so.
        classes: The names of the run's classes.
        run: Names the run in errors.
        absent: The classes, by number, that the run's data had no sample of.

    Raises:
        SettingsError: If the run has no such class, or did not learn it.
    """
    if label is None or (isinstance(label, str) and label in NOTHING and label.lower() not in map(_folded, classes)):
        return None
    if not classes:
        raise SettingsError(f"label {shown(str(label))} needs a conditional run, and {run} is not one")
    number = class_number(label, classes)
    if number is None:
        raise SettingsError(f"label {shown(str(label))} is no class of {run}: {there_are(classes, label)}")
    if number in absent:
        raise SettingsError(f"label {shown(classes[number])}: {run} was trained on no sample of this class")
    return number
