"""Where pictures come from: a source turns its name into `Images`."""

from collections.abc import Callable
from difflib import get_close_matches

import torch

from flowimg.data.store import Images


class DataError(Exception):
    """The data cannot be used; the message says what, where, and how to mend it."""

    exit_status = 3


def digits() -> Images:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, ten classes; comes with the package, no download.

    Their 17 grey levels 0 .. 16 are spread over 0 .. 255.
    Source: E. Alpaydin, C. Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI repository, CC BY 4.0.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    return Images(pixels, torch.from_numpy(bunch.target).long(), tuple(str(name) for name in bunch.target_names))


NAMED: dict[str, Callable[[], Images]] = {"digits": digits}
"""Collections known by name."""


def load_images(source: str, labels: bool) -> Images:
    """All pictures of a source, decoded.

    Args:
        source: A name in `NAMED`.
        labels: Keep the classes, where the source has them.
    Returns:
        The pictures; labels None if there are none or none were asked for.
    Raises:
        DataError: If the source means nothing.
    """
    if source not in NAMED:
        near = get_close_matches(source, NAMED, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(NAMED)}"
        raise DataError(f"data.source {source!r} names no collection of pictures: {hint}")
    images = NAMED[source]()
    return images if labels else Images(images.pixels, None, ())
