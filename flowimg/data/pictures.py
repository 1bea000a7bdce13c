"""From an encoded picture to the pixels that a field learns from: upright, opaque, grey or RGB, square.

Pillow does every step; this file decides which steps, in what order, and explains in one sentence why a file cannot be
used. It imports neither torch nor torchvision, so that decoder processes start fast.
"""

import io
import os
import stat
import struct
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from flowimg.data.colours import to_srgb
from flowimg.data.readers import kind_of, missing

# Pillow would warn in every process about what is counted or refused here: odd EXIF data, large pictures
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}
"""Pillow's modes without colour."""
RESIZES = ("crop", "pad", "stretch", "keep")
"""How a picture comes to its shape; see `to_shape`."""
MOST_BYTES = 2**30
"""Most bytes of a file; no picture of an accepted size has more."""
LONGEST = 16
"""Most the longer side may be, in shorter sides; a longer picture is cropped to that before it is scaled."""
LYING = (5, 6, 7, 8)
"""EXIF orientations whose width is the height of the picture."""
MARKS = (b"eXIf", b"Raw profile", b"adobe.xmp")
"""What stands in a PNG that says how it is to be turned."""
CONFUSED = LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, struct.error
"""What a reader raises that took a damaged file at its word; the message is about the reader, not about the file."""
PATIENCE = (0.1, 0.5)
"""Seconds to wait after each failed attempt to read a file, before the next."""


class Encoded(NamedTuple):
    """An encoded picture: its bytes, or the path of its file, or `size` bytes of a file from `start`."""

    content: bytes | None = None
    path: str | None = None
    start: int = 0
    size: int | None = None


class BadPictureError(Exception):
    """A picture that cannot be used; the message gives the reason in a few words.

    `fleeting`: it may be usable later, because the disk or the memory failed; `gone`: its file does not exist.
    """

    def __init__(self, reason: str, fleeting: bool = False, gone: bool = False) -> None:
        super().__init__(reason)
        self.fleeting, self.gone = fleeting, gone


def first_line(error: Exception) -> str:
    """An error in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def read_bytes(encoded: Encoded) -> bytes:
    """The bytes of a picture.

    Raises:
        BadPictureError: If they are unavailable or empty. Pipes and devices are refused, without waiting for them.
    """
    if encoded.content is None and not encoded.path:
        raise BadPictureError("the row is empty")
    content = _read(encoded) if encoded.content is None else encoded.content
    if not content:
        raise BadPictureError("the file is empty")
    return content


def _read(encoded: Encoded) -> bytes:
    """Read a file, or a range of it; if the disk fails, try again after a moment."""
    for pause in (*PATIENCE, None):
        try:
            file = os.open(str(encoded.path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with open(file, "rb") as opened:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode):
                    raise BadPictureError("not a regular file")
                left = found.st_size - encoded.start
                size = left if encoded.size is None else min(encoded.size, left)
                if size > MOST_BYTES:
                    raise BadPictureError(f"too large: {size:,} bytes")
                opened.seek(encoded.start)
                return opened.read(max(size, 0))
        except ValueError:
            raise BadPictureError("its path is invalid") from None
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            lasting = gone or isinstance(error, PermissionError | IsADirectoryError)
            if lasting or pause is None:
                raise BadPictureError((error.strerror or "cannot be read").lower(), not lasting, gone) from None
            time.sleep(pause)
    raise AssertionError


def open_picture(content: bytes, floats: bool = False) -> Image.Image:
    """Read a picture's header; its pixels are decoded when they are first needed.

    Args:
        content: The bytes of its file.
        floats: Floating-point numbers are read too.

    Raises:
        BadPictureError: If it is not in a format that Pillow reads, or has more than 179 million pixels.
    """
    special = kind_of(content)
    lacking = missing(special) if special else None
    if lacking:
        raise BadPictureError(lacking)
    try:  # HEIC and AVIF may begin alike: which reader is asked must not depend on which was registered first
        picture = Image.open(io.BytesIO(content), formats=[special.pillow] if special else None)
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise bad_picture(error, content) from None
    if picture.format == "PNG" and not any(mark in content for mark in MARKS):
        picture.info["exif"] = b""  # Pillow would decode all pixels to look for it behind them
    if (picture.mode == "F" and not floats) or (picture.mode == "I" and picture.format != "PNG"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        how = "give data.depth float, and data.range"
        raise BadPictureError(f"it holds {kind} numbers, and which of them means white is unknown: {how}")
    return picture


def bad_picture(error: Exception, content: bytes = b"") -> BadPictureError:
    """The reason why a picture cannot be used."""
    if isinstance(error, BadPictureError):
        return error
    if isinstance(error, MemoryError):
        return BadPictureError("there is no memory to decode it in", fleeting=True)
    if isinstance(error, Image.DecompressionBombError):
        pixels = next((int(word.strip("(")) for word in str(error).split() if word.strip("(").isdigit()), 0)
        return BadPictureError(f"too large: {pixels:,} pixels, taken for a decompression bomb")
    if isinstance(error, UnidentifiedImageError):
        special = kind_of(content)
        why = f"broken: {special.name} that cannot be decoded" if special else "not a picture in a known format"
        return BadPictureError(why)
    if isinstance(error, ImportError) or "requires the 'imagecodecs'" in str(error):
        return BadPictureError("it needs the package imagecodecs: pip install -e '.[formats]'")
    if isinstance(error, CONFUSED):
        return BadPictureError("broken: it cannot be decoded")
    return BadPictureError(f"broken: {first_line(error)}")


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height after the picture is rotated upright by its EXIF orientation."""
    try:
        lying = picture.getexif().get(ExifTags.Base.Orientation) in LYING
    except Exception:  # damaged EXIF data are no reason to lose a picture
        lying = False
    turn = lying and picture.format != "TIFF"  # Pillow reports the size of a TIFF as it is after the rotation
    return picture.size[::-1] if turn else picture.size


def moves(picture: Image.Image) -> bool:
    """Whether there are several frames or pages, of which the first is used. (A phone's MPO contains its preview.)"""
    return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))


def to_shape(picture: Image.Image, shape: tuple[int, int], resize: str, fill: Any) -> Image.Image:
    """A picture of this shape, by Pillow's bicubic filter, which is antialiased when it scales down.

    Args:
        picture: Mode L, RGB, RGBA or F.
        shape: Height and width.
        resize: "crop" scales the picture until it covers the shape, and crops the centre; "pad" scales it until the
            shape holds it, and pads; "stretch" scales both sides; "keep" scales nothing, pads what is short and crops
            what is long.
        fill: The padding, as a pixel of the picture's mode.
    """
    (tall, wide), (width, height) = shape, picture.size
    longest = LONGEST * max(shape) // min(shape)
    if resize == "crop" and max(width, height) > longest * min(width, height):  # scaled first, it could fill the memory
        picture = _centre(picture, min(width, longest * height), min(height, longest * width))
        width, height = picture.size
    if resize != "keep":
        both = wide / width, tall / height
        scale = {"crop": max(both), "pad": min(both)}.get(resize)
        new = (wide, tall) if scale is None else (max(round(width * scale), 1), max(round(height * scale), 1))
        if new != picture.size:
            picture = picture.resize(new, Image.Resampling.BICUBIC)
    width, height = picture.size
    left, top = max(wide - width, 0) // 2, max(tall - height, 0) // 2
    right, bottom = max(wide - width - left, 0), max(tall - height - top, 0)
    if left or top or right or bottom:
        picture = ImageOps.expand(picture, (left, top, right, bottom), fill)
    return _centre(picture, wide, tall)


def _centre(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def _from_sixteen_bits(picture: Image.Image) -> Image.Image:
    """Scale 16 bits to 8; Pillow's conversion would clip at 255, and look up the transparent level after that."""
    levels = np.array(picture.convert("I"))
    grey = Image.fromarray(levels).point(lambda level: level * (1 / 257)).convert("L")
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey


def to_pixels(
    picture: Image.Image, channels: int, shape: tuple[int, int] | None, resize: str, background: Sequence[int]
) -> NDArray[np.uint8]:
    """Decode one picture: upright by its EXIF orientation, in sRGB, opaque, grey or RGB, of a shape if one is given.

    Args:
        picture: As Pillow opened it.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        shape: Height and width; None keeps the picture's own.
        resize: See `to_shape`.
        background: The colour under transparent pixels and around padded pictures.

    Returns:
        Pixels, shape (channels, H, W), uint8.

    Raises:
        BadPictureError: If the file is damaged.
    """
    try:
        # never JPEG at a reduced scale (`draft`): it averages before it clips to 0 .. 255, off by levels on text
        picture.load()
        with suppress(Exception):  # damaged EXIF data are no reason to lose a picture
            picture = ImageOps.exif_transpose(picture)
        picture = to_srgb(picture)
        if picture.mode.startswith("I"):
            picture = _from_sixteen_bits(picture)
        if picture.has_transparency_data and channels != 4:
            under = Image.new("RGBA", picture.size, (*background, 255))
            picture = Image.alpha_composite(under, picture.convert("RGBA")).convert("RGB")
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if mode is None:
            raise BadPictureError(f"it is a picture of {len(picture.getbands())} channels, not {channels}")
        picture = picture.convert(mode)
        if shape is not None:
            around = (*background, 0) if channels == 4 else tuple(background)  # what is added is transparent
            fill = Image.new("RGBA" if channels == 4 else "RGB", (1, 1), around).convert(mode).getpixel((0, 0))
            picture = to_shape(picture, shape, resize, fill)
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise bad_picture(error) from None
    pixels = np.array(picture)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))
