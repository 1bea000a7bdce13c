"""The settings of a run, and how it is started."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from flowimg.settings import flow
from flowimg.settings.base import Seed, Settings
from flowimg.settings.data import ImageData, PointData
from flowimg.settings.field import MLP, DiT, JiT, UNet
from flowimg.settings.sampling import EARLY, Grid, GuideName
from flowimg.settings.train import Optim, Train


def members(group: str) -> tuple[Any, ...]:
    """The settings classes that a group of `Config` may hold, one for each kind."""
    return get_args(Config.model_fields[group].annotation)


class Config(Settings):
    """The settings of a run: data, flow, network and training."""

    run: Annotated[str, Field(min_length=1)] | None = None
    """The run's folder; by default runs/NAME for a settings file NAME.yaml."""
    seed: Seed = 0
    """Seed of every random number in the run."""
    data: Annotated[PointData | ImageData, Field(discriminator="kind")] = PointData()
    """The data."""
    path: Annotated[flow.Path, Field(discriminator="kind")] = flow.LinearPath()
    """The path from noise to data."""
    coupling: Annotated[flow.Coupling, Field(discriminator="kind")] = flow.IndependentCoupling()
    """How noise and data are paired."""
    times: Annotated[flow.Times, Field(discriminator="kind")] = flow.UniformTimes()
    """The distribution of training times."""
    weighting: Annotated[flow.Weighting, Field(discriminator="kind")] = flow.NoWeighting()
    """Weight of each flow time in the gradient; reported losses are unweighted."""
    field: Annotated[MLP | DiT | JiT | UNet, Field(discriminator="kind")] = MLP()
    """The network."""
    optim: Optim = Optim()
    """The optimiser."""
    train: Train = Train()
    """The training loop."""
    grid: Grid = Grid()
    """Samples drawn during training."""
    figures: bool = True
    """Write RUN/figures and RUN/report.html at the end."""
    track: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Also send metrics and sample grids to this tracker."""

    @property
    def drops(self) -> tuple[tuple[str, float], ...]:
        """The share of null rows of each part of a condition that is dropped in training."""
        return (("label", self.train.label_drop),)

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.field.learns != self.data.kind:
            fit = [m.model_fields["kind"].default for m in members("field") if m.learns == self.data.kind]
            raise ValueError(
                f"field.kind {self.field.kind} learns {self.field.learns}, but data.kind is {self.data.kind}: "
                f"use field.kind {' or '.join(fit)}"
            )
        if self.data.numbers and not self.field.takes_numbers:
            raise ValueError(f"field.kind {self.field.kind} has no input for what data.augment did: use jit or unet")
        if getattr(self.field, "output", "v") != "v" and self.path.kind != "linear":
            raise ValueError(f"field.output x is for the linear path, and path.kind is {self.path.kind}: give output v")
        asked = self.grid.guide
        if asked == EARLY and not self.train.snapshots:
            raise ValueError(
                "grid.guide early is taken from the snapshots, and train.snapshots is 0: give, for example, 32"
            )
        if asked not in (None, EARLY) and GuideName.read(asked).run is None:
            raise ValueError(f"grid.guide {asked} names no run: during training the run's own guide is early")
        if self.train.keep_best not in (None, "loss") and not self.data.held_out:
            raise ValueError(
                f"train.keep_best {self.train.keep_best} needs held-out images, and data.held_out is 0: use another"
            )
        if self.coupling.kind == "ot" and isinstance(self.data, ImageData) and self.data.augment:
            raise ValueError(
                "coupling.kind ot and data.augment do not work together: noise would depend on the augmentation, which "
                "the network is conditioned on, and samples are drawn from other noise. Give one of them"
            )
        return self


class Start(Settings):
    """How a run is started; this is not saved with its settings, so the next start may differ."""

    resume: bool | Annotated[int, Field(ge=0)] = False
    """Continue the run, or fail if it has no checkpoint; with a number, continue from the checkpoint of that step."""
    allow: tuple[str, ...] = ()
    """Names of settings that may differ from the run that is continued; "data" allows changed data files."""
    dry_run: bool = False
    """Try everything once on two steps in a temporary folder, and estimate what the run will cost."""
    profile: bool = False
    """Also measure where the time of a step goes: writes a page and a trace to RUN/profile."""
