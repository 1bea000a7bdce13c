"""Pictures on the page: enlarged, and side by side."""

from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from einops import rearrange
from torch import Tensor

from flowimg.runs.opening import OpenRun

SIDE = 320
"""Small pictures are enlarged by a whole factor to about this many pixels."""


class Answer(NamedTuple):
    """Pictures in order as they are shown, (N, H, W, 3) uint8, and how they were made."""

    pictures: np.ndarray
    said: str


def shown(label: str, name: str, height: int | None = None) -> Any:
    """A place for a picture, without its own buttons."""
    options: dict[str, Any] = {"elem_classes": "pixels", "interactive": False, "format": "png", "buttons": []}
    # on a low strip the label would lie over the first pictures
    return gr.Image(label=label, show_label=height is None, elem_id=name, height=height, **options)


def at_place(pictures: np.ndarray | None, place: float) -> np.ndarray | None:
    """The picture nearest to a place from 0 (the first) to 1 (the last), enlarged."""
    if pictures is None:
        return None
    return enlarged(pictures[round(float(place) * (len(pictures) - 1))])


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A small picture by a whole factor as large as the page shows it."""
    factor = max(1, round(SIDE / picture.shape[0]))
    return np.kron(picture, np.ones((factor, factor, 1), np.uint8))


def row(pictures: np.ndarray) -> np.ndarray:
    """Pictures side by side, enlarged a little, with a gap between them."""
    factor = max(1, -(-64 // pictures.shape[1]))
    large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    spaced = np.pad(large, ((0, 0), (0, 0), (0, 4), (0, 0)), constant_values=255)
    return rearrange(spaced, "n h w c -> h (n w) c")[:, :-4]


def pixels(run: OpenRun, x: Tensor) -> np.ndarray:
    """States as colour pictures, (N, H, W, 3)."""
    space: Any = run.space
    pixels = rearrange(space.shown(x), "n c h w -> n h w c").numpy()
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels
