"""Settings to objects: one table a kind. Adding a kind is its settings in config.py and a line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowimg.config import MLP, Config, ImageData, PointData, Solving, UNet
from flowimg.data import toys
from flowimg.data.batches import ImageBatches, PointBatches
from flowimg.data.store import fingerprint, hold_out
from flowimg.flow.couplings import Coupling, Independent, OptimalTransport
from flowimg.flow.objective import Objective
from flowimg.flow.paths import Cosine, Linear, Path
from flowimg.flow.solvers import DOPRI5, EULER, HEUN, MIDPOINT, RK4, Solver, dopri5
from flowimg.flow.times import (
    LogitNormal,
    TimeDistribution,
    Uniform,
    diffusers_grid,
    edm_grid,
    shift_times,
    skewed,
    uniform_grid,
)


class DataFacts(NamedTuple):
    """What a field must know of the data: the shape of a sample, and the names of the classes it is conditional on.

    In a run that goes on from a network that was fetched, also what that network is (see `architecture_of`).
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    architecture: dict[str, Any] | None = None


class Source(NamedTuple):
    """Data that were found: their facts, how many to train on (None: drawn afresh for ever), and a line about them.

    `load` makes batches of them on a device; only then are pictures decoded.
    """

    facts: DataFacts
    size: int | None
    story: str
    load: Callable[[torch.device], PointBatches | ImageBatches]


PATHS: dict[str, Callable[[Any], Path]] = {"linear": lambda s: Linear(), "cosine": lambda s: Cosine()}

COUPLINGS: dict[str, Callable[[Any], Coupling]] = {
    "independent": lambda s: Independent(),
    "ot": lambda s: OptimalTransport(s.block),
}

TIMES: dict[str, Callable[[Any], TimeDistribution]] = {
    "uniform": lambda s: Uniform(),
    "logit_normal": lambda s: LogitNormal(s.mean, s.std),
    "skewed": lambda s: skewed(),
}

SOLVERS: dict[str, Solver] = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4, "dopri5": DOPRI5}

TIME_GRIDS: dict[str, Callable[[int], Tensor]] = {
    "uniform": uniform_grid,
    "edm": edm_grid,
    "diffusers": diffusers_grid,
}

TOYS: dict[str, Callable[[PointData], toys.Toy]] = {
    "checkerboard": lambda s: toys.Checkerboard(s.cells),
    "moons": lambda s: toys.Moons(),
    "eight_gaussians": lambda s: toys.EightGaussians(),
    "spirals": lambda s: toys.Spirals(),
    "rings": lambda s: toys.Rings(),
}


def build_toy(config: Config) -> toys.Toy:
    """The distribution of points that a run learns."""
    assert isinstance(config.data, PointData)
    return TOYS[config.data.source](config.data)


def _points(config: Config) -> Source:
    data = config.data
    assert isinstance(data, PointData)
    toy = build_toy(config)
    classes = tuple(str(part) for part in range(toy.parts)) if data.labels else ()
    story = f"{data.source}: points drawn afresh" + (f", {len(classes)} classes" if classes else "")
    return Source(
        DataFacts((2,), classes), None, story, lambda device: PointBatches(toy, data.labels, config.seed, device)
    )


def _images(config: Config) -> Source:
    from flowimg.data.sources import DataError, decode, find  # datasets and torchvision take seconds to import

    data = config.data
    assert isinstance(data, ImageData)
    which = data.model_dump(exclude={"kind", "resize", "flip", "held_out"})
    found = find(**which)
    size = len(found.rows) - data.held_out
    if size < 1:
        raise DataError(
            f"data.held_out {data.held_out} leaves nothing to train on: {data.source} has {len(found.rows)} images"
        )

    def load(device: torch.device) -> ImageBatches:
        images = decode(found, data.resize, data.background, bar=True)
        name = fingerprint(images)
        learn, kept_apart, rows = hold_out(images.to(device), data.held_out)
        return ImageBatches(learn, kept_apart, data.flip, config.seed, config.train.batch_size, rows, 0, name)

    story = f"{data.source}: {found.story}; {data.held_out:,} held out"
    return Source(DataFacts(found.shape, found.classes), size, story, load)


SOURCES: dict[str, Callable[[Config], Source]] = {"points": _points, "images": _images}


def _mlp(settings: MLP, facts: DataFacts) -> nn.Module:
    from flowimg.fields.mlp import MLPField

    options = settings.model_dump(exclude={"kind"})
    return MLPField(facts.shape[0], len(facts.classes), **options)


def _unet(settings: UNet, facts: DataFacts) -> nn.Module:
    from flowimg.data.sources import DataError
    from flowimg.fields.unet import (
        UNetField,
        empty_unet,
        new_unet,
        pretrained_unet,
    )  # diffusers takes seconds to import

    channels, height, width = facts.shape
    classes = len(facts.classes)
    if height != width:
        raise DataError(f"the images are {width} x {height}, and the U-Net takes squares: give data.size")
    try:
        if settings.pretrained is None:
            options = settings.model_dump(exclude={"kind", "pretrained", "gradient_checkpointing"})
            unet = new_unet(height, channels, classes, **options)
        elif facts.architecture:  # its weights are in the checkpoint
            unet = empty_unet(facts.architecture)
        else:
            unet = pretrained_unet(settings.pretrained, height, channels, classes, settings.dropout)
    except ValueError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(
            f"field.pretrained {settings.pretrained} gives no UNet2DModel in safetensors, from a folder or from the "
            f"hub: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from None
    return UNetField(unet, classes, settings.gradient_checkpointing)


FIELDS: dict[str, Callable[[Any, DataFacts], nn.Module]] = {"mlp": _mlp, "unet": _unet}


def build_source(config: Config) -> Source:
    """The data of a run: looked through, not yet loaded."""
    return SOURCES[config.data.kind](config)


def build_field(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a run, its shape decided by the data, initialised from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return FIELDS[config.field.kind](config.field, facts)


def architecture_of(config: Config, field: Any) -> dict[str, Any] | None:
    """What a network that was fetched is, so that the run's folder alone is enough later; None if settings tell."""
    return field.architecture() if isinstance(config.field, UNet) and config.field.pretrained else None


def build_objective(config: Config) -> Objective:
    """What a run minimises."""
    return Objective(
        path=PATHS[config.path.kind](config.path),
        coupling=COUPLINGS[config.coupling.kind](config.coupling),
        times=TIMES[config.times.kind](config.times),
        stratified=config.times.stratified,
        shift=config.times.shift,
        label_drop=config.train.label_drop,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )


def build_solver(how: Solving) -> Solver:
    """The solver asked for, at its tolerance."""
    solver = SOLVERS[how.solver]
    return dopri5(how.tolerance) if solver.adaptive else solver


def build_times(how: Solving) -> Tensor:
    """The times the solver visits, from 0 (noise) to 1 (data)."""
    if SOLVERS[how.solver].adaptive:
        return uniform_grid(1)
    return shift_times(TIME_GRIDS[how.times](how.num_steps), how.shift)
