"""The settings of the verbs that draw from given pictures."""

from typing import Annotated

from pydantic import Field, model_validator

from flowimg.settings.base import Label, Positive, SampleSeed
from flowimg.settings.sampling import Solver
from flowimg.settings.verbs import Many


class FromPictures(Many):
    """A verb that draws several pictures from each that it is given."""

    pictures: tuple[str, ...] = ()
    """Image files, which may follow RUN directly; they are cropped and resized like the run's data."""
    count: Positive = 4
    """Number of images drawn from each picture."""
    seed: SampleSeed = 0
    """Seed of the first of them; the next ones have the next seeds."""
    label: Label = None
    """Name of the class of the images; by default no class."""
    out: str | None = None
    """Where the images are written; by default a folder in RUN/generated/ named after these settings."""


class Inpaint(FromPictures):
    """Draw a part of pictures anew, and keep the rest."""

    mask: tuple[str, ...] = ()
    """Image files in which what is to be drawn is white (grey level 128 and above): one for all pictures, or one each,
    of the picture's size; by default the transparent parts of the pictures are drawn."""
    num_steps: Positive = 25
    """Number of solver steps from noise to image; rounds make most of them again."""
    rounds: Positive = 10
    """How often each stretch of steps is made, each time with fresh noise; more rounds fit the parts better together
    and take longer."""
    stretch: Positive | None = None
    """Solver steps of a stretch; by default a fifth of all."""

    @property
    def steps_a_stretch(self) -> int:
        """Solver steps of a stretch."""
        return max(1, self.num_steps // 5) if self.stretch is None else self.stretch

    @model_validator(mode="after")
    def _steps(self) -> "Inpaint":
        if self.adaptive:
            raise ValueError(f"solver {self.solver} chooses its own steps, and the known part is set after each: give "
                             "one with num_steps")  # fmt: skip
        if self.rounds > 1 and self.steps_a_stretch >= self.num_steps:
            raise ValueError(f"stretch {self.steps_a_stretch} with num_steps {self.num_steps}: rounds go back from the "
                             "second stretch on, so give a smaller stretch, more steps, or rounds 1")  # fmt: skip
        if self.rounds == 1 and self.stretch is not None:
            raise ValueError(f"stretch {self.stretch} with rounds 1 does nothing: leave it out, or give more rounds")
        if self.solver == "ab2" and self.rounds > 1:
            raise ValueError("solver ab2 uses the step before, which rounds make again: give another, or rounds 1")
        return self


class Vary(FromPictures):
    """Draw pictures like those given."""

    solver: Solver = "heun"
    """The solver; sde, sde2 and churn draw noise on the way."""
    strength: Annotated[float, Field(ge=0, le=1)] = 0.6
    """How much is drawn anew: 0 nothing, 1 all of it. As in diffusers, the flow starts at time 1 - strength."""
    inversion: bool = False
    """Carry each picture back to its noise, turn that by strength towards the noise of a seed, and draw again."""

    @model_validator(mode="after")
    def _possible(self) -> "Vary":
        if self.inversion and self.stochastic:
            raise ValueError(f"solver {self.solver} draws noise, so no picture has one noise to go back to: leave out "
                             "inversion, or give euler, midpoint, heun, rk4, ab2 or dopri5")  # fmt: skip
        return self
