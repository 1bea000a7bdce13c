"""What a run is: strict, frozen settings; YAML in, resolved YAML out. Imports neither torch nor anything of ours.

A settings file is read by `load`, which refuses unknown keys, wrong types and values out of range with one sentence
each, and names the nearest right key. `2e-4` is a number and a YAML list a tuple; nothing else is coerced.
"""

import json
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, lt=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=0, le=255)]
Length = Annotated[float, Field(ge=0.001, le=0.28)]


def _one_of(words: str) -> WrapValidator:
    """One sentence for all that a setting of several types may be."""

    def check(value: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError(f"{value!r} is none of {words}") from None

    return WrapValidator(check)


Weights = Annotated[Literal["ema", "raw"] | Length, _one_of("ema, raw and a length (0.001 to 0.28)")]


class SettingsError(Exception):
    """The settings cannot be used; the message says which, why, and how to mend it."""

    exit_status = 2


class Settings(BaseModel):
    """Strict, frozen, no unknown keys."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


Model = TypeVar("Model", bound=Settings)


# --- data ------------------------------------------------------------------------------------------------------------


class PointData(Settings):
    """Points in the plane, drawn afresh from a known distribution."""

    kind: Literal["points"] = "points"
    source: Literal["checkerboard", "moons", "eight_gaussians", "spirals", "rings"] = "checkerboard"
    """Which distribution."""
    cells: Annotated[int, Field(ge=2, le=64)] = 4
    """Cells a side of the checkerboard, on the same square; the other sources ignore it."""
    labels: bool = False
    """Train conditional on the part (cell, mode, arm, ring) a point comes from."""
    held_out: Positive = 1024
    """Fresh points for the held-out loss."""


class ImageData(Settings):
    """Images, decoded once to a cache, or streamed."""

    kind: Literal["images"] = "images"
    source: Annotated[str, Field(min_length=1)] = "digits"
    """digits; a folder of pictures; parquet, arrow or tar; CIFAR10, FashionMNIST or OxfordIIITPet; or a hub id."""
    root: str = "data"
    """The folder that sets of torchvision lie in."""
    subset: str | None = None
    """Which configuration, of a hub dataset that has several."""
    split: str = "train"
    """Which split to train on."""
    image_column: str | None = None
    """The column (in tar shards, the ending) of pictures; by default the only one there is."""
    label_column: str | None = None
    """The column (in tar shards, the ending) of labels; by default the only one there is, if any."""
    labels: bool = True
    """Train conditional on the class, where the source has classes."""
    classes: tuple[str, ...] = ()
    """Keep pictures of these classes alone; empty keeps all."""
    first: Positive | None = None
    """Keep the first so many, for a try."""
    size: Annotated[int, Field(ge=2, le=4096)] | None = None
    """Bring every picture to a square of so many pixels a side; null where they all are of one square size."""
    resize: Literal["crop", "pad", "stretch", "keep"] = "crop"
    """How: scale and cut the middle out, scale and fill, scale both sides, or fill and cut without scaling."""
    random_crop: Annotated[int, Field(ge=2, le=8192)] | None = None
    """Bring them to so many pixels a side, and cut a window of data.size out at random every time."""
    channels: Literal["auto", "grey", "rgb"] = "auto"
    """Grey or RGB; auto takes grey if no picture has colour."""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """Red, green, blue under transparent pixels and around padded pictures."""
    flip: bool = False
    """Flip left to right, half of the time."""
    augment: Unit = 0.0
    """Turn, scale, stretch, move, each so often; mirror half. The field is told, so samples are not (0.12: EDM's)."""
    held_out: Positive = 97
    """Images kept apart for the held-out loss."""
    max_bad: Share = 0.01
    """Share of pictures that may be broken; they are left out and listed."""
    cache: Annotated[str, Field(min_length=1)] | None = None
    """Folder for decoded pictures; by default $FLOWIMG_CACHE, or ~/.cache/flowimg."""
    gpu_share: Unit = 0.25
    """Decoded pictures go to the GPU if they take no more than this share of its memory."""
    workers: Positive | None = None
    """Processes that decode; by default one a core, one less while streaming."""
    stream: bool = False
    """Read tar shards or parquet as they come, decoded each time: for what no disk holds decoded."""
    open_shards: Positive = 16
    """Streaming: shards read from at a time; more mix better and take more memory."""

    @model_validator(mode="after")
    def _cut(self) -> "ImageData":
        if self.random_crop is not None and (self.size is None or self.random_crop <= self.size):
            raise ValueError(
                f"random_crop {self.random_crop} cuts windows of size {self.size}: give a size, and more than it"
            )
        if self.stream and (self.classes or self.first):
            raise ValueError("stream takes all pictures of a split: leave out classes and first")
        return self


# --- flow ------------------------------------------------------------------------------------------------------------


class LinearPath(Settings):
    """Straight lines: x_t = (1 - t) x_0 + t x_1."""

    kind: Literal["linear"] = "linear"


class CosinePath(Settings):
    """The variance-preserving arc: x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1."""

    kind: Literal["cosine"] = "cosine"


class IndependentCoupling(Settings):
    """Noise and data as they were drawn."""

    kind: Literal["independent"] = "independent"


class OTCoupling(Settings):
    """Minibatch optimal transport within blocks of the batch."""

    kind: Literal["ot"] = "ot"
    block: Annotated[int, Field(ge=2, le=512)] = 256
    """Places of the global batch that may exchange noise."""


class TimesBase(Settings):
    """What every distribution of training times has."""

    stratified: bool = True
    """Spread the times evenly over the whole batch."""
    shift: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 moves times towards noise, below 1 towards data."""


class UniformTimes(TimesBase):
    """Every flow time alike."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalTimes(TimesBase):
    """logit(t) is normal."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Mean of logit(t); above 0 favours times near the data."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of logit(t)."""


class SkewedTimes(TimesBase):
    """logit(t) ~ N(1.2, 1.2^2), not below 1e-4: Meta's CIFAR-10 recipe."""

    kind: Literal["skewed"] = "skewed"


class NoWeighting(Settings):
    """Every flow time counts alike."""

    kind: Literal["none"] = "none"


class CosmapWeighting(Settings):
    """2 / (pi (1 - 2t + 2t^2)): the middle counts twice as much as the ends."""

    kind: Literal["cosmap"] = "cosmap"


class PowerWeighting(Settings):
    """t^a (1 - t)^b, of mean 1: a 0 and b 2 weigh errors of the data alike, a 2 and b 0 those of the noise."""

    kind: Literal["power"] = "power"
    a: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Power of t."""
    b: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Power of 1 - t."""


# --- field -----------------------------------------------------------------------------------------------------------


class MLP(Settings):
    """Multilayer perceptron, for points."""

    learns: ClassVar = "points"
    kind: Literal["mlp"] = "mlp"
    width: Positive = 128
    """Units a hidden layer."""
    depth: Positive = 4
    """Hidden layers."""
    x_frequencies: Annotated[int, Field(ge=0)] = 0
    """Sines and cosines of x among the inputs."""
    t_frequencies: Annotated[int, Field(ge=0)] = 0
    """Sines and cosines of t among the inputs."""
    dropout: Share = 0.0
    """Share of hidden units dropped in training."""
    zero_output: bool = True
    """Start from the velocity 0."""


class UNet(Settings):
    """diffusers' UNet2DModel, for images."""

    learns: ClassVar = "images"
    kind: Literal["unet"] = "unet"
    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256)
    """Channels of each level; each level after the first halves the size."""
    layers: Positive = 2
    """Residual blocks a level."""
    attention: tuple[Positive, ...] = ()
    """Sizes (pixels a side) with self-attention; the middle always has it."""
    dropout: Share = 0.0
    """Dropout in the residual blocks."""
    scale_shift: bool = False
    """Time and class scale and shift what the second norm of a residual block gives, in place of a mere shift."""
    zero_output: bool = True
    """Start from the velocity 0."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, far less memory."""
    pretrained: str | None = None
    """Start from the weights of this UNet2DModel, a hub id or a folder; its channels, layers and the like win."""


# --- training --------------------------------------------------------------------------------------------------------


class Optim(Settings):
    """What moves the weights, and its learning rate."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon moves hidden matrices by their orthogonalised momentum, and all else as adamw does."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's decay of the averages of gradient and squared gradient."""
    momentum: Share = 0.95
    """Muon's decay of the average of the gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What the rate does after the warmup."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null for no limit."""
    ema: Share = 0.999
    """Decay of the moving average of the weights, reached through a warmup."""


class Train(Settings):
    """The loop."""

    steps: Positive = 10_000
    """Optimiser steps of the whole run."""
    stop_at: Positive | None = None
    """End early at this step, saved, with everything else as in the whole run."""
    batch_size: Positive = 512
    """Samples an optimiser step, over all processes and micro-batches."""
    accumulation: Positive = 1
    """Micro-batches a step on each process."""
    micro_batch: Annotated[Positive | Literal["auto"] | None, _one_of("auto, null and a whole number above 0")] = None
    """Or: samples of a micro-batch; auto takes the most that fit the memory. The batch stays, the rest accumulates."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; all else stays fp32. auto: bf16 for U-Nets on what is fast in it. fp16 needs a GPU."""
    compile: Annotated[bool | Literal["auto", "graphs"], _one_of("true, false, auto and graphs")] = "auto"
    """Compile field and loss; graphs: as CUDA graphs. auto: 2,000 steps and more on a GPU, in graphs on NVIDIA's."""
    label_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of labels replaced by "no class", which guidance needs."""
    log_every: Positive = 100
    """Steps between lines of metrics.jsonl."""
    held_out_every: Positive | None = None
    """Steps between the lines that also tell the held-out losses; by default such that these cost 2 % of the time."""
    sample_every: Positive = 1000
    """Steps between sample grids."""
    evaluate_every: Positive | None = None
    """Steps between evaluations of the averaged field; null for none while training."""
    evaluate_count: Annotated[int, Field(ge=2)] = 1000
    """Samples of each, drawn as those of the grid are."""
    evaluate_features: Annotated[str, Field(min_length=1)] = "proxy"
    """What they are compared in; see --features of flowimg evaluate."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 3
    """The newest checkpoints, so many, are kept."""
    keep_every: Positive | None = None
    """Those at a multiple of so many steps are kept as well."""
    keep_best: Literal["loss", "held_out_loss", "held_out_loss_ema"] | None = None
    """The checkpoint with the lowest of this metric is kept as well."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """So many times over the run, two more averages are kept aside, of which --weights LENGTH makes others; 0: none."""
    max_skips: Positive = 10
    """Steps in a row whose loss or gradient is not finite that end the run; fewer are skipped and counted."""

    @model_validator(mode="after")
    def _cut(self) -> "Train":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide by accumulation {self.accumulation}")
        if self.micro_batch is not None and self.accumulation != 1:
            raise ValueError(f"micro_batch {self.micro_batch} and accumulation {self.accumulation}: give one of them")
        if self.keep_best and self.checkpoint_every % self.log_every:
            raise ValueError(
                f"keep_best needs metrics at every checkpoint: checkpoint_every {self.checkpoint_every} is no "
                f"multiple of log_every {self.log_every}"
            )
        return self


Fixed = Literal["euler", "midpoint", "heun", "rk4", "ab2"]
"""Solvers that take as many steps as they are told."""
Solver = Literal[Fixed, "dopri5"]
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


class Grid(Solving):
    """The samples drawn during training, from fixed noise."""

    count: Positive = 100
    """Samples: pictures in the grid, or points in the plot."""


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
            fit = [m.model_fields["kind"].default for m in _members("field") if m.learns == self.data.kind]
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
    compile: Annotated[bool | Literal["auto"], _one_of("true, false and auto")] = "auto"
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
    max_bad: Share = 0.01
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


class Experiment(Settings):
    """Train boards of finer and finer squares by several recipes, and see what repairs the loss."""

    run: Annotated[str, Field(min_length=1)] = "runs/frequency"
    """The folder of all its runs, tables and pictures."""
    cells: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Field(min_length=1)] = (2, 4, 8, 16)
    """Cells a side of each board."""
    steps: Positive = 8000
    """Steps of the plain network; the others get as many as their compute allows."""
    plain_only: bool = False
    """Train the plain network alone: that fine boards fail, and not what repairs it."""
    seed: Seed = 0
    """Seed of every run."""


# --- reading and writing ---------------------------------------------------------------------------------------------


MOST_YAML = 2**20
"""Characters of a settings file at most."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `2e-4` is a number, a key given twice is an error; no tags of objects, no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # ten lines of them can stand for gigabytes
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


_FLOAT = r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as plain values; `where` names it in errors.

    Raises:
        SettingsError: If the text is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise SettingsError(f"{where}{line}: not valid YAML: {problem}") from None


def load(file: str) -> Config:
    """The settings in a YAML file; what it leaves out has its default.

    Raises:
        SettingsError: If there is no such file, or it does not hold settings.
    """
    path = Path(file)
    try:
        if path.stat().st_size > MOST_YAML:
            raise SettingsError(f"{file} is longer than any settings: {path.stat().st_size:,} bytes")
        text = path.read_text()
    except FileNotFoundError:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SettingsError(f"there is no settings file {file}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as a settings file: {error}") from None
    values = parse_yaml(text, file)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file} must hold settings as `key: value` lines, not a {type(values).__name__}")
    if values.get("run") is None:
        values["run"] = f"runs/{path.stem}"
    return validate(Config, values, file)


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Plain values as settings.

    Raises:
        SettingsError: With one line for each wrong key or value; `where` opens it.
    """
    try:
        # as JSON, pydantic's strict mode takes lists for tuples and coerces nothing else; a YAML date is text there
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise SettingsError("\n".join(f"{where}: {line}" for line in _explain(error, model))) from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None


def dump(settings: Settings) -> str:
    """Settings as YAML, every key with its value."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def flatten(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Settings as dotted keys and their values, in order."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Settings) else {f"{prefix}{name}": value}
    return flat


def nearest(name: str, names: list[str]) -> str:
    """A hint that names the nearest right name, or all of a few."""
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    # the same last word elsewhere: `lr` for `optim.lr`
    near = near or [other for other in names if other.split(".")[-1] == name.split(".")[-1]][:1]
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names)}" if len(names) <= 16 else "see --help for all"


def _explain(error: ValidationError, model: type[Settings]) -> Iterator[str]:
    details = error.errors(include_url=False)
    for detail in details:
        location, kind, given = detail["loc"], detail["type"], detail["input"]
        if kind == "too_short" and any(
            len(other["loc"]) > len(location) for other in details if other["loc"][: len(location)] == location
        ):
            continue  # pydantic does not count the wrong items of a list, which are named on their own
        keys, holder = _locate(location, model)
        name = ".".join(keys) or "settings"
        if kind == "extra_forbidden":
            names = list(holder.model_fields) if holder else []
            inside = f" in {'.'.join(keys[:-1])}" if keys[:-1] else ""
            everywhere = list(flatten(Config())) if model is Config else names
            near = get_close_matches(keys[-1], names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else nearest(keys[-1], names if keys[:-1] else names + everywhere)
            yield f"unknown key {keys[-1]}{inside}: {hint}"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            kinds = [tag.strip(" '") for tag in detail["ctx"].get("expected_tags", "").split(",")]
            if kind == "union_tag_not_found":
                kinds = [member.model_fields["kind"].default for member in _members(keys[-1])]
                yield f"{name}.kind is missing: give one of {', '.join(kinds)}"
            else:
                tag = detail["ctx"]["tag"]
                near = get_close_matches(tag, kinds, n=1)
                hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(kinds)}"
                yield f"{name}.kind is {tag}: {hint}"
        elif kind == "value_error":
            yield f"{name}: {detail['ctx']['error']}" if keys else str(detail["ctx"]["error"])
        elif kind == "literal_error":
            allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            near = get_close_matches(str(given), allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
            yield f"{name} is {given!r}: {hint}"
        elif kind == "missing":
            yield f"{name} is missing"
        else:
            message = detail["msg"].split(" after validation")[0]
            for opening in ("Input ", "Tuple ", "String "):
                message = message.removeprefix(opening)
            message = message.replace("an object", "a group of settings").replace("a valid array", "a list")
            yield f"{name} is {given!r}, but {message}"


def _members(group: str) -> tuple[Any, ...]:
    """The settings that a group of `Config` may hold, one a kind."""
    return get_args(Config.model_fields[group].annotation)


def _locate(location: tuple[int | str, ...], model: type[Settings]) -> tuple[list[str], type[Settings] | None]:
    """The keys of an error's place as a user wrote them (pydantic puts a union's tag between), and what holds it."""
    keys: list[str] = []
    holder: type[Settings] | None = model
    inside: Any = model
    for part in location:
        members = [member for member in get_args(inside) if isinstance(member, type) and issubclass(member, Settings)]
        tagged = [member for member in members if member.model_fields["kind"].default == part]
        if tagged:
            inside = tagged[0]
            continue
        if isinstance(part, int):
            keys[-1] += f"[{part}]"
            continue
        holder = inside if isinstance(inside, type) and issubclass(inside, Settings) else None
        keys.append(str(part))
        field = holder.model_fields.get(str(part)) if holder else None
        inside = field.annotation if field else None
    return keys, holder
