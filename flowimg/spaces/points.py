"""Points in the plane, stored as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Points:
    """Points of a known distribution; see `Space`.

    Args:
        extent: Half the side of a square around the origin that holds the data.
        examples: (N) -> N exact data points, shape (N, 2), to show beside samples.
    """

    extent: float
    examples: Callable[[int], Tensor]
    shape: ClassVar[tuple[int, ...]] = (2,)
    levels: ClassVar[int | None] = None
    noise_shape: ClassVar[tuple[int, ...] | None] = None
    at_once: ClassVar[int] = 25_000
    in_a_figure: ClassVar[int] = 2**62
    formats: ClassVar[tuple[str, ...]] = ("npz", "npy")

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Points as they are, float32."""
        return stored.float()

    def decode(self, x: Tensor) -> Tensor:
        """Points as they are, float32."""
        return x.float()

    def rows(self, x: Tensor) -> Tensor:
        """Points, shape (B, 2)."""
        return x.float()

    def of_rows(self, rows: Tensor) -> Tensor:
        """Points, shape (B, 2)."""
        return rows

    def grid(self, x: Tensor, columns: int | None = None) -> Tensor | None:
        """Points are not pictures: `figures.samples` plots them."""
        return None
