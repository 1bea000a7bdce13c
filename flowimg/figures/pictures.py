"""Pictures with words beside them: tables with a name for each row and column, and grids that grow over training."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowimg.figures.motion import write_animation
from flowimg.figures.style import INK
from flowimg.spaces.pixels import TILE

GAP, EDGE = 4, 12
LETTERS = 15
"""Height of the letters, in pixels."""
WIDEST, MOST_FRAMES = 900, 40
"""An animation is made no wider than this, in pixels, and of no more frames."""


def picture_table(pixels: Tensor, rows: Sequence[str], columns: Sequence[str], path: Path, title: str) -> None:
    """Write pictures as a table with names.

    Args:
        pixels: Shape (rows, columns, C, H, W), uint8, C 1 or 3.
        rows: A name for each row, or empty names.
        columns: A name for each column.
        path: The PNG's file.
        title: Stands above.
    """
    factor = max(1, -(-TILE // pixels.shape[-1]))
    large = pixels.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    high, wide = large.shape[-2:]
    font, bold = letters(), letters(LETTERS + 3)
    left = EDGE + max(round(font.getlength(name)) for name in rows)
    left += EDGE if any(rows) else 0
    names = [_shorten(name, font, wide) for name in columns]
    top = EDGE + (LETTERS + 3) + EDGE + LETTERS + 8
    width = max(left + len(columns) * (wide + GAP) + EDGE, round(bold.getlength(title)) + 2 * EDGE)
    sheet = Image.new("RGB", (width, top + len(rows) * (high + GAP) + EDGE), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((EDGE, EDGE), title, fill=INK, font=bold)
    for column, name in enumerate(names):
        draw.text((left + column * (wide + GAP) + wide / 2, top - 6), name, fill=INK, font=font, anchor="ms")
    for row, name in enumerate(rows):
        down = top + row * (high + GAP)
        draw.text((left - EDGE, down + high / 2), name, fill=INK, font=font, anchor="rm")
        for column in range(len(columns)):
            picture = rearrange(large[row, column], "c h w -> h w c").squeeze(-1).numpy()
            sheet.paste(Image.fromarray(picture), (left + column * (wide + GAP), down))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def growth_animation(grids: Sequence[tuple[int, Path]], path: Path) -> None:
    """Write the grids that a run drew of one noise as an animated WebP, the step named on each.

    Args:
        grids: Steps, rising, and the PNG of each.
        path: The WebP's file.
    """
    frames = []
    last, file = grids[-1]
    with Image.open(file) as newest:
        shrunk = min(1, WIDEST / newest.width)
        size = round(newest.width * shrunk), round(newest.height * shrunk)
    head = LETTERS + 2 * EDGE
    some = sorted({round(place) for place in np.linspace(0, len(grids) - 1, min(MOST_FRAMES, len(grids)))})
    for step, file in [grids[place] for place in some]:
        with Image.open(file) as grid:
            frame = Image.new("RGB", (size[0], size[1] + head), "white")
            frame.paste(grid.convert("RGB").resize(size, Image.Resampling.LANCZOS), (0, head))
        draw = ImageDraw.Draw(frame)
        draw.text((EDGE, EDGE / 2), f"step {step:,} of {last:,}, from the same noise", fill=INK, font=letters())
        draw.rectangle((EDGE, head - 6, EDGE + (size[0] - 2 * EDGE) * step / max(last, 1), head - 4), fill=INK)
        frames.append(frame)
    # some six seconds in all
    write_animation(frames, path, max(80, min(700, 6000 // len(frames))))


def letters(height: int = LETTERS) -> ImageFont.FreeTypeFont:
    """The font of the other figures, which comes with matplotlib and has the letters of many languages."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), height)


def _shorten(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The name, cut to a width in pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name + "…"
