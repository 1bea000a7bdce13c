"""The capital letters in the typefaces that come with matplotlib: 16 x 16 grey, 26 classes, nothing to download.

DejaVu (Bitstream Vera licence), STIX (SIL Open Font Licence) and Computer Modern (BaKoMa), each in its weights and
slants; of STIX also the script, double-struck, sans-serif and typewriter letters of mathematics (Unicode U+1D400 on).
"""

import unicodedata
from importlib.metadata import distribution

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIDE, FINER, MARGIN = 16, 8, 1
"""Pixels a side of a picture; how much finer letters are drawn before they are averaged; pixels around a letter."""
PLAIN = [
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmmi10", "cmss10", "cmtt10"),
]
"""Fonts whose capital letters are taken."""
MATHS = ("SCRIPT", "BOLD SCRIPT", "DOUBLE-STRUCK", "SANS-SERIF", "SANS-SERIF BOLD", "SANS-SERIF ITALIC",
         "SANS-SERIF BOLD ITALIC", "MONOSPACE")  # fmt: skip
"""Alphabets of mathematics that are taken of STIX, as Unicode calls them."""


def letter_pictures() -> tuple[NDArray[np.uint8], list[int]]:
    """White letters on black, (N, 16, 16), and the number of each in the alphabet, typeface by typeface."""
    fonts = distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf")
    found = [(f"{fonts}/{name}.ttf", letter, letter) for name in PLAIN for letter in LETTERS]
    found += [(f"{fonts}/STIXGeneral.ttf", _maths(style, letter), letter) for style in MATHS for letter in LETTERS]
    pictures = [_drawn(font, character) for font, character, _ in found]
    return np.stack(pictures), [LETTERS.index(letter) for *_, letter in found]


def _maths(style: str, letter: str) -> str:
    """A letter of an alphabet of mathematics; some were in Unicode before, under another name."""
    try:
        return unicodedata.lookup(f"MATHEMATICAL {style} CAPITAL {letter}")
    except KeyError:
        return unicodedata.lookup(f"{style} CAPITAL {letter}")


def _drawn(file: str, character: str) -> NDArray[np.uint8]:
    """A character in the middle of a picture; a wide one is drawn smaller."""
    side, room = SIDE * FINER, (SIDE - 2 * MARGIN) * FINER
    ink = _ink(file, character, 0.8 * side)
    if max(ink.size) > room:
        ink = _ink(file, character, 0.8 * side * (room - 1) / max(ink.size))
    picture = Image.new("L", (side, side))
    picture.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def _ink(file: str, character: str, size: float) -> Image.Image:
    """A character of a size in pixels, without the room around it."""
    picture = Image.new("L", (4 * int(size), 4 * int(size)))
    ImageDraw.Draw(picture).text((size, size), character, fill=255, font=ImageFont.truetype(file, size))
    return picture.crop(picture.getbbox())
