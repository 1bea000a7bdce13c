"""Where x_1 comes from: points of a known distribution, or images."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from flowimg.settings.base import Fraction, Level, Positive, Settings, Unit, one_of

Side = Annotated[int, Field(ge=2, le=4096)]
LargeSide = Annotated[int, Field(ge=2, le=8192)]
PAIR = BeforeValidator(lambda sides: tuple(sides) if isinstance(sides, list) else sides)
"""YAML and JSON have lists for tuples, which pydantic's strict mode does not see inside of a union."""
Ratio = Annotated[float, Field(ge=0.05, le=20), one_of("the numbers from 0.05 to 20; 16:9 is 1.78")]
"""Of width to height."""
ClassName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
"""The name of a class; YAML reads the name 1 as a number."""


class PointData(Settings):
    """New points in the plane at every step, drawn from a known distribution."""

    holds_pictures: ClassVar = False
    numbers: ClassVar[dict[str, int]] = {}
    kind: Literal["points"] = "points"
    source: Literal["checkerboard", "moons", "eight_gaussians", "spirals", "rings"] = "checkerboard"
    """The distribution."""
    cells: Annotated[int, Field(ge=2, le=64)] = 4
    """Squares per side of the checkerboard, whose total size stays the same; the other sources ignore it."""
    labels: bool = False
    """Condition the network on the part (square, mode, arm or ring) that a point comes from."""
    held_out: Positive = 1024
    """Number of new points for the held-out loss."""


class Buckets(Settings):
    """A few shapes of about one area, to which images are sorted by their ratios of width to height."""

    area: Annotated[int, Field(ge=16, le=4096**2)] | None = None
    """Pixels of an image, about: height times width. Null for no buckets."""
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1, max_length=8)] = (
        0.5,
        0.75,
        1.0,
        1.5,
        2.0,
    )
    """Ratios of width to height, at most 8; an image goes to the nearest one, and is cropped or padded to its shape."""
    multiple: Annotated[int, Field(ge=1, le=64)] = 8
    """Heights and widths are multiples of this; each level of a U-Net after the first needs a factor of 2."""


class ImageData(Settings):
    """Images, decoded once into a cache, or streamed."""

    holds_pictures: ClassVar = True
    kind: Literal["images"] = "images"
    source: Annotated[str, Field(min_length=1)] = "digits"
    """digits or letters; a folder; parquet, arrow or tar files; CIFAR10, FashionMNIST or OxfordIIITPet; or a hub id."""
    root: str = "data"
    """The folder for datasets of torchvision."""
    subset: str | None = None
    """The configuration of a hub dataset that has several."""
    split: str = "train"
    """The split to train on."""
    image_column: str | None = None
    """The column of images (in tar shards, their file extension); by default the only such column."""
    label_column: str | None = None
    """The column of labels (in tar shards, their file extension); by default the only such column, if there is one."""
    labels: bool = True
    """Condition the network on the class, where the source has classes."""
    classes: tuple[ClassName, ...] = ()
    """Use only the classes of these names; empty means all."""
    first: Positive | None = None
    """Use only the first N images, for a quick trial."""
    size: Annotated[
        Side | tuple[Side, Side] | None, one_of("null, 2 to 4096 pixels per side, and two of them: height, width"), PAIR
    ] = None
    """Resize all images to squares of this side, or to this height and width; null if they have one size already."""
    buckets: Buckets = Buckets()
    """With an area, instead of size: several shapes, and each batch is of one of them."""
    resize: Literal["crop", "pad", "stretch", "keep"] = "crop"
    """crop: scale and crop the centre; pad: scale and pad; stretch: ignore proportions; keep: crop or pad only."""
    random_crop: Annotated[
        LargeSide | tuple[LargeSide, LargeSide] | None,
        one_of("null, 2 to 8192 pixels per side, and two of them: height, width"),
        PAIR,
    ] = None
    """Resize to this side, or height and width, instead, and crop a random window of data.size at every use."""
    channels: Literal["auto", "grey", "rgb", "rgba", "all"] = "auto"
    """auto: grey if no image has colour, otherwise rgb; arrays as they are. rgba keeps transparency; all keeps every
    channel, and every page of a TIFF."""
    depth: Annotated[Literal[8, 16, "float"], one_of("8, 16 and float")] = 8
    """Bits of a number of an image: 8, 16, or float for floating-point numbers as they are in the file."""
    range: Annotated[tuple[float, float] | None, one_of("null, and two numbers: black, white"), PAIR] = None
    """The numbers that mean black and white: with depth 16 by default 0 and 65535 (12-bit images: 0 4095); float needs
    them."""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """Red, green and blue (0 to 255) behind transparent pixels and around padded images."""
    flip: bool = False
    """Flip each image left to right with probability 1/2."""
    augment: Unit = 0.0
    """Probability of each augmentation (rotate, scale, stretch, shift; mirror: 1/2), 0.12 in EDM; 0 for none.
    The network is conditioned on it, so samples are unaffected."""
    held_out: Annotated[int, Field(ge=0)] = 97
    """Number of images kept out of training for the held-out loss; 0 for none, and no such loss."""
    max_bad: Fraction = 0.01
    """Largest allowed fraction of broken images; they are skipped and listed."""
    cache: Annotated[str, Field(min_length=1)] | None = None
    """Folder for decoded images; by default $FLOWIMG_CACHE, or ~/.cache/flowimg."""
    gpu_share: Unit = 0.25
    """Keep the decoded images on the GPU if they need at most this fraction of its memory."""
    workers: Positive | None = None
    """Number of decoder processes; by default one per core, one fewer when streaming."""
    stream: bool = False
    """Decode images of tar shards or parquet files on the fly, at every use; for data too large for a decoded cache."""
    open_shards: Positive = 16
    """Number of shards read at the same time when streaming; more shuffle better but need more memory."""

    @property
    def numbers(self) -> dict[str, int]:
        """How many numbers each further part of a condition has."""
        return {"augmentation": 9} if self.augment else {}

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the images, where they are given."""
        return _pair(self.size)

    @property
    def stored(self) -> tuple[int, int] | None:
        """Height and width of what windows are cut from, where they are."""
        return _pair(self.random_crop)

    @model_validator(mode="after")
    def _fits(self) -> "ImageData":
        if self.stored and not (self.shape and _larger(self.stored, self.shape)):
            larger, size = (_words(self.random_crop), _words(self.size))
            raise ValueError(f"random_crop {larger} must be larger than size {size}, the window it cuts")
        if self.buckets.area:
            self._fits_buckets()
        if self.depth == 8 and self.range:
            raise ValueError("range is for depth 16 and float: images of 8 bits go from 0 to 255")
        if self.depth == "float" and self.range is None:
            raise ValueError("depth float needs range, the two numbers that mean black and white, such as 0 1")
        if self.range and self.range[0] >= self.range[1]:
            raise ValueError(f"range {self.range[0]:g} {self.range[1]:g} must be two numbers that rise")
        if self.depth == 16 and self.range and not all(n.is_integer() and 0 <= n <= 65535 for n in self.range):
            raise ValueError("range with depth 16 is two whole numbers from 0 to 65535")
        if self.depth == 16 and self.channels == "rgba" and self.range not in (None, (0, 65535)):
            # in files of 16 bits, 65535 is opaque, whatever the colours
            raise ValueError("channels rgba with depth 16 goes from 0 to 65535: leave out range")
        if self.stream and (self.classes or self.first):
            raise ValueError("stream takes all pictures of a split: leave out classes and first")
        return self

    def _fits_buckets(self) -> None:
        for name, given in (("size", self.size), ("random_crop", self.random_crop), ("stream", self.stream)):
            if given:
                raise ValueError(f"buckets and {name}: give one of the two, as buckets decide the shapes of all images")
        if self.resize == "keep":
            raise ValueError("buckets and resize keep: images are scaled to their bucket, so give crop, pad or stretch")


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _larger(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a rectangle holds another one, and is not it."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def _words(size: int | tuple[int, int] | None) -> str:
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)
