"""One picture as people have it -> the pixels a field sees: turned upright, opaque, grey or RGB, a square.

Every step is Pillow's; this file decides only which, and in what order, and says in a sentence what is wrong with a
file that is no picture. It needs neither torch nor torchvision, so that a process that decodes starts in no time.
"""

import io
import os
import stat
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# what Pillow warns of (odd EXIF notes, large pictures) is counted or refused here, and would be said once a process
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}
"""Pillow's names of the pictures that have no colour."""
RESIZES = ("crop", "pad", "stretch", "keep")
"""How a picture becomes a square; see `to_square`."""
MOST_BYTES = 2**30
"""Bytes of a file at most; no picture of a size that is read has more."""
LONGEST = 16
"""Times its shorter side that the longer one of a picture may have before it is cut to that, and then scaled."""
PATIENCE = (0.1, 0.5)
"""Seconds to wait before a file that a disk would not give is tried again."""
APART = {"HEIC": (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")}
"""Pictures that Pillow does not read, by how their files go on after four bytes."""


class Encoded(NamedTuple):
    """One picture as it is stored: its bytes, or the file that holds them, or `size` bytes of one from `start`."""

    content: bytes | None = None
    path: str | None = None
    start: int = 0
    size: int | None = None


class BadPictureError(Exception):
    """A picture that cannot be used; the message says why, in a few words.

    `fleeting` where that may be another time: the disk or the memory failed, and not the picture; `gone` where its
    file is not there.
    """

    def __init__(self, why: str, fleeting: bool = False, gone: bool = False) -> None:
        super().__init__(why)
        self.fleeting, self.gone = fleeting, gone


def read_bytes(encoded: Encoded) -> bytes:
    """The bytes of a picture.

    Raises:
        BadPictureError: If there are none to be had. What is no regular file (a pipe, a device) is never waited for.
    """
    content = encoded.content
    if content is None:
        if not encoded.path:
            raise BadPictureError("the row is empty")
        content = _read(encoded)
    if not content:
        raise BadPictureError("the file is empty")
    return content


def _read(encoded: Encoded) -> bytes:
    """Read a file, or a stretch of it; again after a moment where the disk fails."""
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
            raise BadPictureError("its path is none") from None
        except OSError as error:
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            lasting = gone or isinstance(error, PermissionError | IsADirectoryError)
            if lasting or pause is None:
                raise BadPictureError((error.strerror or "cannot be read").lower(), not lasting, gone) from None
            time.sleep(pause)
    raise AssertionError


def open_picture(content: bytes) -> Image.Image:
    """Read a picture's header; its pixels are decoded when they are first asked for.

    Raises:
        BadPictureError: If it is no picture that Pillow knows, or one of more than 179 million pixels.
    """
    try:
        picture = Image.open(io.BytesIO(content))
    except Exception as error:  # Pillow's readers raise almost anything on a broken file
        raise _bad(error, content) from None
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise BadPictureError(f"it holds {kind} numbers, and which of them is white cannot be known")
    return picture


def _bad(error: Exception, content: bytes = b"") -> BadPictureError:
    """What is wrong with a picture."""
    if isinstance(error, BadPictureError):
        return error
    if isinstance(error, MemoryError):
        return BadPictureError("there is no memory to decode it in", fleeting=True)
    return BadPictureError(_reason(error, content))


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        pixels = next((int(word.strip("(")) for word in str(error).split() if word.strip("(").isdigit()), 0)
        return f"too large: {pixels:,} pixels, taken for a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        apart = next((name for name, opening in APART.items() if content[4:12].startswith(opening)), None)
        return f"{apart}, which is not read here: convert it to JPEG" if apart else "no picture of a format known here"
    return f"broken: {next(iter(str(error).splitlines()), '') or type(error).__name__}"


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height once the picture is turned upright by its EXIF note."""
    try:
        lying = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # notes that cannot be read are no reason to lose a picture
        lying = False
    turn = lying and picture.format != "TIFF"  # the size that Pillow gives of a TIFF is turned already
    return picture.size[::-1] if turn else picture.size


def see_through(picture: Image.Image) -> bool:
    """Whether the picture has an alpha channel or a transparent colour."""
    return picture.has_transparency_data


def depth_of(channels: str, modes: Iterable[str], tinted: bool) -> int:
    """1 or 3: as asked, "grey" or "rgb"; else 3 where a mode has colour, or a `tinted` background shows through."""
    coloured = tinted or bool(set(modes) - GREY_MODES)
    return {"grey": 1, "rgb": 3}.get(channels, 3 if coloured else 1)


def moves(picture: Image.Image) -> bool:
    """Whether there is more than one frame or page; the first is taken. (A phone's MPO has its preview beside it.)"""
    return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))


def opaque(picture: Image.Image, background: Sequence[int]) -> Image.Image:
    """The picture laid over a colour where one can see through it; others as they are."""
    if not see_through(picture):
        return picture
    under = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(under, picture.convert("RGBA")).convert("RGB")


def to_square(picture: Image.Image, size: int, resize: str, background: Sequence[int]) -> Image.Image:
    """A grey or RGB picture as a square, by Pillow's bicubic filter, which widens as it scales down (no aliasing).

    Args:
        picture: Mode L or RGB.
        size: Pixels a side.
        resize: "crop" scales the shorter side to `size` and cuts the middle out; "pad" scales the longer side and
            fills the rest; "stretch" scales both; "keep" scales nothing, fills what is small and cuts what is large.
        background: The colour to fill with, three numbers 0 .. 255.
    """
    width, height = picture.size
    if resize == "crop" and max(width, height) > LONGEST * min(width, height):  # scaled whole, it could fill the memory
        picture = _middle(picture, min(width, LONGEST * height), min(height, LONGEST * width))
        width, height = picture.size
    if resize != "keep":
        scale = {"crop": size / min(width, height), "pad": size / max(width, height)}.get(resize)
        new = (size, size) if scale is None else (max(round(width * scale), 1), max(round(height * scale), 1))
        if new != picture.size:
            picture = picture.resize(new, Image.Resampling.BICUBIC)
    width, height = picture.size
    left, top = max(size - width, 0) // 2, max(size - height, 0) // 2
    right, bottom = max(size - width - left, 0), max(size - height - top, 0)
    if left or top or right or bottom:
        fill = Image.new("RGB", (1, 1), tuple(background)).convert(picture.mode).getpixel((0, 0))
        picture = ImageOps.expand(picture, (left, top, right, bottom), fill)  # type: ignore[arg-type]
    return _middle(picture, size, size)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def _from_sixteen_bits(picture: Image.Image) -> Image.Image:
    """8 bits of 16; Pillow's own conversion would cut them off at 255, and look for a transparent level among them."""
    levels = np.array(picture.convert("I"))
    grey = Image.fromarray(levels).point(lambda level: level * (1 / 257)).convert("L")
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey


def to_pixels(
    picture: Image.Image, channels: int, size: int | None, resize: str, background: Sequence[int]
) -> NDArray[np.uint8]:
    """Decode one picture: upright by its EXIF note, opaque, grey or RGB, a square where asked.

    Args:
        picture: As Pillow opened it.
        channels: 1 for grey, 3 for RGB.
        size: Pixels a side; None keeps the picture's own size.
        resize: See `to_square`.
        background: The colour under transparent pixels and around padded pictures.
    Returns:
        Pixels, shape (channels, H, W), uint8.
    Raises:
        BadPictureError: If the file is broken.
    """
    try:
        picture.load()
        with suppress(Exception):  # notes that cannot be read are no reason to lose a picture
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            picture = _from_sixteen_bits(picture)
        picture = opaque(picture, background).convert("L" if channels == 1 else "RGB")
        if size is not None:
            picture = to_square(picture, size, resize, background)
    except Exception as error:  # Pillow's readers raise almost anything on a broken file
        raise _bad(error) from None
    pixels = np.array(picture)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))
