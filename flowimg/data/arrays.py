"""From a file of any depth and any number of channels to the array that a field learns from.

    numbers in the file (C, H, W) -> depth -> channels -> shape

Pictures of 8 bits and one or three channels take the shorter way of `pictures`. Imports no torch.
"""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from flowimg.data.colours import to_srgb
from flowimg.data.pictures import (
    GREY_MODES,
    BadPictureError,
    first_line,
    moves,
    open_picture,
    to_shape,
    upright_size,
)
from flowimg.spaces.depth import BYTES, Depth
from flowimg.spaces.formats import PNG, TIFF, pages, png_bits, png_of_words

NPY = b"\x93NUMPY"
"""What a file of NumPy begins with."""
MAX_NUMBERS = 2**29
"""Most numbers of a picture."""
ASKED = {"grey": 1, "rgb": 3, "rgba": 4}
"""The channels of what `data.channels` names."""
COUNTS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
"""The channels of pictures that are read as numbers."""
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
        ValueError: If the modes have several numbers of channels.
    """
    if channels in ASKED:
        return ASKED[channels]
    names = {mode.split(";")[0] for mode in modes}
    counts = {int(name[:-2]) for name in names if name.endswith("ch")}
    pictures = {name for name in names if not name.endswith("ch")}
    if channels == "all":
        counts |= {COUNTS[name] for name in pictures}
    elif pictures:
        counts.add(3 if tinted or pictures - GREY_MODES - {"F"} else 1)
    if len(counts) > 1:
        raise ValueError(f"pictures of {' and '.join(map(str, sorted(counts)))} channels: give data.channels")
    return counts.pop()


class Reading(NamedTuple):
    """How files are read: the depth that their numbers get, and whether every channel and page is wanted."""

    depth: Depth = BYTES
    every: bool = False


class Numbers(NamedTuple):
    """A picture as the numbers of its file.

    `size` is height and width, upright; `mode` names its channels and their type, as L, RGBA;16, 5ch;float32; `alpha`
    says that the last channel is how opaque a pixel is; `moving` that it has several frames or pages; `load` reads the
    numbers, shape (C, H, W).
    """

    size: tuple[int, int]
    mode: str
    form: str
    alpha: bool
    moving: bool
    load: Callable[[], NDArray[Any]]


def opened(content: bytes, reading: Reading) -> Image.Image | Numbers:
    """A file's header: as Pillow's picture where that has all that is wanted, else as numbers.

    Raises:
        BadPictureError: If it is in no known format.
    """
    if content.startswith(NPY):
        return _array(content)
    try:
        if reading != Reading() and content.startswith(TIFF):
            return _tiff(content, reading.every)
        picture = open_picture(content, floats=reading.depth.type == "float32")
    except BadPictureError:
        if content.startswith(TIFF):  # of more channels than Pillow knows
            return _tiff(content, reading.every)
        raise
    return picture if reading == Reading() else _picture(picture, content)


def _array(content: bytes) -> Numbers:
    """A NumPy array (H, W), (C, H, W) or (H, W, C): the channels are the shorter of the first and the last axis."""
    try:
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
        shape, _, kind = header(file)
    except Exception as error:
        raise BadPictureError(f"broken: {first_line(error)}") from None
    if kind.kind not in "buif":
        raise BadPictureError(f"it holds no numbers, but {kind}")
    if len(shape) not in (2, 3) or 0 in shape:
        raise BadPictureError(f"its shape {shape} is not that of a picture: (H, W), (C, H, W) or (H, W, C)")
    _bounded(math.prod(shape))
    last = len(shape) == 3 and shape[2] <= shape[0]
    channels = 1 if len(shape) == 2 else shape[2] if last else shape[0]
    height, width = shape[:2] if last or len(shape) == 2 else shape[1:]

    def load() -> NDArray[Any]:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        return array.transpose(2, 0, 1) if last else array.reshape(channels, height, width)

    return Numbers((height, width), _mode(channels, kind), "NPY", False, False, load)


def _tiff(content: bytes, every: bool) -> Numbers:
    try:
        found = pages(content, every)
    except Exception as error:  # tifffile raises almost anything on a damaged file
        text = first_line(error)
        more = ": pip install -e '.[formats]'" if "imagecodecs" in text else ""
        raise BadPictureError(f"broken: {text}{more}") from None
    _bounded(found.array.size)
    array = TURNS.get(found.orientation, lambda a: a)(found.array)
    mode, several = _mode(len(array), array.dtype, found.alpha), found.pages > 1
    return Numbers(array.shape[-2:], mode, "TIFF", found.alpha, several, lambda: array)


def _picture(picture: Image.Image, content: bytes) -> Numbers:
    """A picture that Pillow reads, of which more than 8 bits, or its alpha, are wanted."""
    width, height = upright_size(picture)
    grey, clear = picture.mode in {*GREY_MODES, "F"}, picture.has_transparency_data
    sixteen = content.startswith(PNG) and png_bits(content) == 16
    channels = (1 if grey else 3) + clear
    kind = np.dtype("float32" if picture.mode == "F" else "uint16" if sixteen else "uint8")

    def load() -> NDArray[Any]:
        orientation = 1
        with suppress(Exception):  # damaged EXIF data are no reason to lose a picture
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        try:
            if sixteen:
                return TURNS.get(orientation, lambda a: a)(_words(picture, content, grey))
            if picture.mode == "F":
                return np.array(picture)[None]
            picture.load()
            upright = to_srgb(ImageOps.exif_transpose(picture))
            array = np.array(upright.convert(("LA" if clear else "L") if grey else ("RGBA" if clear else "RGB")))
        except BadPictureError:
            raise
        except Exception as error:  # the readers raise almost anything on a damaged file
            raise BadPictureError(f"broken: {first_line(error)}") from None
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    mode = _mode(channels, kind, clear)
    return Numbers((height, width), mode, str(picture.format), clear, moves(picture), load)


def _words(picture: Image.Image, content: bytes, grey: bool) -> NDArray[Any]:
    """The 16 bits of a PNG; a level that stands for "transparent" becomes a second channel."""
    if not grey or picture.mode == "LA":
        try:
            return png_of_words(content)
        except ImportError:
            how = "needs imagecodecs: pip install -e '.[formats]'"
            raise BadPictureError(f"a PNG of 16 bits and {picture.mode} channels, which {how}") from None
    array = np.array(picture).astype(np.uint16)
    clear = picture.info.get("transparency")
    return np.stack([array, np.where(array == clear, 0, 65535).astype(np.uint16)]) if clear is not None else array[None]


def _mode(channels: int, kind: np.dtype[Any], alpha: bool = False) -> str:
    """The name of channels and their type."""
    name = {(1, False): "L", (2, True): "LA", (3, False): "RGB", (4, True): "RGBA"}.get((channels, alpha))
    short = {"uint8": "", "uint16": ";16"}.get(kind.name, f";{kind.name}")
    return f"{name or f'{channels}ch'}{short}"


def _bounded(numbers: int) -> None:
    if numbers > MAX_NUMBERS:
        raise BadPictureError(f"too large: {numbers:,} numbers")


def to_numbers(
    picture: Numbers,
    channels: int,
    shape: tuple[int, int] | None,
    resize: str,
    background: Sequence[int],
    depth: Depth,
) -> NDArray[Any]:
    """The array of a picture: upright, of a depth, with these channels, of a shape if one is given.

    Args:
        picture: As `opened` returns it.
        channels: 1 for grey, 3 for RGB, 4 for RGBA; or the number that the picture has.
        shape: Height and width; None keeps the picture's own.
        resize: See `pictures.to_shape`.
        background: The colour under transparent pixels and around padded pictures of one or three channels.
        depth: The depth; numbers that are brought to a shape are resampled by the same filter, rounded and clipped.

    Returns:
        Numbers of `depth`, shape (channels, H, W).

    Raises:
        BadPictureError: If it is damaged, has other channels, or numbers that the depth does not hold.
    """
    array, alpha = _in_depth(picture.load(), depth), picture.alpha
    count = len(array)
    colours = array[:-1] if alpha else array
    if colours.size and not (float(colours.min()) >= depth.low and float(colours.max()) <= depth.high):
        if not np.isfinite(colours).all():
            raise BadPictureError("it holds NaN or infinity")
        reach = f"{colours.min():g} to {colours.max():g}"
        raise BadPictureError(f"its numbers are {reach}, beyond data.range {depth.low:g} {depth.high:g}")
    behind = np.round if depth.whole else np.asarray
    back = behind(np.array(background) / 255 * (depth.high - depth.low) + depth.low)
    array = _with_channels(array, channels, alpha, back, depth)
    if shape is not None and shape != array.shape[1:]:
        array = _resized(array, shape, resize, back, depth, channels == 4 and (alpha or count in (1, 3)))
    return np.ascontiguousarray(array)


def _in_depth(array: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """The numbers of a file in a depth: whole ones of fewer bits are spread over more, and fewer keep the highest."""
    kind = array.dtype
    if kind == np.bool_:
        array, kind = array.astype(np.uint8) * 255, np.dtype(np.uint8)
    if not depth.whole:
        return array.astype(depth.type)
    if kind.kind == "f":
        raise BadPictureError("it holds floating-point numbers: give data.depth float, and data.range")
    if kind == np.uint8:
        return array if depth.bytes == 1 else array.astype(depth.type) * np.dtype(depth.type).type(257)
    if kind != np.uint16 and array.size and not 0 <= int(array.min()) <= int(array.max()) <= 65535:
        raise BadPictureError(f"it holds numbers from {array.min()} to {array.max()}: give data.depth float")
    if depth.bytes == 1:
        return np.round(array / 257).astype(np.uint8)
    return array.astype(depth.type)


def _with_channels(array: NDArray[Any], channels: int, alpha: bool, back: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """The channels that are wanted: grey to RGB and back as Pillow does it, transparent pixels over a background."""
    if len(array) == channels:
        return array
    full = np.iinfo(depth.type).max if depth.whole else depth.high
    opaque = array[-1:] if alpha else np.full_like(array[:1], full)
    colours = array[:-1] if alpha else array
    if len(colours) not in (1, 3) or channels not in (1, 3, 4):
        raise BadPictureError(f"it has {len(array)} channels, not {channels}")
    colours = np.repeat(colours, 3, 0) if len(colours) == 1 and channels != 1 else colours
    if channels == 4:
        return np.concatenate([colours, opaque])
    if alpha:
        under = back[:, None, None] if len(colours) == 3 else _luminance(back[:, None, None])
        share = opaque / full
        colours = _stored(colours * share + under * (1 - share), depth)
    return _stored(_luminance(colours), depth) if len(colours) == 3 and channels == 1 else colours


def _luminance(colours: NDArray[Any]) -> NDArray[np.float64]:
    """Grey of RGB (3, H, W), shape (1, H, W), by the weights of ITU-R 601."""
    red, green, blue = colours.astype(np.float64)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[None]


def _stored(numbers: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """Numbers as a depth stores them."""
    numbers = np.clip(numbers, depth.low, depth.high)
    return (np.round(numbers) if depth.whole else numbers).astype(depth.type)


def _resized(
    array: NDArray[Any], shape: tuple[int, int], resize: str, back: NDArray[Any], depth: Depth, alpha: bool
) -> NDArray[Any]:
    """An array of another shape, by `pictures.to_shape` a channel; colours count as much as they are opaque."""
    full = np.iinfo(depth.type).max if depth.whole else depth.high
    share = array[-1] / full if alpha else None
    fills = {1: _luminance(back[:, None, None]).ravel(), 3: back}.get(len(array), np.full(len(array), depth.low))
    parts = []
    for channel, fill in zip(array, fills.tolist(), strict=True):
        weighted = channel if share is None or channel is array[-1] else channel * share
        image = Image.fromarray(weighted.astype(np.float32))
        parts.append(np.array(to_shape(image, shape, resize, fill)))
    found = np.stack(parts)
    if share is not None:
        opaque = np.clip(found[-1:] / full, 0, 1)
        found = np.concatenate([found[:-1] / np.maximum(opaque, 1e-6) * (opaque > 0), opaque * full])
        return np.concatenate([_stored(found[:-1], depth), np.round(found[-1:]).astype(depth.type)])
    return _stored(found, depth)
