"""How a number of a picture is stored: its type, and which numbers are black and white.

    x = (k - low) / h - 1,    h = (high - low) / 2

Imports no torch, so that decoder processes start fast.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Depth(NamedTuple):
    """A NumPy type (uint8, uint16, float32), and its numbers that mean x = -1 and x = 1."""

    type: str
    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole ones."""
        return np.issubdtype(self.type, np.unsignedinteger)

    @property
    def levels(self) -> int | None:
        """The count of different numbers; None for floating-point ones."""
        return int(self.high - self.low) + 1 if self.whole else None

    @property
    def bytes(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.type).itemsize

    def share(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """How far numbers are on the way from black to white, 0 to 1."""
        return (numbers - self.low) / (self.high - self.low)

    def at(self, share: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `share`, not rounded."""
        return self.low + share * (self.high - self.low)

    @property
    def words(self) -> str:
        """The depth as people say it."""
        return f"{8 * self.bytes} bits" if self.whole else "floating-point numbers"


BYTES = Depth("uint8", 0, 255)
"""The usual depth of pictures."""
WORDS = Depth("uint16", 0, 65535)
"""Pictures of 16 bits."""
