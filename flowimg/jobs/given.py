"""Pictures that a person gives to a verb, as the run's data look."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowimg.build.images import reading_of
from flowimg.data.arrays import READING, Numbers, Reading, opened
from flowimg.data.batches import middle
from flowimg.data.decode import Decoding, decode
from flowimg.data.numbers import to_numbers
from flowimg.data.pictures import BadPictureError, Encoded, read_bytes, to_pixels
from flowimg.errors import DataError, SettingsError
from flowimg.runs.opening import OpenRun

BLACK = 0, 0, 0
OPAQUE = 250
"""What is more transparent than this alpha is drawn, where a picture is its own mask."""
WHITE = 128
"""Levels of a mask from here on are drawn."""
KEPT, DRAWN = 64, 192
"""Levels of a mask while it is resized: away from the ends, where a filter's negative weights would be clipped."""


def given_pictures(run: OpenRun, names: Sequence[str], own_masks: bool = False) -> Tensor:
    """The pictures of these files in the run's space, shape (B, C, H, W).

    Args:
        run: The run.
        names: Image files.
        own_masks: Their transparent parts are to be drawn: what is left has its own colours, without a background.
    Raises:
        DataError: If one cannot be read.
    """
    read = _without_alpha if own_masks else lambda name: Encoded(path=name)
    return torch.cat([picture_from(run, read(name), name) for name in names])


def given_masks(run: OpenRun, names: Sequence[str], masks: Sequence[str]) -> Tensor:
    """Where these pictures are to be drawn: white in the masks, or their own transparent part; (B, 1, H, W) of bool.

    Raises:
        SettingsError: If the masks do not fit the pictures, or leave nothing to draw.
        DataError: If one cannot be read.
    """
    data: Any = run.config.data
    if len(masks) not in (0, 1, len(names)):
        raise SettingsError(f"--mask has {len(masks)} files for {len(names)} pictures: give one for all, or one each")
    if not masks and data.channels == "rgba":
        raise SettingsError(f"{run.folder.path} learned transparency, so that says not what to draw: give --mask")
    drawn: list[Tensor] = []
    each: list[str | None] = [*masks] or [None]
    for name, mask in zip(names, each * len(names) if len(each) == 1 else each, strict=True):
        drawn.append(mask_from(run, _white(run, name, mask), mask or name))
        if not bool(drawn[-1].any()):
            none = f"no white pixel of {mask}" if mask else "no transparent pixel"
            other = "; --shape names another of the run's shapes" if run.facts.buckets else ""
            raise SettingsError(
                f"nothing is to be drawn of {name}: {none} is left after it is cropped and resized like the data{other}"
            )
    return torch.cat(drawn)


def picture_from(run: OpenRun, encoded: Encoded, name: str) -> Tensor:
    """A picture in the run's space, cropped and resized like its data, shape (1, C, H, W).

    Raises:
        DataError: If it cannot be read.
    """
    data: Any = run.config.data
    return run.space.encode(_window(run, encoded, name, run.space.shape[0], data.background, reading_of(data)))


def mask_from(run: OpenRun, white: NDArray[Any], name: str) -> Tensor:
    """Where a picture of the size of `white`, (H, W) of bool, has a trace of it, once it is resized; (1, 1, H, W)."""
    levels = np.where(white, DRAWN, KEPT).astype(np.uint8)
    return _window(run, as_png(levels), name, 1, (KEPT,) * 3, READING) != KEPT


def as_png(pixels: NDArray[Any]) -> Encoded:
    """Pixels as a file in memory."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Encoded(content=file.getvalue())


def _white(run: OpenRun, name: str, mask: str | None) -> NDArray[Any]:
    """Where a picture is to be drawn, at its own size, (H, W) of bool."""
    data: Any = run.config.data
    if mask is None:
        drawn = _whole(name, 4, READING)[3] < OPAQUE
        if not drawn.any():
            raise SettingsError(f"{name} has no transparent part: say by --mask what is to be drawn")
        return drawn
    drawn = _whole(mask, 1, READING, "mask: give one as a PNG")[0] >= WHITE
    size = _whole(name, run.space.shape[0], reading_of(data)).shape[1:]
    if drawn.shape != size:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (drawn.shape, size)]
        raise SettingsError(f"--mask {mask} is {sizes[0]}, and {name} is {sizes[1]}: give a mask of its size")
    return drawn


def _without_alpha(name: str) -> Encoded:
    """A picture with the colours that its transparent parts hide."""
    return as_png(_whole(name, 4, READING)[:3].transpose(1, 2, 0))


def _whole(name: str, channels: int, reading: Reading, what: str = "picture") -> NDArray[Any]:
    """A picture at its own size over black, (C, H, W)."""
    try:
        picture = opened(read_bytes(Encoded(path=name)), reading)
        if isinstance(picture, Numbers):
            return to_numbers(picture, channels, None, "keep", BLACK, reading.depth)
        with picture:
            return to_pixels(picture, channels, None, "keep", BLACK)
    except BadPictureError as error:
        raise _unreadable(name, what, error) from None


def _window(
    run: OpenRun, encoded: Encoded, name: str, channels: int, background: tuple[int, ...], reading: Reading
) -> Tensor:
    """One picture as it is stored, cropped and resized like the run's data, shape (1, C, H, W)."""
    data: Any = run.config.data
    height, width = run.space.shape[1:]
    # training cuts a window at random; here it is the middle one
    how = Decoding(channels, data.stored or (height, width), data.resize, background, reading)
    try:
        found, _ = decode(encoded, how)
    except BadPictureError as error:
        raise _unreadable(name, "picture", error) from None
    return middle(torch.from_numpy(found), (height, width))[None]


def _unreadable(name: str, what: str, error: BadPictureError) -> DataError:
    return DataError(f"{name} cannot be read as a {what}" + (f": {error}" if what == "picture" else ""))
