"""`flowimg vary`: pictures like those given."""

from typing import Any

from flowimg.jobs.given import given_pictures
from flowimg.jobs.steering import draw_from, keep_drawn, opened_for
from flowimg.sampling.steering import from_inverted, from_noised
from flowimg.settings.steering import Vary


def vary(settings: Vary) -> dict[str, Any] | None:
    """Draw pictures like those given, with several seeds; write each, and a grid beside what was given."""
    settings, run, label, state = opened_for("vary", settings)
    x_1, begin = given_pictures(run, settings.pictures), from_inverted if settings.inversion else from_noised
    drawn = draw_from(
        settings, run, label, state,
        lambda sampler, rows, seeds, cond: begin(sampler, x_1[rows], seeds, settings.strength, cond),
    )  # fmt: skip
    if drawn is None:
        return None
    how = f"like{settings.strength:g}{'_inverted' if settings.inversion else ''}"
    return keep_drawn(settings, run, label, how, x_1, drawn)
