"""What every space answers: what x is, and how it is stored.

    stored --encode--> x --decode--> stored

A field learns and draws x; files, data sets and people have what is stored.
"""

from typing import Protocol

from torch import Tensor


class Space(Protocol):
    """A space of samples x of one shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample, *D."""
        ...

    @property
    def levels(self) -> int | None:
        """Levels of a stored number, for dequantisation; None where stored numbers are continuous."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Shape of the noise that `encode` needs for a sample; None where it needs none."""
        ...

    @property
    def at_once(self) -> int:
        """Samples to draw at once, if nothing is said."""
        ...

    @property
    def in_a_figure(self) -> int:
        """Samples in one figure at most; files hold all."""
        ...

    @property
    def formats(self) -> tuple[str, ...]:
        """File formats of samples, the usual one first."""
        ...

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored samples, shape (B, *stored), as x, shape (B, *D), float32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Samples x, shape (B, *D), as they are stored."""
        ...

    def rows(self, x: Tensor) -> Tensor:
        """Samples as an array of files and people: pictures as (B, H, W, C), points as (B, 2)."""
        ...

    def of_rows(self, rows: Tensor) -> Tensor:
        """What `rows` gave, as x again."""
        ...

    def grid(self, x: Tensor, columns: int | None = None) -> Tensor | None:
        """One picture of all samples, (H, W, C) uint8; None where there is none."""
        ...
