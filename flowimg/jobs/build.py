"""Settings to objects: one table a kind. Adding a kind is its settings in config.py and a line here."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowimg.config import MLP, Config, ImageData, PointData, Solving, UNet
from flowimg.data import toys
from flowimg.data.augment import NUMBERS
from flowimg.data.batches import ImageBatches, Pictures, PointBatches
from flowimg.data.cache import cache_folder
from flowimg.data.decode import Decoding
from flowimg.data.find import Found, find
from flowimg.data.listing import DataError, listed
from flowimg.data.store import Stored, hold_out, store
from flowimg.data.workers import share_of_cores
from flowimg.fields.norm import library
from flowimg.flow.couplings import Coupling, Independent, OptimalTransport
from flowimg.flow.objective import Objective
from flowimg.flow.paths import Cosine, Linear, Path
from flowimg.flow.solvers import AB2, DOPRI5, EULER, HEUN, MIDPOINT, RK4, Solver, dopri5
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
from flowimg.flow.weightings import Power, Weighting, cosmap
from flowimg.jobs.machine import pick_device, wants_c

Batches = PointBatches | Pictures


class DataFacts(NamedTuple):
    """What a field must know of the data: the shape of a sample, and the names of the classes it is conditional on.

    In a run that goes on from a network that was fetched, also what that network is (see `architecture_of`). `numbers`
    is what `build_field` adds by the settings: how many the field is told of an augmentation.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    architecture: dict[str, Any] | None = None
    numbers: int = 0


class Source(NamedTuple):
    """Data that were found: their facts, and a line about them.

    `load` makes batches of them on a device; only then are pictures decoded.
    """

    facts: DataFacts
    story: str
    load: Callable[[torch.device], Batches]


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

WEIGHTINGS: dict[str, Callable[[Any], Weighting | None]] = {
    "none": lambda s: None,
    "cosmap": lambda s: cosmap,
    "power": lambda s: Power(s.a, s.b),
}

SOLVERS: dict[str, Solver] = {
    "euler": EULER,
    "midpoint": MIDPOINT,
    "heun": HEUN,
    "rk4": RK4,
    "ab2": AB2,
    "dopri5": DOPRI5,
}

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
    return Source(DataFacts((2,), classes), story, lambda device: PointBatches(toy, data.labels, config.seed, device))


def _images(config: Config) -> Source:
    data = config.data
    assert isinstance(data, ImageData)
    return (_streamed if data.stream else _stored)(config, data)


def find_images(data: ImageData) -> Found:
    """Look the source of pictures through."""
    asked = "source subset root split image_column label_column labels classes first size channels background max_bad"
    return find(
        cache=cache_folder(data.cache), workers=data.workers, bar=True, **data.model_dump(include=set(asked.split()))
    )


def store_images(data: ImageData, found: Found) -> Stored:
    """Decode what was found, or find it decoded."""
    return store(
        found,
        cache_folder(data.cache),
        data.resize,
        data.background,
        data.random_crop,
        data.max_bad,
        data.workers,
        bar=True,
    )


def _stored(config: Config, data: ImageData) -> Source:
    found = find_images(data)
    if len(found.rows) <= data.held_out:
        raise DataError(
            f"data.held_out {data.held_out} leaves nothing to train on: {data.source} has {len(found.rows)} images"
        )

    def load(device: torch.device) -> ImageBatches:
        stored = store_images(data, found)
        count = len(stored.images.pixels)
        if count <= data.held_out:
            raise DataError(f"data.held_out {data.held_out} leaves nothing to train on: {count} images are good")
        images = stored.images
        if device.type != "cpu" and images.pixels.nbytes <= data.gpu_share * memory_bytes(device):
            images = images.to(device)
        return ImageBatches(
            images,
            hold_out(count, data.held_out),
            data.flip,
            config.seed,
            config.train.batch_size,
            device,
            data.size if data.random_crop else None,
            fingerprint=stored.fingerprint,
            left_out=(*found.bad, *stored.bad),
            augment=data.augment,
        )

    story = f"{data.source}: {found.story}; {data.held_out:,} held out"
    return Source(DataFacts(found.shape, found.classes), story, load)


def _streamed(config: Config, data: ImageData) -> Source:
    from flowimg.data.sources.streams import open_stream
    from flowimg.data.stream import StreamBatches, keep_apart, look_into

    asked = {"source", "subset", "split", "image_column", "label_column", "labels"}
    stream = open_stream(cache=cache_folder(data.cache), **data.model_dump(include=asked))
    shape, seen = look_into(stream, data.size, data.channels, data.background)
    try:
        held = keep_apart(stream.counts, data.held_out)
    except ValueError as error:
        raise DataError(f"data.held_out {data.held_out} leaves too little to train on: {error}") from None
    channels, height, width = shape
    side = data.random_crop or height
    whole = (channels, side, data.random_crop or width)
    how = Decoding(channels, side if whole[1] == whole[2] else None, data.resize, data.background, math.prod(whole))

    def load(device: torch.device) -> Pictures:
        return StreamBatches(
            stream,
            how,
            held,
            data.flip,
            config.seed,
            config.train.batch_size,
            device,
            data.open_shards,
            data.workers or share_of_cores(),
            data.size if data.random_crop else None,
            data.max_bad,
            augment=data.augment,
        )

    kinds = f"{len(stream.classes)} classes: {listed(stream.classes)}" if stream.classes else "no classes"
    story = f"{data.source}: {stream.story}, {seen}; {kinds}; {data.held_out:,} held out"
    return Source(DataFacts(shape, stream.classes), story, load)


SOURCES: dict[str, Callable[[Config], Source]] = {"points": _points, "images": _images}


def _mlp(settings: MLP, facts: DataFacts) -> nn.Module:
    from flowimg.fields.mlp import MLPField

    options = settings.model_dump(exclude={"kind"})
    return MLPField(facts.shape[0], len(facts.classes), **options)


def _unet(settings: UNet, facts: DataFacts) -> nn.Module:
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
    return UNetField(unet, classes, settings.gradient_checkpointing, facts.numbers)


FIELDS: dict[str, Callable[[Any, DataFacts], nn.Module]] = {"mlp": _mlp, "unet": _unet}


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, or what Apple's lets one process have."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.cuda.get_device_properties(device).total_memory


def build_source(config: Config) -> Source:
    """The data of a run: looked through, not yet loaded."""
    return SOURCES[config.data.kind](config)


def check_same(config: Config, before: DataFacts, now: DataFacts) -> None:
    """Refuse data that are of another form than a run learned from.

    Raises:
        DataError: With what differs.
    """
    if before.shape != now.shape:
        new, old = (" x ".join(map(str, facts.shape)) for facts in (now, before))
        differs = f"pictures of {new}, and the run learned from {old}"
    elif before.classes and before.classes != now.classes:
        differs = f"the classes {listed(now.classes)}, and the run learned {listed(before.classes)}"
    else:
        return
    raise DataError(f"{config.data.source}, {config.data.split}, has {differs}: give back the data of the run")  # type: ignore[union-attr]


def build_field(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a run, its shape decided by the data, initialised from the seed."""
    if wants_c(config, pick_device()):
        library()  # it is compiled while diffusers is imported
    if isinstance(config.data, ImageData) and config.data.augment:
        facts = facts._replace(numbers=NUMBERS)
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
        weighting=WEIGHTINGS[config.weighting.kind](config.weighting),
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
