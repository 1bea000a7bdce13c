"""The settings of `flowimg evaluate`."""

from typing import Annotated, get_args

from pydantic import Field, model_validator

from flowimg.settings.base import Positive, Seed
from flowimg.settings.sampling import Fixed, Times
from flowimg.settings.verbs import Many


class Evaluate(Many):
    """Measure a run's samples against its data."""

    count: Annotated[int, Field(ge=2)] | None = None
    """Samples; by default 20,000 points or 1,000 images."""
    seed: Seed = 0
    """Seed of the first sample."""
    num_steps: Positive = 100
    """Solver steps."""
    features: Annotated[str, Field(min_length=1)] = "proxy"
    """Images: what samples and data are compared in: inception, for FID; a folder or hub id of a picture network in
    safetensors, as CLIP or DINOv2; proxy, a small classifier of the run's own labels or, without any, proxy-random."""
    inception: str | None = None
    """The file of Inception's weights; by default the one in torch's cache."""
    download: bool = False
    """Fetch the network of --features where it is not on this machine."""
    max_off: float | None = None
    """Points: fail (exit status 1) if a larger share lies off the support."""
    max_sw2: float | None = None
    """Points: fail if the sliced Wasserstein-2 distance to fresh data is larger."""
    max_mass_ratio: float | None = None
    """Points: fail if the fullest part holds more than this many times the emptiest."""
    max_frechet: float | None = None
    """Images: fail if the Fréchet distance is larger."""
    sweep_nfe: tuple[Positive, ...] = ()
    """Instead: draw the distance over these numbers of evaluations, for each solver and grid; guided ones count 2."""
    sweep_solvers: Annotated[tuple[Fixed, ...], Field(min_length=1)] = get_args(Fixed)
    """Solvers of that sweep."""
    sweep_times: Annotated[tuple[Times, ...], Field(min_length=1)] = ("uniform", "edm")
    """Grids of times of that sweep."""
    sweep_shifts: Annotated[tuple[Annotated[float, Field(ge=0.001, le=1000)], ...], Field(min_length=1)] = (0.5, 1, 2)
    """Shifts of its uniform grid."""
    sweep_guidance: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Instead: draw agreement with the label, coverage and distance over these guidance scales."""

    def _scales(self) -> tuple[float, ...]:
        return self.sweep_guidance or (self.guidance,)

    @model_validator(mode="after")
    def _one_sweep(self) -> "Evaluate":
        if self.sweep_nfe and self.sweep_guidance:
            raise ValueError("sweep_nfe and sweep_guidance: give one of them")
        if self.sweep_guidance and self.guidance != 1:
            raise ValueError("guidance is what --sweep-guidance goes through: leave it out")
        swept = ("sweep_solvers", "sweep_times", "sweep_shifts")
        fixed = ("solver", "num_steps", "times", "shift", "tolerance")
        for name in fixed if self.sweep_nfe else swept:
            if getattr(self, name) != type(self).model_fields[name].default:
                other = "is what --sweep-nfe goes through" if self.sweep_nfe else "is of --sweep-nfe"
                raise ValueError(f"{name} {other}: leave it out{'' if self.sweep_nfe else ', or give both'}")
        if self.sweep_shifts != type(self).model_fields["sweep_shifts"].default and "uniform" not in self.sweep_times:
            raise ValueError("sweep_shifts are of the uniform grid, which sweep_times leaves out")
        return self
