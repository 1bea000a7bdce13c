"""The settings of the verbs that use a run, a source of images or this machine."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import Fraction, Label, Length, Positive, SampleSeed, Seed, Settings, Weights, one_of
from flowimg.settings.data import PAIR, ImageData
from flowimg.settings.sampling import Solver, Solving, check_guide

Precision = Literal["auto", "fp32", "bf16"]
NODE = 8
"""GPUs in a node, for predictions."""


class OfRun(Settings):
    """A verb that takes a run."""

    run: str
    """The run's folder."""


class OfWeights(OfRun):
    """A verb that loads the network of a run."""

    weights: Weights = "ema"
    """Which weights: their moving average (ema), the last ones (raw), or a post-hoc average of this length."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Load the checkpoint of this step; by default the newest."""
    shape: Annotated[tuple[Positive, Positive] | None, one_of("null, and two numbers: height, width"), PAIR] = None
    """Height and width to draw, of a run with data.buckets; by default all of them in proportion where a verb draws
    many images, else the one nearest to a square."""


class Drawing(OfWeights, Solving):
    """A verb that draws from the network of a run."""

    precision: Precision = "auto"
    """Precision of the network; auto is bf16 for images on devices with fast bf16, otherwise fp32."""

    @model_validator(mode="after")
    def _guidance_acts(self) -> "Drawing":
        if self.guidance_interval != (0, 1) and all(scale == 1 for scale in self._scales()):
            raise ValueError("guidance_interval without guidance does nothing: give --guidance, or leave it out")
        return self

    def _scales(self) -> tuple[float, ...]:
        return (self.guidance,)


class Many(Drawing):
    """A verb that draws any number of samples."""

    batch_size: Positive | None = None
    """Samples per batch. Changes only speed and memory; with dopri5 also the results, within its tolerance."""
    compile: Annotated[bool | Literal["auto"], one_of("true, false and auto")] = "auto"
    """Compile the network; auto: on a GPU, from 4,000 evaluations on. Results change within rounding error."""


class Sample(Many):
    """Draw samples from a run."""

    count: Positive = 64
    """Number of samples."""
    seed: SampleSeed = 0
    """Seed of the first sample; sample k has seed + k, which is below 2^32."""
    label: Label = None
    """Name of the class of all samples; by default the classes take turns."""
    out: str | None = None
    """Where the samples are written; by default a folder in RUN/generated/ named after these settings."""
    format: Literal["png", "tiff", "npz", "npy", "parquet"] | None = None
    """png and tiff write a file per image, the others one file in total; by default png, tiff where png cannot hold
    the images, or npz for points."""


class Figures(Drawing):
    """Draw the figures of a run: its flow and its training curves."""

    seed: SampleSeed = 0
    """Seed of the first point or image drawn."""


class Report(OfRun):
    """Write one page about a run, or about several runs side by side."""

    others: tuple[str, ...] = ()
    """Folders of the runs to compare it with; these may follow RUN directly."""
    out: str | None = None
    """A new file; by default RUN/report.html, or RUN/comparison.html for several runs."""


class Play(OfWeights):
    """Open a page in the browser that draws samples from a run."""

    precision: Precision = "auto"
    """Precision of the network; auto is bf16 for images on devices with fast bf16, otherwise fp32."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address of the page; the default can be reached only from this machine."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of the page; 0 takes any free port, the default is the first free port from 7860."""
    open: bool = False
    """Open the page in the browser."""
    guide: Annotated[str, Field(min_length=1)] | None = None
    """Show a control for autoguidance, away from this network: early, or RUN@STEP:WEIGHTS."""

    @model_validator(mode="after")
    def _guide_is_one(self) -> "Play":
        check_guide(self.guide)
        return self


class Doctor(Settings):
    """Check that this machine and a folder are fit for a long run."""

    run: Annotated[str, Field(min_length=1)] = "runs"
    """The folder that runs will be written to."""


class Estimate(Settings):
    """Predict memory, step time and efficiency of a run on many GPUs, for each way to share its state."""

    processes: tuple[Positive, ...] = ()
    """Numbers of GPUs, each with one process: 1 to 8, or a multiple of 8, as nodes have eight."""
    gpu: Annotated[Literal["h100", "h200", "a100"], one_of("h100, h200 and a100")] = "h100"
    """The kind of GPU."""
    samples: Positive | None = None
    """Samples per GPU and step; by default train.batch_size, so that the batch grows with the number of GPUs."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the GPU's peak that the network reaches; by default as measured with a U-Net of similar size."""

    @model_validator(mode="after")
    def _whole_nodes(self) -> "Estimate":
        if cut := [count for count in self.processes if count > NODE and count % NODE]:
            raise ValueError(
                f"processes {cut[0]} leaves a node of {NODE} GPUs in part empty: give a multiple of {NODE}"
            )
        return self


class Interpolate(Drawing):
    """Draw the images between two or more seeds."""

    seeds: Annotated[tuple[SampleSeed, ...], Field(min_length=2)] = (0, 1)
    """Seeds to interpolate between; each row of the grid leads from one seed to the next."""
    frames: Annotated[int, Field(ge=2)] = 9
    """Images per row, including both ends."""
    label: Label = None
    """Name of the class of all images, for class-conditional runs; by default the first class."""
    out: str | None = None
    """Where the images are written; by default a folder in RUN/generated/ named after these settings."""

    @model_validator(mode="after")
    def _different_neighbours(self) -> "Interpolate":
        if twice := [a for a, b in pairwise(self.seeds) if a == b]:
            raise ValueError(f"seeds {list(self.seeds)} has {twice[0]} twice in a row")
        return self


class Backward(Drawing):
    """A verb that follows the flow from data to noise, which needs precision."""

    precision: Precision = "fp32"
    """Precision of the network; bf16 is faster, but data no longer return exactly from their noise."""
    solver: Solver = "dopri5"
    """ODE solver, from data to noise and from noise to data."""

    @model_validator(mode="after")
    def _one_flow(self) -> "Backward":
        if self.stochastic:
            raise ValueError(f"solver {self.solver} draws noise, so its flow has no way back and no density: give "
                             "dopri5, euler, midpoint, heun, rk4 or ab2")  # fmt: skip
        return self


class Invert(Backward):
    """Carry images back to their noise, and draw them again from it."""

    pictures: tuple[str, ...] = ()
    """Image files, which may follow RUN directly; they are cropped and resized like the run's data."""
    label: Label = None
    """Name of the class of the images; by default no class."""
    out: str | None = None
    """Where the images are written; by default a folder in RUN/generated/ named after these settings."""


class Export(OfWeights):
    """Write a run's network, of kind unet or dit, as a folder that diffusers can load."""

    out: str | None = None
    """A new folder, which may follow RUN directly."""
    num_steps: Positive = 50
    """Number of Euler steps in the example of the folder's model card."""
    push_to_hub: str | None = None
    """Upload the folder to this repository of the Hugging Face hub, given as OWNER/NAME."""
    private: bool = True
    """Make a repository created by push_to_hub visible to its owner only."""


class Ema(OfRun):
    """List the averages of the weights that a run can give, or make some with --length."""

    length: tuple[Length, ...] = ()
    """Lengths of the averages: standard deviation of each one's profile over the steps, as a fraction of the run."""
    step: Annotated[int, Field(ge=1)] | None = None
    """Step at which the averages end, one with a snapshot; by default the newest such step."""


class Likelihood(Backward):
    """Measure the likelihood of data under a run's model, in nats or bits per dimension."""

    count: Positive | None = None
    """Number of examples; by default 10,000 new points or 100 images."""
    split: str | None = None
    """Images: take them from this split of the run's source, for example test; by default the held-out images."""
    probes: Positive = 1
    """Images: random sign vectors that estimate the divergence. More cost more passes and make it less noisy."""
    seed: Seed = 0
    """Seed of new points, of dequantisation noise and of probes."""
    batch_size: Positive | None = None
    """Samples per batch. Changes only speed and memory; with dopri5 also the results, within its tolerance."""

    @model_validator(mode="after")
    def _without_guidance(self) -> "Likelihood":
        if self.guidance != 1:
            raise ValueError(f"guidance {self.guidance:g}: only an unguided field has a density, leave it out")
        if self.guide is not None:
            raise ValueError(f"guide {self.guide}: only an unguided field has a density, leave it out")
        return self


class Check(ImageData):
    """Check every image of a source: counts, sizes, classes, duplicates, and which files are broken and why."""

    source: Annotated[str, Field(min_length=1)] = "digits"
    """Like data.source of a run, or a settings file or run whose data are checked."""
    max_bad: Fraction = 0.01
    """Largest allowed fraction of broken images; above it, the exit status is 3."""
    list_most: Annotated[int, Field(ge=0)] = 20
    """Largest number of files listed for each kind of finding; --json lists all."""


class Preview(ImageData):
    """Draw a grid of images as the network will see them in the first step: resized, cropped and augmented."""

    source: Annotated[str, Field(min_length=1)] = "digits"
    """Like data.source of a run, or a settings file or run whose data are drawn."""
    out: str = "preview.png"
    """A new PNG file."""
    count: Annotated[int, Field(ge=1, le=4096)] = 64
    """Number of images."""
    seed: Seed = 0
    """Seed of the run, which decides the order, crops, flips and augmentation."""

    @model_validator(mode="after")
    def _png(self) -> "Preview":
        if not self.out.endswith(".png"):
            raise ValueError(f"out {self.out} is not a PNG file: give it a name that ends in .png")
        return self
