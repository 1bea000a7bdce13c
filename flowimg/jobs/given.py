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
WHITE = 128
"""Levels of a mask from here on are drawn, and of alpha up to here."""
TRACE = 8
"""After the mask is resized, a pixel is drawn if its level is above this: no trace of what was masked is kept."""


def given_pictures(run: OpenRun, names: Sequence[str]) -> Tensor:
    """The pictures of these files in the run's space, shape (B, C, H, W).

    Raises:
        DataError: If one cannot be read.
    """
    data: Any = run.config.data
    return run.space.encode(torch.cat([_window(run, Encoded(path=name), name, reading_of(data)) for name in names]))


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
        levels = _window(run, Encoded(content=_mask(run, name, mask)), mask or name, READING, channels=1)
        if not bool((levels > TRACE).any()):
            none = f"no white pixel of {mask}" if mask else "no transparent pixel"
            raise SettingsError(f"nothing is to be drawn of {name}: {none} is left after it is cropped like the data")
        drawn.append(levels > TRACE)
    return torch.cat(drawn)


def _mask(run: OpenRun, name: str, mask: str | None) -> bytes:
    """A PNG that is white where a picture is to be drawn, and black elsewhere."""
    data: Any = run.config.data
    if mask is None:
        alpha = _whole(name, 4, READING)[3]
        if alpha.min() >= WHITE:
            raise SettingsError(f"{name} has no transparent part: say by --mask what is to be drawn")
        white = alpha < WHITE
    else:
        white = _whole(mask, 1, READING)[0] >= WHITE
        size = _whole(name, run.space.shape[0], reading_of(data)).shape[1:]
        if white.shape != size:
            sizes = [f"{shape[1]} x {shape[0]}" for shape in (white.shape, size)]
            raise SettingsError(f"--mask {mask} is {sizes[0]}, and {name} is {sizes[1]}: give a mask of its size")
    file = BytesIO()
    Image.fromarray((white * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _whole(name: str, channels: int, reading: Reading) -> NDArray[Any]:
    """A picture at its own size over black, (C, H, W)."""
    try:
        picture = opened(read_bytes(Encoded(path=name)), reading)
        if isinstance(picture, Numbers):
            return to_numbers(picture, channels, None, "keep", BLACK, reading.depth)
        with picture:
            return to_pixels(picture, channels, None, "keep", BLACK)
    except BadPictureError as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from None


def _window(run: OpenRun, encoded: Encoded, name: str, reading: Reading, channels: int | None = None) -> Tensor:
    """One picture as it is stored, cropped and resized like the run's data, shape (1, C, H, W)."""
    data: Any = run.config.data
    own, height, width = run.space.shape
    # training cuts a window at random; here it is the middle one
    stored, background = data.stored or (height, width), data.background if channels is None else BLACK
    how = Decoding(channels or own, stored, data.resize, background, reading)
    try:
        found, _ = decode(encoded, how)
    except BadPictureError as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from None
    return middle(torch.from_numpy(found), (height, width))[None]
