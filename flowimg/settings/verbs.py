"""The settings of the verbs that use a run, a source or this machine."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import Fraction, Length, Positive, Seed, Settings, Weights, one_of
from flowimg.settings.data import ImageData
from flowimg.settings.sampling import Solver, Solving


class Drawing(Solving):
    """What every verb needs that draws from a run's field."""

    run: str
    """The run's folder."""
    weights: Weights = "ema"
    """The moving average, the weights as they are (raw), or an average of this length (flowimg ema lists them)."""
    step: Annotated[int, Field(ge=0)] | None = None
    """The checkpoint of this step instead of the newest."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto is bf16 for U-Nets on the CPUs and GPUs that are fast in it, else fp32."""

    @model_validator(mode="after")
    def _acts(self) -> "Drawing":
        if self.guidance_interval != (0, 1) and all(scale == 1 for scale in self._scales()):
            raise ValueError("guidance_interval without guidance does nothing: give --guidance, or leave it out")
        return self

    def _scales(self) -> tuple[float, ...]:
        return (self.guidance,)


class Many(Drawing):
    """What verbs need that draw as many samples as they are asked for."""

    batch_size: Positive | None = None
    """Samples at once; changes speed and memory only, and with dopri5 what it is given by its tolerance."""
    compile: Annotated[bool | Literal["auto"], one_of("true, false and auto")] = "auto"
    """Compile the field for speed; auto does on GPUs, for 4,000 calls of it and more. Rounds otherwise."""


class Sample(Many):
    """Draw samples from a run's newest checkpoint."""

    count: Positive = 64
    """How many."""
    seed: Seed = 0
    """Seed of the first; sample k has seed + k."""
    label: int | str | None = None
    """A class by name or number; by default the classes take turns."""
    out: str | None = None
    """Where to; by default RUN/generated/ and the settings above."""
    format: Literal["png", "npz", "npy", "parquet"] | None = None
    """A PNG a picture, or one file of all; by default png, npz for points. The grid is always drawn."""


class Figures(Drawing):
    """Draw the figures of a run: its flow, its curves."""

    seed: Seed = 0
    """Seed of the first particle or picture."""


class Report(Settings):
    """Write one page about a run, or about several side by side."""

    run: str
    """The run's folder."""
    others: tuple[str, ...] = ()
    """Folders of other runs to set beside it; may be given without their name, after RUN."""
    out: str | None = None
    """A new file; by default RUN/report.html, or RUN/comparison.html for several runs."""


class Play(Settings):
    """Open a page in the browser to play with a run."""

    run: str
    """The run's folder."""
    weights: Weights = "ema"
    """The moving average, the weights as they are (raw), or an average of this length (flowimg ema lists them)."""
    step: Annotated[int, Field(ge=0)] | None = None
    """The checkpoint of this step instead of the newest."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto is bf16 for U-Nets on the CPUs and GPUs that are fast in it, else fp32."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address that the page is served at; this one is seen from this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Its port; 0 for any free one, by default the first free one from 7860."""
    open: bool = False
    """Open it in the browser."""


class Doctor(Settings):
    """Look whether this machine, and a folder, can be trusted with a long run."""

    run: Annotated[str, Field(min_length=1)] = "runs"
    """Where runs are to lie."""


class Interpolate(Drawing):
    """Draw the pictures between the noises of seeds."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=2)] = (0, 1)
    """From the first to the second, on to the third, ...; a row of the grid each."""
    frames: Annotated[int, Field(ge=2)] = 9
    """Pictures from one seed to the next, both included."""
    label: int | str | None = None
    """A class by name or number, for conditional runs; by default the first."""
    out: str | None = None
    """Where to; by default RUN/generated/ and the settings above."""

    @model_validator(mode="after")
    def _apart(self) -> "Interpolate":
        if twice := [a for a, b in pairwise(self.seeds) if a == b]:
            raise ValueError(f"seeds {list(self.seeds)} has {twice[0]} twice in a row")
        return self


class Invert(Drawing):
    """Carry pictures back to their noise, and forth again."""

    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the network; what is followed back to its noise is followed exactly, unless bf16 is asked for."""
    pictures: tuple[str, ...] = ()
    """Files of pictures; they are cut and scaled as the run's data were."""
    solver: Solver = "dopri5"
    """How the flow is followed, there and back."""
    label: int | str | None = None
    """The class of the pictures by name or number; by default none."""
    out: str | None = None
    """Where to; by default RUN/generated/ and the settings above."""


class Export(Settings):
    """Write a run's network as a folder that diffusers reads by itself."""

    run: str
    """The run's folder."""
    out: str | None = None
    """A new folder; may be given without its name, after RUN."""
    weights: Weights = "ema"
    """The moving average, the weights as they are (raw), or an average of this length (flowimg ema lists them)."""
    step: Annotated[int, Field(ge=0)] | None = None
    """The checkpoint of this step instead of the newest."""
    num_steps: Positive = 50
    """Euler steps that the folder's scheduler is set for."""
    push_to_hub: str | None = None
    """Upload the folder to this repository of the Hugging Face hub, OWNER/NAME."""
    private: bool = True
    """A repository made by push_to_hub is seen by its owner alone."""


class Ema(Settings):
    """Make averages of the weights, of any length, of those that a run kept aside; without --length, list them."""

    run: str
    """The run's folder."""
    length: tuple[Length, ...] = ()
    """Share of the run that an average looks back over: its profile's standard deviation over the steps."""
    step: Annotated[int, Field(ge=1)] | None = None
    """Averages at this step, one that kept some, instead of the newest."""


class Likelihood(Drawing):
    """Measure the density that a run's field gives to data: nats, or bits a dimension."""

    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the network; what is followed back to its noise is followed exactly, unless bf16 is asked for."""
    count: Positive | None = None
    """How many; by default 10,000 fresh points or 100 pictures."""
    split: str | None = None
    """Images: of this split of the run's source, as test; by default the pictures held out."""
    probes: Positive = 1
    """Images: signs that the divergence is estimated with, each for another pass; on average the result is the same."""
    seed: Seed = 0
    """Seed of points, dequantisation and probes."""
    solver: Solver = "dopri5"
    """How the flow is followed."""
    batch_size: Positive | None = None
    """Samples at once; changes speed and memory only, and with dopri5 what it is given by its tolerance."""

    @model_validator(mode="after")
    def _plain(self) -> "Likelihood":
        if self.guidance != 1:
            raise ValueError(f"guidance {self.guidance:g}: only an unguided field has a density, leave it out")
        return self


class Check(ImageData):
    """Look every picture of a source over: counts, sizes, classes, what is twice, what is broken and why."""

    source: Annotated[str, Field(min_length=1)] = "digits"
    """As data.source of a run, or a settings file, whose data are meant."""
    max_bad: Fraction = 0.01
    """End with exit status 3 if a larger share is broken."""
    list_most: Annotated[int, Field(ge=0)] = 20
    """Files named at most for each kind of finding; --json has all."""


class Preview(ImageData):
    """Draw a grid of what a field will see of a source: cut, scaled, augmented, in the order of the first step."""

    source: Annotated[str, Field(min_length=1)] = "digits"
    """As data.source of a run, or a settings file, whose data are meant."""
    out: str = "preview.png"
    """A new file, a PNG."""
    count: Annotated[int, Field(ge=1, le=4096)] = 64
    """Pictures."""
    seed: Seed = 0
    """Seed of the run, which decides the order, windows, flips and augmentation."""

    @model_validator(mode="after")
    def _png(self) -> "Preview":
        if not self.out.endswith(".png"):
            raise ValueError(f"out {self.out} would be a PNG: give it a name that ends in .png")
        return self
