"""From the colours of a picture's own ICC profile to sRGB, which everything after this takes pixels to be.

The intent is relative colorimetric with black point compensation: white becomes white, black becomes black, and what
lies in sRGB keeps the colour that it was measured to have. Perceptual tables are each vendor's own taste, which only
some profiles have, so the same colour in two files would not become the same pixel. Without the compensation the
black of a print would be a dark grey.
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

COLOURS = {
    **{"L": "L", "LA": "L", "CMYK": "CMYK"},
    **dict.fromkeys(("RGB", "RGBA", "P", "PA", "YCbCr"), "RGB"),
}
"""What a profile of a picture in each of Pillow's modes is about. 16 bits, one bit and Lab are left as they are."""
NEAR = 1
"""Most levels by which a profile may differ from sRGB and be taken for it; writers of sRGB round it differently."""
Change = Callable[[Image.Image], Image.Image]


def to_srgb(picture: Image.Image) -> Image.Image:
    """A picture with its colours in sRGB: the same object if it has no profile, or one that changes nothing.

    Grey stays grey, and transparency stays; a palette, CMYK and a transparent colour become RGB and alpha. A profile
    that is damaged, or made for other colours than the picture has, is ignored.

    Args:
        picture: Decoded, in any mode.
    """
    profile, colours = picture.info.get("icc_profile"), COLOURS.get(picture.mode)
    change = _change(profile, colours) if colours and isinstance(profile, bytes) else None
    if change is None or colours is None:
        return picture
    alpha = None
    if picture.has_transparency_data:  # before the colours change, because one of them may be the transparent one
        picture = picture.convert("LA" if colours == "L" else "RGBA")
        alpha = picture.getchannel("A")
    changed = change(picture.convert(colours))
    if alpha is not None:
        changed.putalpha(alpha)
    return changed


@lru_cache(maxsize=64)
def _change(profile: bytes, colours: str) -> Change | None:
    """What brings "L", "RGB" or "CMYK" to sRGB; None if that is nothing, or the profile is of no use."""
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        if colours == "L":  # only 256 levels are ever looked up: the quick way would be off by several in the dark
            flags |= ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransformFromOpenProfiles(own, srgb, colours, "RGB", intent, flags)
        if colours == "CMYK":
            return transform.apply
        some = _all_greys() if colours == "L" else _many_colours()
        became = transform.apply(some).convert(colours)
    except Exception:  # a damaged profile is no reason to lose a picture
        return None
    if np.abs(np.asarray(became, np.int16) - np.asarray(some, np.int16)).max() <= NEAR:
        return None
    if colours == "RGB":
        return transform.apply
    levels = np.asarray(became).ravel().tolist()
    return lambda grey: grey.point(levels)


def _all_greys() -> Image.Image:
    return Image.fromarray(np.arange(256, dtype=np.uint8)[None])


def _many_colours() -> Image.Image:
    """All greys, and a lattice of 16 x 16 x 16 colours."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    return Image.fromarray(np.concatenate([lattice, greys])[None])
