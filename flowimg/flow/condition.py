"""What a field is given besides x and t: one value with a part for each kind of information.

    label          (B,)    class numbers; -1 is "no class"
    augmentation   (B, 9)  how a picture was augmented; 0 is "as it is"

A part is absent (None) where the run has none of it. A new part is a field of `Condition` and its null in `NULLS`; each
network maps a null to its own input for it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NO_CLASS = -1
"""The label that stands for "no class": what label drop and unguided evaluations use."""
NULLS: dict[str, float] = {"label": NO_CLASS, "augmentation": 0.0}
"""The value of a null row of each part."""
STEERED = ("label",)
"""The parts that guidance steers towards: null on its unconditional side, where the others stay as they are."""


class Condition(NamedTuple):
    """Rows of what a field is given; see the head of this file. All parts have the same number of rows, B."""

    label: Tensor | None = None
    augmentation: Tensor | None = None

    def rows(self, index: slice | Tensor | Sequence[int]) -> "Condition":
        """Some rows of every part, in this order; the index is taken to the device of each part."""
        return self._each(lambda _, part: part[index.to(part.device) if isinstance(index, Tensor) else index])

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device."""
        return self._each(lambda _, part: part.to(device))

    def cat(self, other: "Condition") -> "Condition":
        """The rows of this one, then those of another.

        Raises:
            ValueError: If only one of them has some part.
        """
        if [part is None for part in self] != [part is None for part in other]:
            raise ValueError("conditions of different parts cannot be joined")
        return self._each(lambda name, part: torch.cat([part, getattr(other, name)]))

    def null(self) -> "Condition":
        """The same rows with null in each part that guidance steers towards."""
        return self._each(lambda name, part: torch.full_like(part, NULLS[name]) if name in STEERED else part)

    def drop(self, name: str, mask: Tensor) -> "Condition":
        """Null in one part, in the rows where `mask`, shape (B,), is true; nothing where the part is absent."""
        part: Tensor | None = getattr(self, name)
        if part is None:
            return self
        rows = mask.reshape(-1, *[1] * (part.ndim - 1))
        return self._replace(**{name: torch.where(rows, NULLS[name], part)})

    @property
    def steers(self) -> bool:
        """Whether there is a part that guidance can steer towards."""
        return any(getattr(self, name) is not None for name in STEERED)

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> "Condition":
        parts = zip(self._fields, self, strict=True)
        return Condition(*(None if part is None else change(name, part) for name, part in parts))


Velocity = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""(x, t, cond) -> v: x and v of shape (B, *D), t of shape (B,); cond None is null in every part."""
