"""What all settings share: strict, frozen models and the types of their values."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator

SEEDS = 2**32
"""Seeds of samples lie below: a generator keeps 32 bits, so 5 and 5 + 2^32 would draw the same."""

Positive = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
SampleSeed = Annotated[int, Field(ge=0, lt=SEEDS)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=0, le=255)]
SHORTEST, LONGEST = 0.001, 0.28
"""The lengths that an average of the weights may have."""
Length = Annotated[float, Field(ge=SHORTEST, le=LONGEST)]


def one_of(words: str) -> WrapValidator:
    """A single error for a setting of several types, in place of one error per type."""

    def check(value: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError(f"{value!r} is none of {words}") from None

    return WrapValidator(check)


Weights = Annotated[Literal["ema", "raw"] | Length, one_of("ema, raw and a length (0.001 to 0.28)")]
Label = Annotated[int | str | None, one_of("the names and numbers of classes; a name of several words needs quotes")]
"""A class by name or number; which names there are, only the run knows."""


class Settings(BaseModel):
    """Strict, frozen, no unknown keys."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


Model = TypeVar("Model", bound=Settings)
