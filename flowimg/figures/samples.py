"""Figures of samples: pictures in a grid, points in a plot beside data."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps
from torch import Tensor

from flowimg.errors import SettingsError
from flowimg.flow.condition import Condition
from flowimg.spaces.pixels import GAP, MAX_PIXELS, Pixels
from flowimg.spaces.points import Points
from flowimg.spaces.space import Space, chosen

MAX_COLUMNS = 26
"""Up to this number of classes, each has its own column of the grid."""


def draw_samples(
    space: Space, x: Tensor, cond: Condition, path: Path, title: str = "", width: int | None = None
) -> None:
    """Write the figure of samples as a PNG.

    Args:
        space: The space of the samples.
        x: Samples, shape (N, *D).
        cond: Their condition.
        path: The file of the PNG.
        title: The title; a grid of pictures has no room for it.
        width: Pictures are enlarged as if they had this width; by default they have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen(DRAWN, space)(space, x, cond, path, title, width)


class Samples(NamedTuple):
    """Samples of one space, x of shape (N, *D), and their condition."""

    space: Space
    x: Tensor
    cond: Condition


def draw_portions(portions: Sequence[Samples], path: Path, title: str = "") -> None:
    """Write the figure of samples of several shapes as a PNG: a grid for each, one below the other.

    The narrowest shape decides how far all of them are enlarged, so that their sizes compare.

    Args:
        portions: The samples of each shape; with a single one, the figure is that of `draw_samples`.
        path: The file of the PNG.
        title: See `draw_samples`.
    """
    if len(portions) == 1:
        draw_samples(*portions[0], path, title)
        return
    grids: list[Image.Image] = []
    narrowest = min(part.space.shape[-1] for part in portions)
    for part in portions:
        draw_samples(*part, path, title, narrowest)
        with Image.open(path) as drawn:
            grid = drawn.convert("RGB")
        grids.append(ImageOps.expand(grid, GAP, "white") if len(part.x) == 1 else grid)  # a single one has no gap
    sheet = Image.new("RGB", (max(grid.width for grid in grids), sum(grid.height for grid in grids)), "white")
    top = 0
    for grid in grids:
        sheet.paste(grid, (0, top))
        top += grid.height
    sheet.save(path)


def check_grid(space: Any, count: int, columns: int | None, instead: str) -> None:
    """Refuse a grid of more pixels than programs open; `instead` says how to get a smaller one.

    Raises:
        SettingsError: If so.
    """
    if not space.fits(count, columns):
        height, width = space.shape[1:]
        raise SettingsError(
            f"a grid of {count:,} pictures of {width} x {height} has {space.grid_pixels(count, columns):,} pixels, and "
            f"programs open at most {MAX_PIXELS:,}: {instead}"
        )


def save_grid(space: Space, x: Tensor, path: Path, columns: int | None = None, width: int | None = None) -> None:
    """Write pictures as one PNG, row by row; `width` as in `draw_samples`.

    Raises:
        SettingsError: If it would have more pixels than programs open.
    """
    check_grid(space, len(x), columns, "draw fewer at a time")
    grid = space.grid(x, columns, width)
    assert grid is not None
    Image.fromarray(grid.numpy()).save(path)


def _pixels(space: Pixels, x: Tensor, cond: Condition, path: Path, title: str, width: int | None) -> None:
    classes = 1 if cond.label is None else len(cond.label.unique())
    columns = classes if 1 < classes <= MAX_COLUMNS and len(x) > classes else None
    save_grid(space, x, path, columns if space.fits(len(x), columns) else None, width)


def _points(space: Points, x: Tensor, cond: Condition, path: Path, title: str, width: int | None) -> None:
    from flowimg.figures.points import points_figure  # matplotlib is slow to import

    points_figure(x, space.examples(len(x)), space.extent, path, title)


DRAWN: dict[type, Callable[[Any, Tensor, Condition, Path, str, int | None], None]] = {Points: _points, Pixels: _pixels}
"""How samples of each space are drawn."""
