"""Tables of pictures with named rows and columns, and the animation of the grids of a training run."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowimg.figures.letters import USUAL, drawable
from flowimg.figures.motion import write_animation
from flowimg.figures.style import INK
from flowimg.spaces.pixels import MAX_PIXELS, TILE

GAP, EDGE = 4, 12
LETTERS = 15
"""Font size in pixels."""
MAX_WIDTH, MAX_HEIGHT, MAX_FRAMES = 900, 3600, 40
"""The maximum width and height of an animation in pixels (WebP has room for 16,383), and of its number of frames."""


def picture_table(pixels: Tensor, rows: Sequence[str], columns: Sequence[str], path: Path, title: str) -> None:
    """Write pictures as a table with named rows and columns.

    Args:
        pixels: Shape (rows, columns, C, H, W), uint8, C 1 or 3.
        rows: The names of the rows; all may be empty.
        columns: The names of the columns.
        path: The file of the PNG.
        title: The title above the table.
    """
    less = math.ceil(math.sqrt(pixels[:, :, 0].numel() / MAX_PIXELS))  # of huge pictures every second pixel, or third
    pixels = pixels[..., ::less, ::less]
    factor = max(1, -(-TILE // pixels.shape[-1]))
    large = pixels.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    high, wide = large.shape[-2:]
    font, bold = letters(), letters(LETTERS + 3)
    named = [(name, letters(LETTERS, file)) for name, file in map(drawable, rows)]
    left = EDGE * (2 if any(rows) else 1) + max(round(own.getlength(name)) for name, own in named)
    top = EDGE + (LETTERS + 3) + EDGE + LETTERS + 8
    width = max(left + len(columns) * (wide + GAP) + EDGE, round(bold.getlength(title)) + 2 * EDGE)
    sheet = Image.new("RGB", (width, top + len(rows) * (high + GAP) + EDGE), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((EDGE, EDGE), title, fill=INK, font=bold)
    for column, name in enumerate(columns):
        middle = left + column * (wide + GAP) + wide / 2
        draw.text((middle, top - 6), _shorten(name, font, wide), fill=INK, font=font, anchor="ms")
    for row, (name, own) in enumerate(named):
        down = top + row * (high + GAP)
        draw.text((left - EDGE, down + high / 2), name, fill=INK, font=own, anchor="rm")
        for column in range(len(columns)):
            picture = rearrange(large[row, column], "c h w -> h w c").squeeze(-1).numpy()
            sheet.paste(Image.fromarray(picture), (left + column * (wide + GAP), down))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def growth_animation(grids: Sequence[tuple[int, Path]], path: Path) -> None:
    """Write the grids that a run drew from the same noise as an animated WebP, with the step on each.

    Args:
        grids: The steps, rising, and the PNG of each.
        path: The file of the WebP.
    """
    frames = []
    last, file = grids[-1]
    with Image.open(file) as newest:
        scale = min(1, MAX_WIDTH / newest.width)
        size = round(newest.width * scale), min(round(newest.height * scale), MAX_HEIGHT)
        part = size[1] / round(newest.height * scale)  # of a taller grid its upper rows
    head = LETTERS + 2 * EDGE
    chosen = sorted({round(row) for row in np.linspace(0, len(grids) - 1, min(MAX_FRAMES, len(grids)))})
    for step, file in [grids[row] for row in chosen]:
        with Image.open(file) as grid:
            frame = Image.new("RGB", (size[0], size[1] + head), "white")
            shown = 0, 0, grid.width, grid.height * part
            frame.paste(grid.convert("RGB").resize(size, Image.Resampling.LANCZOS, shown), (0, head))
        draw = ImageDraw.Draw(frame)
        draw.text((EDGE, EDGE / 2), f"step {step:,} of {last:,}, from the same noise", fill=INK, font=letters())
        draw.rectangle((EDGE, head - 6, EDGE + (size[0] - 2 * EDGE) * step / max(last, 1), head - 4), fill=INK)
        frames.append(frame)
    # about six seconds in all
    write_animation(frames, path, max(80, min(700, 6000 // len(frames))))


def letters(height: int = LETTERS, file: str = USUAL) -> ImageFont.FreeTypeFont:
    """The font of a file, by default that of the other figures."""
    return ImageFont.truetype(file, height)


def _shorten(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The name, cut to a width in pixels with an ellipsis."""
    fits = (name, *(name[:end] + "…" for end in range(len(name) - 1, 0, -1)))
    return next((text for text in fits if font.getlength(text) <= width), "…")
