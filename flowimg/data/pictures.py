"""One picture as people have it -> the uint8 tensor a field sees: turned upright, opaque, grey or RGB, a square.

Every step is torchvision's or Pillow's; this file decides only which, and in what order.
"""

import io
from collections.abc import Sequence
from typing import Any

from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"}
"""Pillow's names of the pictures that have no colour."""
RESIZES = ("crop", "pad", "stretch", "keep")
"""How a picture becomes a square; see `to_square`."""

Row = dict[str, Any]
"""A picture as `datasets` stores it: {"bytes": the file's content or None, "path": its name or None}."""


def open_picture(row: Row) -> Image.Image:
    """Read a picture's header; its pixels are decoded when they are first asked for.

    Raises:
        OSError: If it is no picture that Pillow knows.
    """
    if row["bytes"] is None and not row["path"]:
        raise OSError("the row is empty")
    return Image.open(io.BytesIO(row["bytes"]) if row["bytes"] is not None else row["path"])


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height once the picture is turned upright by its EXIF note."""
    lying = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    turn = lying and picture.format != "TIFF"  # the size that Pillow gives of a TIFF is turned already
    return picture.size[::-1] if turn else picture.size


def see_through(picture: Image.Image) -> bool:
    """Whether the picture has an alpha channel or a transparent colour."""
    return picture.has_transparency_data


def opaque(picture: Image.Image, background: Sequence[int]) -> Image.Image:
    """The picture laid over a colour where one can see through it; others as they are."""
    if not see_through(picture):
        return picture
    under = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(under, picture.convert("RGBA")).convert("RGB")


def to_square(picture: Image.Image, size: int, resize: str, background: Sequence[int]) -> Image.Image:
    """A grey or RGB picture as a square.

    Args:
        picture: Mode L or RGB.
        size: Pixels a side.
        resize: "crop" scales the shorter side to `size` and cuts the middle out; "pad" scales the longer side and
            fills the rest; "stretch" scales both; "keep" scales nothing, fills what is small and cuts what is large.
        background: The colour to fill with, three numbers 0 .. 255.
    """
    width, height = picture.size
    if resize != "keep":
        scale = {"crop": size / min(width, height), "pad": size / max(width, height)}.get(resize)
        new = [size, size] if scale is None else [max(round(side * scale), 1) for side in (height, width)]
        if new != [height, width]:
            picture = tv.resize(picture, new, InterpolationMode.BICUBIC, antialias=True)
    width, height = picture.size
    left, top = max(size - width, 0) // 2, max(size - height, 0) // 2
    right, bottom = max(size - width - left, 0), max(size - height - top, 0)
    if left or top or right or bottom:
        grey = Image.new("RGB", (1, 1), tuple(background)).convert(picture.mode).getpixel((0, 0))
        picture = tv.pad(picture, [left, top, right, bottom], fill=grey)
    return tv.center_crop(picture, [size, size])


def to_pixels(picture: Image.Image, channels: int, size: int | None, resize: str, background: Sequence[int]) -> Tensor:
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
        OSError: If the file is broken.
    """
    if picture.mode == "F":
        raise OSError("it holds floating-point numbers, and which of them is white cannot be known")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut them off at 255
        picture = picture.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    picture = opaque(picture, background).convert("L" if channels == 1 else "RGB")
    if size is not None:
        picture = to_square(picture, size, resize, background)
    return tv.pil_to_tensor(picture)
