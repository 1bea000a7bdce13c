"""Files of pictures of every depth: the arrays in PNG and TIFF files, and PNG and TIFF files of arrays.

Pillow keeps 8 bits of a colour and knows no five channels: here PNGs of 16 bits are read by imagecodecs, and TIFFs by
tifffile. Both are imported when they are first needed.
"""

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What files of these formats begin with."""
KINDS = {1: 0, 3: 2, 4: 6}
"""The number by which a PNG calls grey, RGB and RGBA pictures."""
ALPHA = (1, 2)
"""The numbers by which a TIFF calls a channel that says how opaque a pixel is."""


class Pages(NamedTuple):
    """The numbers of a TIFF, shape (C, H, W), and what is known of them.

    `alpha` says whether the last channel is how opaque a pixel is; `orientation` is as in EXIF; `pages` is their
    number.
    """

    array: NDArray[Any]
    alpha: bool
    orientation: int
    pages: int


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
        return pages(content, every=True).array.transpose(1, 2, 0)
    if content.startswith(PNG) and png_bits(content) == 16:
        return _unfiltered(content)
    return np.atleast_3d(np.array(Image.open(io.BytesIO(content))))


def png_bits(content: bytes) -> int:
    """Bits of a number of a PNG."""
    return content[24] if len(content) > 24 else 8


def png_of_words(content: bytes) -> NDArray[np.uint16]:
    """The numbers of a PNG of 16 bits, shape (C, H, W).

    Raises:
        ImportError: If imagecodecs is not installed.
    """
    from imagecodecs import png_decode

    return np.atleast_3d(png_decode(content)).transpose(2, 0, 1)


def pages(content: bytes, every: bool) -> Pages:
    """The numbers of a TIFF: of its first page, or of every page, each one or more channels.

    Raises:
        ValueError: If it cannot be read, or would take more than 2 GiB.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        first: Any = file.pages[0]
        found: Any = file.series[0] if every else first
        if int(np.prod(found.shape)) * found.dtype.itemsize > 2**31:
            raise ValueError(f"its numbers take more than 2 GiB, shape {found.shape}")
        axes, array, count = found.axes, found.asarray(), len(file.pages)
        extra, tag = first.extrasamples, first.tags.get(274)
    plane = [axes.index("Y"), axes.index("X")]
    array = np.moveaxis(array, plane, [-2, -1])  # what is left are channels, in the order of the file
    array = np.ascontiguousarray(array.reshape(-1, *array.shape[-2:]))
    alpha = len(extra) == 1 and extra[0] in ALPHA and len(array) in (2, 4)
    return Pages(array, alpha, int(tag.value) if tag else 1, count)


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
