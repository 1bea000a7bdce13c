"""Names of the user in figures: in a font that has their letters, or else with these letters escaped.

matplotlib would read `$` as mathematics and leave a name that begins with `_` out of a legend; both it and Pillow draw
a box for a letter that a font lacks. A name is drawn in one font: the one of all figures where that has its letters,
else the first font of this machine that has them.
"""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from flowimg.names import one_line

USUAL = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
"""The file of the font of all figures, which comes with matplotlib and has the letters of many languages."""
NO_LETTERS = ("Emoji", "Resort")
"""Parts of the names of fonts without outlines of letters: in colour only, or with a box for each script."""


@cache
def drawable(name: str) -> tuple[str, str]:
    """A name as a figure can draw it, in one line, and the file of its font."""
    name = one_line(name)
    lacking = _lacking(USUAL, name)
    if not lacking:
        return name, USUAL
    font = next((file for file in _others() if not _lacking(file, name)), None)
    if font is not None:
        return name, font
    return "".join(ascii(letter)[1:-1] if letter in lacking else letter for letter in name), USUAL


def set_name(text: Text, name: str) -> None:
    """Make a name the text of a part of a figure."""
    shown, file = drawable(name)
    font = text.get_fontproperties().copy()
    font.set_file(file)
    text.set(text=shown, fontproperties=font, parse_math=False)


def _lacking(file: str, name: str) -> set[str]:
    """The letters of a name that a font lacks; all of them for a file that is no font."""
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return set(name)
    return {letter for letter in name if not (font.scalable and font.get_char_index(ord(letter)))}


@cache
def _others() -> list[str]:
    """The fonts of this machine, upright ones of normal weight first; those of matplotlib are for mathematics."""
    own = str(Path(USUAL).parent)
    entries = [font for font in fontManager.ttflist if not font.fname.startswith(own)]
    entries = [font for font in entries if not any(part in font.name for part in NO_LETTERS)]
    usual = (400, "normal", "regular")
    return [f.fname for f in sorted(entries, key=lambda f: (f.style != "normal", f.weight not in usual, f.fname))]
