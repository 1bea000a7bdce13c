"""How the flow is followed, wherever samples are drawn."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import Positive, Settings, Unit

Fixed = Literal["euler", "midpoint", "heun", "rk4", "ab2"]
"""Solvers that take as many steps as they are told."""
Solver = Literal[Fixed, "dopri5"]
ADAPTIVE = ("dopri5",)
"""Those that choose their own steps, by a tolerance."""
Times = Literal["uniform", "edm", "diffusers"]


class Solving(Settings):
    """How the flow is followed, wherever samples are drawn."""

    solver: Solver = "euler"
    """How the flow is followed."""
    num_steps: Positive = 50
    """Solver steps; dopri5 chooses its own."""
    times: Times = "uniform"
    """The flow times a solver visits: evenly spread, EDM's noise levels, or those of diffusers' scheduler."""
    shift: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """Above 1 moves those times towards noise, below 1 towards data."""
    tolerance: Annotated[float, Field(ge=1e-8, le=0.1)] = 1e-5
    """Largest error of a step of dopri5; fields round to about 1e-7."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Guidance scale for conditional fields; 1 is none."""
    guidance_interval: tuple[Unit, Unit] = (0.0, 1.0)
    """The flow times between which there is guidance."""

    @model_validator(mode="after")
    def _interval(self) -> "Solving":
        if self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} must rise: noise is 0, data 1")
        return self

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps, by a tolerance."""
        return self.solver in ADAPTIVE

    @property
    def record(self) -> dict[str, Any]:
        """How the flow is followed, without the settings that the solver does not use (None)."""
        return {
            "solver": self.solver,
            "num_steps": None if self.adaptive else self.num_steps,
            "times": self.times,
            "shift": self.shift,
            "tolerance": self.tolerance if self.adaptive else None,
            "guidance": self.guidance,
            "guidance_interval": list(self.guidance_interval),
        }


class Grid(Solving):
    """The samples drawn during training, from fixed noise."""

    count: Positive = 100
    """Samples: pictures in the grid, or points in the plot."""
