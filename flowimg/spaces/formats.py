"""Files of pictures of every depth: the arrays in PNG and TIFF files, and PNG and TIFF files of arrays.

Pillow keeps 8 bits of a colour and knows no five channels: here PNGs of 16 bits are read by imagecodecs, and TIFFs by
tifffile. Both are imported when they are first needed.
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What files of these formats begin with."""
KINDS = {1: 0, 3: 2, 4: 6}
"""The number by which a PNG calls grey, RGB and RGBA pictures."""
MULTIPLIED = 1
ALPHA = (MULTIPLIED, 2)
"""The numbers by which a TIFF calls a channel that says how opaque a pixel is; colours may be multiplied by it."""
WHITE_IS_ZERO = 0
"""The number by which a TIFF says that its numbers go from white to black."""


class Pages(NamedTuple):
    """What is known of a TIFF before its numbers are read.

    `shape` is (C, H, W), as in the file; `type` is that of its numbers; `alpha` says whether the last channel is how
    opaque a pixel is; `orientation` is as in EXIF; `total` is the number of pages; `read` returns the numbers.
    """

    shape: tuple[int, int, int]
    type: np.dtype[Any]
    alpha: bool
    orientation: int
    total: int
    read: Callable[[], NDArray[Any]]


def to_file(rows: NDArray[Any], form: str, alpha: bool = False) -> bytes:
    """A picture as a file.

    Args:
        rows: Shape (H, W, C): a PNG holds uint8 and uint16 with C 1, 3 or 4; a TIFF also floats and any C.
        form: "png" or "tiff".
        alpha: The last of four channels says how opaque a pixel is; in a PNG it always does.
    """
    if form == "png":
        return _png_of_words(rows) if rows.dtype == np.uint16 else _png_of_bytes(rows)
    import tifffile

    file, flat = io.BytesIO(), rows[..., 0] if rows.shape[-1] == 1 else rows
    colour: dict[str, Any] = {"photometric": "rgb" if rows.shape[-1] == 3 or alpha else "minisblack"}
    if alpha:
        colour["extrasamples"] = ["unassalpha"]
    if flat.ndim == 3:
        colour["planarconfig"] = "contig"
    tifffile.imwrite(file, np.ascontiguousarray(flat), compression="zlib", metadata=None, **colour)
    return file.getvalue()


def from_file(content: bytes) -> NDArray[Any]:
    """The picture of a file that `to_file` made, shape (H, W, C)."""
    if content.startswith(TIFF):
        return pages(content, every=True).read().transpose(1, 2, 0)
    if content.startswith(PNG) and png_of(content)[0]:
        return _unfiltered(content)
    return np.atleast_3d(np.array(Image.open(io.BytesIO(content))))


def png_of(content: bytes) -> tuple[bool, bool]:
    """Of a PNG, whether it has 16 bits, and whether it is grey; a palette is not."""
    return len(content) > 25 and content[24] == 16, len(content) > 25 and content[25] in (0, 4)


def png_of_words(content: bytes) -> NDArray[np.uint16]:
    """The numbers of a PNG of 16 bits, shape (C, H, W).

    Raises:
        ImportError: If imagecodecs is not installed.
    """
    from imagecodecs import png_decode

    return np.atleast_3d(png_decode(content)).transpose(2, 0, 1)


def pages(content: bytes, every: bool) -> Pages:
    """The first page of a TIFF, or all pages that are like it, each one or more channels.

    Raises:
        Exception: Almost any, if it cannot be read; so does `read`.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is raised, in one sentence
    file = tifffile.TiffFile(io.BytesIO(content))
    first: Any = file.pages[0]
    found: Any = file.series[0] if every else first
    axes, kind, extra, tag = found.axes, found.dtype, first.extrasamples, first.tags.get(274)
    if kind is None or not {"Y", "X"} <= set(axes):
        raise ValueError(f"a TIFF of the axes {axes}")
    plane = [axes.index("Y"), axes.index("X")]
    height, width = (found.shape[axis] for axis in plane)
    channels = math.prod(found.shape) // max(height * width, 1)
    single = math.prod(first.shape) == math.prod(found.shape)
    alpha = single and len(extra) == 1 and extra[0] in ALPHA and channels in (2, 4)

    def read() -> NDArray[Any]:
        array = np.moveaxis(found.asarray(), plane, [-2, -1])  # what is left are channels, in the order of the file
        array = np.ascontiguousarray(array.reshape(channels, height, width))
        if first.photometric == WHITE_IS_ZERO and issubclass(kind.type, np.unsignedinteger):
            array = array.dtype.type(2**first.bitspersample - 1) - array
        return _apart(array) if alpha and extra[0] == MULTIPLIED else array

    return Pages((channels, height, width), kind, alpha, int(tag.value) if tag else 1, len(file.pages), read)


def _apart(array: NDArray[Any]) -> NDArray[Any]:
    """Colours (C, H, W) that were stored multiplied by how opaque they are, the last channel, without it."""
    full = np.iinfo(array.dtype).max if issubclass(array.dtype.type, np.unsignedinteger) else 1
    colours: NDArray[Any] = (
        array[:-1] * (full / np.maximum(array[-1:].astype(np.float64), 1e-6 * full)) * (array[-1:] > 0)
    )
    colours = np.round(np.minimum(colours, full)) if full != 1 else colours
    return np.concatenate([colours.astype(array.dtype), array[-1:]])


def _png_of_bytes(rows: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rows.squeeze(-1) if rows.shape[-1] == 1 else rows).save(file, "PNG")
    return file.getvalue()


def _png_of_words(rows: NDArray[np.uint16]) -> bytes:
    """A header, the lines, each after a 0 for "not filtered", and an end; all numbers with the high byte first."""
    height, width, channels = rows.shape
    lines = np.zeros((height, 1 + 2 * width * channels), np.uint8)
    lines[:, 1:] = np.ascontiguousarray(rows, ">u2").reshape(height, -1).view(np.uint8)
    head = struct.pack(">IIBBBBB", width, height, 16, KINDS[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    sizes = [struct.pack(">I", len(part)) + name + part for name, part in parts]
    return PNG + b"".join(part + struct.pack(">I", zlib.crc32(part[4:])) for part in sizes)


def _unfiltered(content: bytes) -> NDArray[np.uint16]:
    """The inverse of `_png_of_words`."""
    width, height, _, kind = struct.unpack(">IIBB", content[16:26])
    (size,) = struct.unpack(">I", content[33:37])
    lines = np.frombuffer(zlib.decompress(content[41 : 41 + size]), np.uint8).reshape(height, -1)
    channels = next(channels for channels, number in KINDS.items() if number == kind)
    return lines[:, 1:].copy().view(">u2").reshape(height, width, channels).astype(np.uint16)
