"""Pictures that a person gives to a verb, as the run's data look."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowimg.build.images import reading_of
from flowimg.data.arrays import READING
from flowimg.data.batches import middle
from flowimg.data.decode import Decoding, decode
from flowimg.data.pictures import BadPictureError, Encoded, read_bytes
from flowimg.errors import DataError, SettingsError
from flowimg.runs.opening import OpenRun

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
        levels = _window(run, Encoded(content=_mask(name, mask)), mask or name, READING, channels=1)
        if not bool((levels > TRACE).any()):
            none = f"{mask} has no white pixel" if mask else f"{name} has no transparent pixel: give --mask"
            raise SettingsError(f"nothing is to be drawn of {name}: {none}")
        drawn.append(levels > TRACE)
    return torch.cat(drawn)


def _mask(name: str, mask: str | None) -> bytes:
    """A PNG that is white where a picture is to be drawn, and black elsewhere."""
    picture = _upright(name)
    if mask is None:
        if not picture.has_transparency_data:
            raise SettingsError(f"{name} has no transparent part: say by --mask what is to be drawn")
        white = picture.convert("RGBA").getchannel("A").point(lambda level: 255 if level < WHITE else 0)
    else:
        white = _upright(mask).convert("L").point(lambda level: 255 if level >= WHITE else 0)
        if white.size != picture.size:
            sizes = " x ".join(map(str, white.size)), " x ".join(map(str, picture.size))
            raise SettingsError(f"--mask {mask} is {sizes[0]}, and {name} is {sizes[1]}: give a mask of its size")
    file = BytesIO()
    white.save(file, "PNG")
    return file.getvalue()


def _upright(name: str) -> Image.Image:
    try:
        with Image.open(BytesIO(read_bytes(Encoded(path=name)))) as picture:
            return ImageOps.exif_transpose(picture)
    except (BadPictureError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from None


def _window(run: OpenRun, encoded: Encoded, name: str, reading: Any, channels: int | None = None) -> Tensor:
    """One picture as it is stored, cropped and resized like the run's data, shape (1, C, H, W)."""
    data: Any = run.config.data
    own, height, width = run.space.shape
    # training cuts a window at random; here it is the middle one
    stored, background = data.stored or (height, width), data.background if channels is None else (0, 0, 0)
    how = Decoding(channels or own, stored, data.resize, background, reading)
    try:
        found, _ = decode(encoded, how)
    except BadPictureError as error:
        raise DataError(f"{name} cannot be read as a picture: {error}") from None
    return middle(torch.from_numpy(found), (height, width))[None]


def stem(number: int, name: str) -> str:
    """The start of the names of the files that are made of a picture."""
    return f"{number:03d}_{Path(name).stem[:60]}"
