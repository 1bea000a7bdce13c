"""Points in the plane, stored as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowimg.spaces.space import Space


@dataclass(frozen=True)
class Points(Space):
    """Points of a known distribution, shape (2,).

    Args:
        extent: Half the side of a square around the origin that holds the data.
        examples: (N) -> N exact data points, shape (N, 2), to show beside samples.
    """

    extent: float
    examples: Callable[[int], Tensor]
    shape: tuple[int, ...] = (2,)
    at_once: ClassVar[int] = 25_000
    in_a_figure: ClassVar[int] = 1_000_000  # more are one blot, and take gigabytes to draw
    words = "points"
    formats = ("npz", "npy")

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Points as they are, float32."""
        return stored.float()

    def decode(self, x: Tensor) -> Tensor:
        """Points as they are, float32."""
        return x.float()
