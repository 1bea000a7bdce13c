"""The settings of `flowimg evaluate`."""

from typing import Annotated, get_args

from pydantic import Field, model_validator

from flowimg.settings.base import Positive, SampleSeed
from flowimg.settings.sampling import NOISE, Exact, Fixed, Times
from flowimg.settings.verbs import Many


class Evaluate(Many):
    """Compare a run's samples with its data."""

    count: Annotated[int, Field(ge=2)] | None = None
    """Number of samples; by default 20,000 points or 1,000 images."""
    seed: SampleSeed = 0
    """Seed of the first sample; sample k has seed + k, which is below 2^32."""
    num_steps: Positive = 100
    """Number of solver steps; dopri5 chooses its own."""
    features: Annotated[str, Field(min_length=1)] = "proxy"
    """Images: the network whose features are compared. inception gives FID; a folder or hub id names a network in
    safetensors, such as CLIP or DINOv2; proxy is a small classifier of the run's labels, with random weights if the
    run has no labels."""
    inception: str | None = None
    """File with the weights of Inception; by default the one in torch's cache."""
    download: bool = False
    """Download the network of --features if it is not on this machine."""
    max_off: float | None = None
    """Points: fail (exit status 1) if a larger fraction of samples lies outside the support of the data."""
    max_sw2: float | None = None
    """Points: fail if the sliced Wasserstein-2 distance to new data is larger."""
    max_mass_ratio: float | None = None
    """Points: fail if the fullest part of the support holds more than this many times the samples of the emptiest."""
    max_frechet: float | None = None
    """Images: fail if the Fréchet distance is larger."""
    sweep_nfe: tuple[Positive, ...] = ()
    """Instead, plot the distance against these numbers of network evaluations per sample; a guided step counts 2."""
    sweep_solvers: Annotated[tuple[Fixed, ...], Field(min_length=1)] = get_args(Exact)
    """Solvers in the sweep of sweep_nfe."""
    sweep_times: Annotated[tuple[Times, ...], Field(min_length=1)] = ("uniform", "edm")
    """Time grids in the sweep of sweep_nfe."""
    sweep_shifts: Annotated[tuple[Annotated[float, Field(ge=0.001, le=1000)], ...], Field(min_length=1)] = (0.5, 1, 2)
    """Shifts of the uniform time grid in the sweep of sweep_nfe."""
    sweep_guidance: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Instead, plot agreement with the label, coverage and distance against these guidance scales."""

    @property
    def limited(self) -> bool:
        """Whether a limit of a score is given."""
        limits = (self.max_off, self.max_sw2, self.max_mass_ratio, self.max_frechet)
        return any(limit is not None for limit in limits)

    def _solvers(self) -> tuple[str, ...]:
        return self.sweep_solvers if self.sweep_nfe else (self.solver,)

    def _scales(self) -> tuple[float, ...]:
        return self.sweep_guidance or (self.guidance,)

    @model_validator(mode="after")
    def _one_sweep(self) -> "Evaluate":
        if self.sweep_nfe and self.sweep_guidance:
            raise ValueError("sweep_nfe and sweep_guidance: give one of them")
        if self.sweep_guidance and self.guidance != 1:
            raise ValueError("guidance: --sweep-guidance sets it, so leave it out")
        drawn = {*self.sweep_solvers} & {*NOISE}
        if self.sweep_nfe and self.noise is not None and "churn" in drawn and len(drawn) > 1:
            raise ValueError("noise means another thing to churn than to sde and sde2: sweep either, or leave it out")
        swept = ("sweep_solvers", "sweep_times", "sweep_shifts")
        fixed = ("solver", "num_steps", "times", "shift", "tolerance")
        for name in fixed if self.sweep_nfe else swept:
            if getattr(self, name) != type(self).model_fields[name].default:
                if self.sweep_nfe:
                    raise ValueError(f"{name}: --sweep-nfe sets it, so leave it out")
                raise ValueError(f"{name} is only for --sweep-nfe: leave it out, or give both")
        if self.sweep_shifts != type(self).model_fields["sweep_shifts"].default and "uniform" not in self.sweep_times:
            raise ValueError("sweep_shifts: only the uniform grid has shifts, and sweep_times leaves it out")
        return self
