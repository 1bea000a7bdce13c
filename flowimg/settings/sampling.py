"""How the flow is followed, wherever samples are drawn."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import SEEDS, Positive, Settings, Unit

Fixed = Literal["euler", "midpoint", "heun", "rk4", "ab2"]
"""Solvers with a given number of steps."""
Solver = Literal[Fixed, "dopri5"]
ADAPTIVE = ("dopri5",)
"""Solvers that choose their own steps, within a tolerance."""
Times = Literal["uniform", "edm", "diffusers"]


class Solving(Settings):
    """How the flow is followed, wherever samples are drawn."""

    solver: Solver = "euler"
    """ODE solver."""
    num_steps: Positive = 50
    """Number of solver steps; dopri5 chooses its own."""
    times: Times = "uniform"
    """Flow times of the steps: evenly spaced, at EDM's noise levels, or as in diffusers' scheduler."""
    shift: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Above 1 moves these times towards noise, below 1 towards data. With --times diffusers this is the scheduler's
    set_shift(shift), not the shift of its constructor."""
    tolerance: Annotated[float, Field(ge=1e-8, le=0.1)] = 1e-5
    """Largest error per step of dopri5; below about 1e-7 the rounding of fp32 is larger."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Guidance scale, for class-conditional networks; 1 means no guidance."""
    guidance_interval: tuple[Unit, Unit] = (0.0, 1.0)
    """Apply guidance only between these flow times, in [0, 1]."""

    @model_validator(mode="after")
    def _interval(self) -> "Solving":
        if self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} must rise: noise is 0, data 1")
        return self

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps, within a tolerance."""
        return self.solver in ADAPTIVE

    @property
    def record(self) -> dict[str, Any]:
        """These settings as plain values, with None for those that the solver does not use."""
        unused = {"num_steps": None} if self.adaptive else {"tolerance": None}
        return self.model_dump(mode="json", include=set(Solving.model_fields)) | unused


class Grid(Solving):
    """The samples drawn during training, always from the same noise."""

    count: Annotated[int, Field(ge=1, le=SEEDS)] = 100
    """Number of images in the grid, or of points in the plot."""
