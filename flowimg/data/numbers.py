"""From the numbers of a file to the array that a field learns from. Imports no torch.

numbers in the file (C, H, W) -> depth -> channels -> shape
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowimg.data.arrays import Numbers
from flowimg.data.pictures import BadPictureError, bad_picture, to_shape
from flowimg.spaces.depth import BYTES, WORDS, Depth

CLEAR = 1e-6
"""Share below which a pixel is transparent, and has no colour."""


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
        Numbers of `depth`, shape (channels, H, W). Of transparency, black is clear and white is opaque.

    Raises:
        BadPictureError: If it is damaged, has other channels, or numbers that the depth does not hold.
    """
    try:
        array = picture.load()
    except Exception as error:  # the readers raise almost anything on a damaged file
        raise bad_picture(error) from None
    array = _in_depth(array, picture.alpha, depth)
    back = _spread(np.array(background) / 255, depth)
    clear = channels == 4 and (picture.alpha or picture.channels in (1, 3))
    array = _with_channels(array, channels, picture.alpha, back, depth)
    if shape is not None and shape != array.shape[1:]:
        array = _resized(array, shape, resize, back, depth, clear)
    return np.ascontiguousarray(array)


def _in_depth(array: NDArray[Any], alpha: bool, depth: Depth) -> NDArray[Any]:
    """The numbers of a file in a depth: whole ones of fewer bits are spread over more, and fewer keep the highest.

    257 k become k and back; what lies between is cut off, as by `pictures.to_pixels`.
    """
    kind = array.dtype
    if kind == np.bool_:
        return _spread(array, depth)
    # data.range is about colours: alpha goes from 0 to the most of its type, of floats from 0 to 1
    if alpha and depth not in (BYTES, WORDS) and not issubclass(kind.type, np.signedinteger):
        most = np.iinfo(kind).max if issubclass(kind.type, np.unsignedinteger) else 1
        share = array[-1:].astype(np.float64) / most
        if not np.isfinite(share).all():
            raise BadPictureError("it holds NaN or infinity")
        if share.min() < 0 or share.max() > 1:
            raise BadPictureError(f"its alpha is {share.min():g} to {share.max():g}, beyond 0 and 1")
        return np.concatenate([_in_depth(array[:-1], False, depth), _spread(share, depth)])
    type_ = np.dtype(depth.type).type
    if not depth.whole:
        with np.errstate(over="ignore"):  # what is infinite is said below
            array = array.astype(type_)
    elif kind == np.uint8:
        array = array if depth.bytes == 1 else array.astype(type_) * type_(257)
    elif kind != np.uint16 and not 0 <= int(array.min()) <= int(array.max()) <= 65535:
        raise BadPictureError(f"it holds numbers from {array.min()} to {array.max()}: give data.depth float")
    else:
        array = (array // 257).astype(type_) if depth.bytes == 1 else array.astype(type_)
    low, high = array.min(), array.max()
    if depth not in (BYTES, WORDS) and not (low >= type_(depth.low) and high <= type_(depth.high)):
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadPictureError("it holds NaN or infinity")
        raise BadPictureError(f"its numbers are {low:g} to {high:g}, beyond data.range {depth.low:g} {depth.high:g}")
    return array


def _with_channels(array: NDArray[Any], channels: int, alpha: bool, back: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """The channels that are wanted: grey to RGB and back as Pillow does it, transparent pixels over a background."""
    if len(array) == channels:
        return array
    colours = array[:-1] if alpha else array
    if len(colours) not in (1, 3) or channels not in (1, 3, 4):
        raise BadPictureError(f"it has {len(array)} channels, not {channels}")
    colours = np.repeat(colours, 3, 0) if len(colours) == 1 and channels != 1 else colours
    if channels == 4:
        opaque = array[-1:] if alpha else _spread(np.ones_like(array[:1], np.float64), depth)
        return np.concatenate([colours, opaque])
    if alpha:
        under = back[:, None, None] if len(colours) == 3 else _luminance(back[:, None, None])
        share = depth.share(array[-1:].astype(np.float64))
        colours = _stored(colours * share + under * (1 - share), depth)
    return _stored(_luminance(colours), depth) if len(colours) == 3 and channels == 1 else colours


def _luminance(colours: NDArray[Any]) -> NDArray[np.float64]:
    """Grey of RGB (3, H, W), shape (1, H, W), by the weights of ITU-R 601."""
    red, green, blue = colours.astype(np.float64)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[None]


def _spread(share: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """The numbers of a depth this far on the way from black to white, 0 to 1."""
    return _stored(depth.at(share), depth)


def _stored(numbers: NDArray[Any], depth: Depth) -> NDArray[Any]:
    """Numbers as a depth stores them."""
    numbers = np.clip(numbers, depth.low, depth.high)
    return (np.round(numbers) if depth.whole else numbers).astype(depth.type)


def _resized(
    array: NDArray[Any], shape: tuple[int, int], resize: str, back: NDArray[Any], depth: Depth, alpha: bool
) -> NDArray[Any]:
    """An array of another shape, by `pictures.to_shape` a channel; colours count as much as they are opaque."""
    fills = {1: _luminance(back[:, None, None]).ravel(), 3: back}.get(len(array), np.full(len(array), depth.low))
    if not alpha:
        return _stored(np.stack([_scaled(*one, shape, resize) for one in zip(array, fills, strict=True)]), depth)
    opaque = depth.share(array[-1].astype(np.float64))
    share = np.clip(_scaled(opaque, 0, shape, resize), 0, 1)
    weighted = np.stack([_scaled(colour * opaque, 0, shape, resize) for colour in array[:-1]])
    colours = np.where(share > CLEAR, weighted / np.maximum(share, CLEAR), depth.low)
    return np.concatenate([_stored(colours, depth), _spread(share[None], depth)])


def _scaled(channel: NDArray[Any], fill: float, shape: tuple[int, int], resize: str) -> NDArray[np.float32]:
    """A channel of another shape, not clipped."""
    return np.array(to_shape(Image.fromarray(channel.astype(np.float32)), shape, resize, float(fill)))
