"""What decoder processes do: encoded pictures to pixels, written to a file or returned. Imports no torch."""

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowimg.data.pictures import BadPictureError, Encoded, open_picture, read_bytes, to_pixels
from flowimg.data.scan import HASH


class Decoding(NamedTuple):
    """How pictures become pixels; see `pictures.to_pixels`. `bytes` is the size of one decoded picture."""

    channels: int
    shape: tuple[int, int] | None
    resize: str
    background: tuple[int, ...]
    bytes: int


def decode(encoded: Encoded, how: Decoding) -> tuple[NDArray[np.uint8], bytes]:
    """A picture's pixels, (C, H, W), and the hash of its file.

    Raises:
        BadPictureError: If it cannot be used.
    """
    content = read_bytes(encoded)
    with open_picture(content) as picture:
        pixels = to_pixels(picture, how.channels, how.shape, how.resize, how.background)
    if pixels.size != how.bytes:
        raise BadPictureError(f"its size has changed to {pixels.shape[2]} x {pixels.shape[1]}")
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
            row[:] = pixels.ravel()
            results.append((hashed, None, False))
        except BadPictureError as error:
            results.append((b"", str(error), error.fleeting or error.gone))
    with open(file, "r+b") as opened:  # written and not mapped, so that a full disk is an error and not a SIGBUS
        opened.seek(start * how.bytes)
        opened.write(rows.tobytes())
    return results


def decode_some(how: Decoding, pictures: list[Encoded]) -> list[NDArray[np.uint8] | str]:
    """The pixels of some pictures; for one that cannot be used, the reason instead."""
    found: list[NDArray[np.uint8] | str] = []
    for encoded in pictures:
        try:
            found.append(decode(encoded, how)[0])
        except BadPictureError as error:
            found.append(str(error))
    return found
