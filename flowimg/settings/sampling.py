"""How the flow is followed, wherever samples are drawn."""

import re
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from flowimg.settings.base import LONGEST, SEEDS, SHORTEST, Positive, Settings, Unit

Exact = Literal["euler", "midpoint", "heun", "rk4", "ab2"]
"""Solvers with a given number of steps, which draw no noise on the way."""
Stochastic = Literal["sde", "sde2", "churn"]
"""Solvers that draw noise on the way."""
Fixed = Literal[Exact, Stochastic]
"""Solvers with a given number of steps."""
Solver = Literal[Fixed, "dopri5"]
ADAPTIVE = ("dopri5",)
"""Solvers that choose their own steps, within a tolerance."""
NOISE = {"sde": 1.0, "sde2": 1.0, "churn": 20.0}
"""The usual strength of the noise."""
NoiseShape = Literal["sigma", "constant", "middle"]
"""How noise goes over the flow time."""
Times = Literal["uniform", "edm", "diffusers"]


EARLY = "early"
"""The guide that is the run itself, earlier in its training."""


class GuideName(NamedTuple):
    """What --guide names; see `Solving.guide`. None where it does not say."""

    run: str | None
    step: int | None
    weights: str | float | None

    @classmethod
    def read(cls, text: str) -> "GuideName":
        """RUN[@STEP][:WEIGHTS], where RUN may be left out. A name that ends otherwise is all of it the run's."""
        found = re.fullmatch(r"(.*?)(?:@(\d{1,18}))?(?::(ema|raw|0?\.\d+))?", text, re.DOTALL)
        run, step, weights = found.groups() if found else (text, None, None)
        named = weights if weights in (None, "ema", "raw") else float(weights)
        return cls(run or None, int(step) if step else None, named)


def check_guide(guide: str | None) -> None:
    """Refuse a guide that names nothing.

    Raises:
        ValueError: If so.
    """
    name = None if guide in (None, EARLY) else GuideName.read(str(guide))
    if name and name.run == EARLY:
        raise ValueError(f"guide {guide}: early takes no step and no weights; a folder of that name is ./early")
    if name and isinstance(name.weights, float) and not SHORTEST <= name.weights <= LONGEST:
        raise ValueError(f"guide {guide}: an average has a length from {SHORTEST} to {LONGEST}")


class Solving(Settings):
    """How the flow is followed, wherever samples are drawn."""

    solver: Solver = "euler"
    """The solver; sde, sde2 and churn draw noise on the way."""
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
    guide: Annotated[str, Field(min_length=1)] | None = None
    """Autoguidance: go away from what a network that learned less would do. early: the run itself, earlier in its
    training; RUN@STEP:WEIGHTS names any (each part may be left out): another run, a step, ema, raw or a length."""
    guide_scale: Annotated[float, Field(ge=0)] | None = None
    """Autoguidance scale, by default 1.5; 1 means none."""
    guide_interval: tuple[Unit, Unit] = (0.0, 1.0)
    """Apply autoguidance only between these flow times, in [0, 1]."""
    noise: Annotated[float, Field(ge=0)] | None = None
    """Strength of the noise of sde and sde2: g^2 is this times noise_shape (by default 1); of churn: EDM's S_churn (by
    default 20)."""
    noise_shape: NoiseShape | None = None
    """Noise of sde and sde2 over the flow time: as the path's sigma (by default), constant, or most half way."""
    noise_interval: tuple[Unit, Unit] = (0.0, 1.0)
    """Draw noise only between these flow times, in [0, 1]."""

    @model_validator(mode="after")
    def _intervals(self) -> "Solving":
        for name in ("guidance_interval", "guide_interval", "noise_interval"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name} {[low, high]} must rise: noise is 0, data 1")
        return self

    @model_validator(mode="after")
    def _guide_is_one(self) -> "Solving":
        check_guide(self.guide)
        return self

    @model_validator(mode="after")
    def _acts(self) -> "Solving":
        fields, used = type(self).model_fields, set(self._solvers())
        if self.stochastic and self.num_steps == 1:
            raise ValueError(f"solver {self.solver} with num_steps 1 draws no noise: its one step ends at the data")
        idle = {*GUIDES} if self.guide is None else set()
        idle |= set() if used & {*NOISE} else {*NOISES}
        idle |= set() if used & {"sde", "sde2"} else {"noise_shape"}
        for name in sorted(name for name in idle if getattr(self, name) != fields[name].default):
            if name in GUIDES:
                raise ValueError(f"{name} without a guide does nothing: give guide, for example early, or leave it out")
            who = "sde and sde2" if name == "noise_shape" else "sde, sde2 and churn"
            raise ValueError(f"{name} is for the solvers {who}, and solver is {', '.join(sorted(used))}: leave it out")
        return self

    def _idle(self) -> set[str]:
        """The settings that do nothing beside the others."""
        idle = {"num_steps", "times", "shift"} if self.adaptive else {"tolerance"}
        idle |= set() if self.stochastic else set(NOISES)
        idle |= {"noise_shape"} if self.solver == "churn" else set()
        idle |= {"guidance_interval"} if self.guidance == 1 else set()
        return idle | ({"guide", *GUIDES} if self.guide is None else set())

    def _solvers(self) -> tuple[str, ...]:
        """The solvers that are used."""
        return (self.solver,)

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise on the way."""
        return self.solver in get_args(Stochastic)

    @property
    def noise_strength(self) -> float:
        """The strength of the noise that the solver draws."""
        return NOISE.get(self.solver, 0.0) if self.noise is None else self.noise

    @property
    def shape_of_noise(self) -> str:
        """How the noise of sde and sde2 goes over the flow time."""
        return self.noise_shape or "sigma"

    @property
    def autoguidance(self) -> float:
        """The scale of autoguidance, where there is a guide."""
        return 1.5 if self.guide_scale is None else self.guide_scale

    @property
    def evaluations(self) -> int:
        """Evaluations of a network for one of the velocity, where guidance of all kinds is on."""
        return 1 + (self.guidance != 1) + (self.guide is not None and self.autoguidance != 1)

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps, within a tolerance."""
        return self.solver in ADAPTIVE

    @property
    def record(self) -> dict[str, Any]:
        """These settings as plain values: None where the solver does not use them, guide and noise if there are any."""
        unused = {"num_steps": None} if self.adaptive else {"tolerance": None}
        return self._without(self._idle() & {"guide", *GUIDES, *NOISES}) | unused

    @property
    def acting(self) -> dict[str, Any]:
        """The settings that decide the samples, as plain values."""
        return self._without(self._idle())

    def _without(self, names: set[str]) -> dict[str, Any]:
        """The settings except these, as plain values, with what a default stands for."""
        kept = self.model_dump(mode="json", include=set(Solving.model_fields) - names)
        meant = {"noise": self.noise_strength, "noise_shape": self.shape_of_noise, "guide_scale": self.autoguidance}
        return kept | {name: value for name, value in meant.items() if name in kept}


NOISES, GUIDES = ("noise", "noise_shape", "noise_interval"), ("guide_scale", "guide_interval")
"""Settings that only stochastic solvers use, and those that only autoguidance does."""


class Grid(Solving):
    """The samples drawn during training, always from the same noise."""

    count: Annotated[int, Field(ge=1, le=SEEDS)] = 100
    """Number of images in the grid, or of points in the plot."""
