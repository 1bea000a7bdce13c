"""HEIC and AVIF, which Pillow reads only with another package, or if it was built so.

Nothing is imported before a file needs it, so that decoder processes start fast.
"""

from importlib import metadata
from typing import NamedTuple

from PIL import features

HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
AV1 = {b"avif", b"avis"}
ANY = {b"mif1", b"msf1"}
"""Brands of the container that the two formats share; the brands after it tell which one it is."""


class Kind(NamedTuple):
    """A format: as people call it, and as Pillow does."""

    name: str
    pillow: str


HEIC, AVIF = Kind("HEIC", "HEIF"), Kind("AVIF", "AVIF")


def kind_of(content: bytes) -> Kind | None:
    """HEIC or AVIF by the brands in a file's first box; None for anything else."""
    brand = content[8:12]
    if content[4:8] != b"ftyp" or brand not in HEVC | AV1 | ANY:
        return None
    size = min(int.from_bytes(content[:4], "big"), 512)
    more = {content[at : at + 4] for at in range(16, size, 4)}
    return AVIF if brand in AV1 or (brand in ANY and more & AV1) else HEIC


def missing(kind: Kind) -> str | None:
    """Make this format readable; if that is impossible, say what to install."""
    if kind == AVIF:
        return None if features.check("avif") else "AVIF, which this Pillow does not read: pip install -U pillow"
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener(decode_threads=1)  # each core has a decoder process of its own
    except ImportError:
        return "HEIC, which needs pillow-heif: pip install -e '.[formats]'"
    return None


def versions() -> tuple[str, ...]:
    """The versions of readers besides Pillow, "" for a missing one: what none was there for is read again with one."""
    return *map(_version, ("pillow-heif", "imagecodecs", "tifffile")), features.version("avif") or ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
