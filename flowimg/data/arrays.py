"""Files of any depth and any number of channels: what their headers say, and the numbers in them, shape (C, H, W).

`numbers` brings those to the depth, channels and shape that a field learns from. Pictures of 8 bits and one or three
channels take the shorter way of `pictures`. Imports no torch.
"""

import io
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from flowimg.data.colours import to_srgb
from flowimg.data.pictures import (
    GREY_MODES,
    LYING,
    BadPictureError,
    bad_picture,
    moves,
    open_picture,
    upright_size,
)
from flowimg.spaces.depth import BYTES, Depth
from flowimg.spaces.formats import PNG, TIFF, pages, png_of, png_of_words

NPY = b"\x93NUMPY"
"""What a file of NumPy begins with."""
MOST = 2**28
"""Most numbers of a picture: four channels of 8192 x 8192, or 1024 pages of 512 x 512."""
SMALL, PACKED = 2**24, 4096
"""Most numbers of a TIFF of any size, and most numbers per byte of a larger one: hardly any compression packs more."""
ASKED = {"grey": 1, "rgb": 3, "rgba": 4}
"""The channels of what `data.channels` names."""
COUNTS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
"""The channels of pictures that are read as numbers."""
INDEXED = {"1", "P", "PA"}
"""Pillow's modes whose numbers are not levels."""
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[..., ::-1],
    3: lambda a: a[..., ::-1, ::-1],
    4: lambda a: a[..., ::-1, :],
    5: lambda a: a.swapaxes(-1, -2),
    6: lambda a: a.swapaxes(-1, -2)[..., ::-1],
    7: lambda a: a.swapaxes(-1, -2)[..., ::-1, ::-1],
    8: lambda a: a.swapaxes(-1, -2)[..., ::-1, :],
}
"""What brings a picture of each EXIF orientation upright."""


def channels_of(channels: str, modes: Iterable[str], tinted: bool) -> int:
    """The number of channels of pictures of these modes, by `data.channels`.

    Args:
        channels: "grey", "rgb", "rgba"; "auto": 3 if a mode has colour, or if a `tinted` background shows through, and
            of arrays as many as they have; "all": as many as the modes have.
        modes: Pillow's modes, or those of `Numbers`.
        tinted: Transparent pixels lie over a colour.

    Raises:
        ValueError: If the modes have several numbers of channels, or none can become what is wanted.
    """
    names = {mode.split(";")[0] for mode in modes}
    if channels in ASKED:
        if names and all(name.endswith("ch") and name != f"{ASKED[channels]}ch" for name in names):
            many = " and ".join(sorted(name[:-2] for name in names))
            raise ValueError(f"pictures of {many} channels, which do not become {channels}: give data.channels auto")
        return ASKED[channels]
    counts = {int(name[:-2]) for name in names if name.endswith("ch")}
    pictures = {name for name in names if not name.endswith("ch")}
    if channels == "all":
        counts |= {COUNTS[name] for name in pictures}
    elif pictures:
        counts.add(3 if tinted or pictures - GREY_MODES - {"F"} else 1)
    if len(counts) > 1:
        *fewer, most = map(str, sorted(counts))
        way = "give data.channels grey, rgb or rgba" if max(counts) <= 4 else "use those of one number"
        raise ValueError(f"pictures of {', '.join(fewer)} and {most} channels: {way}")
    return counts.pop()


class Reading(NamedTuple):
    """How files are read: the depth that their numbers get, and whether every channel and page is wanted."""

    depth: Depth = BYTES
    every: bool = False


READING = Reading()
"""The usual way: 8 bits, and one or three channels."""


class Numbers(NamedTuple):
    """A picture as the numbers of its file.

    `size` is height and width, upright; `mode` names its channels and their type, as L, RGBA;16, 5ch;float32; `form` is
    the format of the file; `alpha` says that the last channel is how opaque a pixel is; `moving` that it has several
    frames or pages; `load` reads the numbers, shape (C, H, W), and raises almost anything if they are damaged.
    """

    size: tuple[int, int]
    channels: int
    mode: str
    form: str
    alpha: bool
    moving: bool
    load: Callable[[], NDArray[Any]]


def opened(content: bytes, reading: Reading) -> Image.Image | Numbers:
    """A file's header: as Pillow's picture where that has all that is wanted, else as numbers.

    Raises:
        BadPictureError: If it is in no known format, or has numbers of which nobody knows which one is white.
    """
    if content.startswith(NPY):
        return _array(content, reading.depth)
    tiff = content.startswith(TIFF)
    try:
        picture = open_picture(content, floats=reading.depth.type == "float32")
    except BadPictureError:
        if tiff:  # of more channels than Pillow knows
            return _tiff(content, reading)
        raise
    if reading == READING:
        return picture
    return _tiff(content, reading) if tiff and not _in_bytes(picture, reading) else _picture(picture, content)


def _in_bytes(picture: Any, reading: Reading) -> bool:
    """Whether Pillow has all that is wanted of a TIFF, and knows better than tifffile which colours it means."""
    tags = picture.tag_v2
    eight = max(tags.get(258, (1,))) <= 8 and 2 not in tags.get(339, ()) and tags.get(277, 1) == len(picture.getbands())
    return eight and (not reading.every or picture.mode in INDEXED)


def _array(content: bytes, depth: Depth) -> Numbers:
    """A NumPy array (H, W), (C, H, W) or (H, W, C): the channels are the shorter of the first and the last axis."""
    try:
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
        shape, by_columns, kind = header(file)
    except Exception as error:
        raise bad_picture(error) from None
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise BadPictureError(f"its shape {shape} is not that of a picture: (H, W), (C, H, W) or (H, W, C)")
    _check(math.prod(shape), kind, depth)
    if len(content) - file.tell() < math.prod(shape) * kind.itemsize:
        raise BadPictureError("broken: the array is cut off")
    last = len(shape) == 3 and shape[2] <= shape[0]
    channels = 1 if len(shape) == 2 else shape[2] if last else shape[0]
    height, width = shape[:2] if last or len(shape) == 2 else shape[1:]

    def load() -> NDArray[Any]:
        flat = np.frombuffer(content, kind, math.prod(shape), file.tell())
        array = flat.reshape(shape, order="F" if by_columns else "C")
        return array.transpose(2, 0, 1) if last else array.reshape(channels, height, width)

    return Numbers((height, width), channels, _mode(channels, kind), "NPY", False, False, load)


def _tiff(content: bytes, reading: Reading) -> Numbers:
    try:
        found = pages(content, reading.every)
    except Exception as error:  # tifffile raises almost anything on a damaged file
        raise bad_picture(error) from None
    channels, height, width = found.shape
    if math.prod(found.shape) > max(SMALL, PACKED * len(content)):  # nobody waits for what a damaged header promises
        raise BadPictureError(f"broken: {len(content):,} bytes do not hold {math.prod(found.shape):,} numbers")
    _check(math.prod(found.shape), found.type, reading.depth)
    size = (width, height) if found.orientation in LYING else (height, width)

    def load() -> NDArray[Any]:
        return TURNS.get(found.orientation, lambda a: a)(found.read())

    mode = _mode(channels, found.type, found.alpha)
    return Numbers(size, channels, mode, "TIFF", found.alpha, found.total > 1, load)


def _check(count: int, kind: np.dtype[Any], depth: Depth) -> None:
    """Refuse what is too large, and numbers that a depth has no place for."""
    if not issubclass(kind.type, np.bool_ | np.integer | np.floating):
        raise BadPictureError(f"it holds no numbers, but {kind}")
    if count < 1:
        raise BadPictureError("broken: it has no pixels")
    if count > MOST:
        raise BadPictureError(f"too large: {count:,} numbers, and {MOST:,} are read")
    if depth.whole and issubclass(kind.type, np.floating):
        raise BadPictureError("it holds floating-point numbers: give data.depth float, and data.range")
    if depth.bytes == 1 and kind.name not in ("bool", "uint8", "uint16"):
        how = "save it as uint8, or give data.depth 16 or float"
        raise BadPictureError(f"it holds {kind.name} numbers, and which of them means white is unknown: {how}")


def _picture(picture: Image.Image, content: bytes) -> Numbers:
    """A picture that Pillow reads, of which more than 8 bits, or its alpha, are wanted."""
    width, height = upright_size(picture)
    sixteen, grey = png_of(content) if content.startswith(PNG) else (False, False)
    sixteen, grey = sixteen or picture.mode.startswith("I"), grey or picture.mode in {*GREY_MODES, "F"}
    clear = picture.has_transparency_data
    channels = (1 if grey else 3) + clear
    kind = np.dtype("float32" if picture.mode == "F" else "uint16" if sixteen else "uint8")

    def load() -> NDArray[Any]:
        orientation = 1
        with suppress(Exception):  # damaged EXIF data are no reason to lose a picture
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if sixteen or picture.mode == "F":
            array = _words(picture, content) if sixteen else np.array(picture)[None]
            return TURNS.get(orientation, lambda a: a)(array)
        picture.load()
        upright = picture
        with suppress(Exception):
            upright = ImageOps.exif_transpose(picture)
        upright = to_srgb(upright)
        array = np.array(upright.convert(("LA" if clear else "L") if grey else ("RGBA" if clear else "RGB")))
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    mode = _mode(channels, kind, clear)
    return Numbers((height, width), channels, mode, str(picture.format), clear, moves(picture), load)


def _words(picture: Image.Image, content: bytes) -> NDArray[Any]:
    """The 16 bits of a picture; a level that stands for "transparent" becomes a second channel."""
    if not picture.mode.startswith("I"):
        return png_of_words(content)
    array = np.array(picture).astype(np.uint16)
    clear = picture.info.get("transparency")
    return np.stack([array, np.where(array == clear, 0, 65535).astype(np.uint16)]) if clear is not None else array[None]


def _mode(channels: int, kind: np.dtype[Any], alpha: bool = False) -> str:
    """The name of channels and their type."""
    name = {(1, False): "L", (2, True): "LA", (3, False): "RGB", (4, True): "RGBA"}.get((channels, alpha))
    short = {"uint8": "", "uint16": ";16"}.get(kind.name, f";{kind.name}")
    return f"{name or f'{channels}ch'}{short}"
