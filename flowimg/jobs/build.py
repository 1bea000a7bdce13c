"""Settings to objects: one table a kind. Adding a kind is its settings in config.py and a line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from flowimg.config import MLP, Config, ImageData, PointData, UNet
from flowimg.data import toys
from flowimg.data.batches import ImageBatches, PointBatches
from flowimg.data.sources import DataError, load_images
from flowimg.data.store import hold_out
from flowimg.flow.couplings import Coupling, Independent, OptimalTransport
from flowimg.flow.objective import Objective
from flowimg.flow.paths import Cosine, Linear, Path
from flowimg.flow.solvers import EULER, HEUN, MIDPOINT, RK4, Solver
from flowimg.flow.times import LogitNormal, TimeDistribution, Uniform, skewed


class DataFacts(NamedTuple):
    """What a field must know of the data: the shape of a sample, and the names of the classes it is conditional on."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]


class Source(NamedTuple):
    """Data ready to train on, their facts, and how many there are (None: drawn afresh for ever)."""

    batches: PointBatches | ImageBatches
    facts: DataFacts
    size: int | None


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

SOLVERS: dict[str, Solver] = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4}

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


def _points(config: Config, device: torch.device) -> Source:
    assert isinstance(config.data, PointData)
    toy = build_toy(config)
    classes = tuple(str(part) for part in range(toy.parts)) if config.data.labels else ()
    batches = PointBatches(toy, config.data.labels, config.seed, device)
    return Source(batches, DataFacts((2,), classes), None)


def _images(config: Config, device: torch.device) -> Source:
    assert isinstance(config.data, ImageData)
    images = load_images(config.data.source, config.data.labels).to(device)
    count, held_out = len(images.pixels), config.data.held_out
    if held_out >= count:
        raise DataError(f"data.held_out {held_out} leaves nothing to train on: {config.data.source} has {count} images")
    learn, kept_apart = hold_out(images, held_out)
    batches = ImageBatches(learn, kept_apart, config.data.flip, config.seed, config.train.batch_size)
    return Source(batches, DataFacts(tuple(images.pixels.shape[1:]), images.classes), len(learn.pixels))


SOURCES: dict[str, Callable[[Config, torch.device], Source]] = {"points": _points, "images": _images}


def _mlp(settings: MLP, facts: DataFacts) -> nn.Module:
    from flowimg.fields.mlp import MLPField

    options = settings.model_dump(exclude={"kind"})
    return MLPField(facts.shape[0], len(facts.classes), **options)


def _unet(settings: UNet, facts: DataFacts) -> nn.Module:
    from flowimg.fields.unet import UNetField  # diffusers takes seconds to import; points do without it

    channels, height, width = facts.shape
    if height != width:
        raise DataError(f"the images are {width} x {height}: the U-Net takes squares")
    options = settings.model_dump(exclude={"kind"})
    try:
        return UNetField(size=height, image_channels=channels, num_classes=len(facts.classes), **options)
    except ValueError as error:
        raise DataError(str(error)) from None


FIELDS: dict[str, Callable[[Any, DataFacts], nn.Module]] = {"mlp": _mlp, "unet": _unet}


def build_source(config: Config, device: torch.device) -> Source:
    """The data of a run, on a device."""
    return SOURCES[config.data.kind](config, device)


def build_field(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a run, its shape decided by the data, initialised from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return FIELDS[config.field.kind](config.field, facts)


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
