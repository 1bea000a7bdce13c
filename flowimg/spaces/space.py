"""What every space answers: what x is, and how it is stored.

    stored --encode--> x --decode--> stored

A field learns and draws x; data sets and files hold what is stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from torch import Tensor

Choice = TypeVar("Choice")


class Space(ABC):
    """A space of samples x of one shape.

    `noise_shape` is the shape of the noise that `encode` needs for a sample (None: none); `at_once` is the usual number
    of samples to draw at once, `in_a_figure` the usual most to show in one figure.
    """

    shape: tuple[int, ...]
    noise_shape: ClassVar[tuple[int, ...] | None] = None
    at_once: ClassVar[int]
    in_a_figure: ClassVar[int]

    @property
    def levels(self) -> int | None:
        """The levels of a stored number, for dequantisation; None if it is continuous."""
        return None

    @property
    @abstractmethod
    def words(self) -> str:
        """The kind of samples, as people say it."""

    @property
    @abstractmethod
    def formats(self) -> tuple[str, ...]:
        """The file formats of samples, the usual one first."""

    @property
    def fits_a_figure(self) -> int:
        """The most samples that one figure can show."""
        return self.in_a_figure

    @abstractmethod
    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored samples, shape (B, *stored), as x, shape (B, *D), float32."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Samples x, shape (B, *D), as they are stored."""

    def rows(self, x: Tensor) -> Tensor:
        """Samples as files and people have them: pictures as (B, H, W, C), points as (B, 2)."""
        return self.decode(x)

    def of_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return self.encode(rows)

    def grid(self, x: Tensor, columns: int | None = None, width: int | None = None) -> Tensor | None:
        """One picture of all samples, (H, W, C) uint8; None where samples are no pictures."""
        return None


def chosen(table: Mapping[type, Choice], space: Space) -> Choice:
    """What a table has for the kind of a space, or for the nearest of those that it is made of."""
    return next(table[kind] for kind in type(space).__mro__ if kind in table)
