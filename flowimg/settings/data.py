"""Where x_1 comes from: points of a known distribution, or images."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import Fraction, Level, Positive, Settings, Unit


class PointData(Settings):
    """Points in the plane, drawn afresh from a known distribution."""

    holds_pictures: ClassVar = False
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

    holds_pictures: ClassVar = True
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
    max_bad: Fraction = 0.01
    """Fraction of pictures that may be broken; they are left out and listed."""
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
