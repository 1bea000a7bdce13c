"""A run: data, flow, field and training; and how it is started."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from flowimg.settings.base import Seed, Settings
from flowimg.settings.data import ImageData, PointData
from flowimg.settings.field import MLP, UNet
from flowimg.settings.flow import (
    CosinePath,
    CosmapWeighting,
    IndependentCoupling,
    LinearPath,
    LogitNormalTimes,
    NoWeighting,
    OTCoupling,
    PowerWeighting,
    SkewedTimes,
    UniformTimes,
)
from flowimg.settings.sampling import Grid
from flowimg.settings.train import Optim, Train


def members(group: str) -> tuple[Any, ...]:
    """The settings that a group of `Config` may hold, one a kind."""
    return get_args(Config.model_fields[group].annotation)


class Config(Settings):
    """A run: data, flow, field and training."""

    run: Annotated[str, Field(min_length=1)] | None = None
    """The run's folder; by default runs/ and the name of the settings file."""
    seed: Seed = 0
    """Decides every random number of the run."""
    data: Annotated[PointData | ImageData, Field(discriminator="kind")] = PointData()
    """Where x_1 comes from."""
    path: Annotated[LinearPath | CosinePath, Field(discriminator="kind")] = LinearPath()
    """From noise to data."""
    coupling: Annotated[IndependentCoupling | OTCoupling, Field(discriminator="kind")] = IndependentCoupling()
    """Which noise goes with which data."""
    times: Annotated[UniformTimes | LogitNormalTimes | SkewedTimes, Field(discriminator="kind")] = UniformTimes()
    """Which flow times are trained on."""
    weighting: Annotated[NoWeighting | CosmapWeighting | PowerWeighting, Field(discriminator="kind")] = NoWeighting()
    """How much each flow time counts in the gradient; losses are told unweighted."""
    field: Annotated[MLP | UNet, Field(discriminator="kind")] = MLP()
    """The network."""
    optim: Optim = Optim()
    """The optimiser."""
    train: Train = Train()
    """The loop."""
    grid: Grid = Grid()
    """Samples drawn during training."""
    figures: bool = True
    """Draw RUN/figures and RUN/report.html at the end."""
    track: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Send metrics and grids to this tracker as well."""

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.field.learns != self.data.kind:
            fit = [m.model_fields["kind"].default for m in members("field") if m.learns == self.data.kind]
            raise ValueError(
                f"field.kind {self.field.kind} learns {self.field.learns}, but data.kind is {self.data.kind}: "
                f"use field.kind {' or '.join(fit)}"
            )
        if self.coupling.kind == "ot" and isinstance(self.data, ImageData) and self.data.augment:
            raise ValueError(
                "coupling.kind ot and data.augment: noise would depend on how a picture was moved, which the field is "
                "told, and no picture is drawn from such noise: give one of them"
            )
        return self


class Start(Settings):
    """How a run is started; not kept, so that the same settings may be started in another way."""

    resume: bool | Annotated[int, Field(ge=0)] = False
    """Go on, or fail where there is nothing to go on from; with a number, from the checkpoint of that step."""
    allow: tuple[str, ...] = ()
    """Settings that may differ from those of the run that is continued, by name; "data" for the data themselves."""
    dry_run: bool = False
    """Two real steps, saved, continued, sampled and evaluated in a temporary folder, and what the run will cost."""
    profile: bool = False
    """Where the time of a step goes, measured on a few: a page and a trace in RUN/profile; the run goes on."""
