"""What decoder processes do: encoded pictures to pixels, written to a file or returned. Imports no torch."""

from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.arrays import READING, Numbers, Reading, opened
from flowimg.data.numbers import to_numbers
from flowimg.data.pictures import BadPictureError, Encoded, read_bytes, to_pixels
from flowimg.data.scan import HASH


class Decoding(NamedTuple):
    """How pictures become pixels; see `numbers.to_numbers`."""

    channels: int
    shape: tuple[int, int]
    resize: str
    background: tuple[int, ...]
    reading: Reading = READING

    @property
    def bytes(self) -> int:
        """The size of a decoded picture."""
        height, width = self.shape
        return self.channels * height * width * self.reading.depth.bytes


def decode(encoded: Encoded, how: Decoding) -> tuple[NDArray[Any], bytes]:
    """A picture's numbers, (C, H, W), of the depth that is read, and the hash of its file.

    Raises:
        BadPictureError: If it cannot be used.
    """
    content = read_bytes(encoded)
    picture, brought = opened(content, how.reading), (how.channels, how.shape, how.resize)
    if isinstance(picture, Numbers):
        pixels = to_numbers(picture, *brought, how.background, how.reading.depth)
    else:
        with picture:
            pixels = to_pixels(picture, *brought, how.background)
    return pixels, blake2b(content, digest_size=HASH).digest()


def decode_into(file: str, how: Decoding, task: tuple[int, list[Encoded]]) -> list[tuple[bytes, str | None, bool]]:
    """Decode some pictures into their rows of a file of pixels.

    Args:
        file: Rows of `how.bytes` bytes.
        how: How to decode.
        task: The row of the first, and the pictures.

    Returns:
        For each, the hash of its file, why it cannot be used, and whether that reason may be temporary.
    """
    start, pictures = task
    rows = np.zeros((len(pictures), how.bytes), np.uint8)
    results: list[tuple[bytes, str | None, bool]] = []
    for row, encoded in zip(rows, pictures, strict=True):
        try:
            pixels, hashed = decode(encoded, how)
            row[:] = pixels.ravel().view(np.uint8)
            results.append((hashed, None, False))
        except BadPictureError as error:
            results.append((b"", str(error), error.fleeting or error.gone))
    with open(file, "r+b") as opened:  # written and not mapped, so that a full disk is an error and not a SIGBUS
        opened.seek(start * how.bytes)
        opened.write(rows.tobytes())
    return results


def decode_some(how: Decoding, pictures: list[Encoded]) -> list[NDArray[Any] | str]:
    """The pixels of some pictures; for one that cannot be used, the reason instead."""
    found: list[NDArray[Any] | str] = []
    for encoded in pictures:
        try:
            found.append(decode(encoded, how)[0])
        except BadPictureError as error:
            found.append(str(error))
    return found
