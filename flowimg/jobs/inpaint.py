"""`flowimg inpaint`: a part of pictures drawn anew."""

from typing import Any

import torch

from flowimg.jobs.given import given_masks, given_pictures
from flowimg.jobs.steering import draw_from, opened_for, place_for, told
from flowimg.sampling.steering import inpaint as inpainted
from flowimg.settings.steering import Inpaint


def inpaint(settings: Inpaint) -> dict[str, Any] | None:
    """Draw the masked part of pictures with several seeds; write each, and a grid beside what was known."""
    settings, run, label, state = opened_for("inpaint", settings)
    x_1 = given_pictures(run, settings.pictures, own_masks=not settings.mask)
    masks = given_masks(run, settings.pictures, settings.mask)
    how = f"inpainted_rounds{settings.rounds}x{settings.steps_a_stretch}"
    place = place_for(settings, run, label, how, [x_1, masks])
    drawn = draw_from(
        settings, run, label, state, place,
        lambda sampler, rows, seeds, cond: inpainted(
            sampler, x_1[rows], masks[rows], seeds, cond, settings.rounds, settings.steps_a_stretch
        ),
    )  # fmt: skip
    return told(settings, run, place, torch.where(masks, 0.0, x_1), drawn) if drawn else None
