"""`flowimg vary`: pictures like those given."""

from dataclasses import replace
from typing import Any

from flowimg.jobs.given import given_pictures
from flowimg.jobs.steering import draw_from, opened_for, place_for, told
from flowimg.runs.opening import check_null
from flowimg.sampling.steering import from_inverted, from_noised
from flowimg.settings.steering import Vary


def vary(settings: Vary) -> dict[str, Any] | None:
    """Draw pictures like those given, with several seeds; write each, and a grid beside what was given."""
    if settings.inversion and settings.precision == "auto":  # the way back needs precision
        settings = settings.model_copy(update={"precision": "fp32"})
    settings, run, label, state = opened_for("vary", settings)
    if settings.inversion:
        check_null(replace(run, guide=None), "the way back has none, so leave out --inversion")
    x_1, begin = given_pictures(run, settings.pictures), from_inverted if settings.inversion else from_noised
    how = f"like{settings.strength:g}{'_inverted' if settings.inversion else ''}"
    place = place_for(settings, run, label, how, [x_1])
    drawn = draw_from(
        settings, run, label, state, place,
        lambda sampler, rows, seeds, cond: begin(sampler, x_1[rows], seeds, settings.strength, cond),
    )  # fmt: skip
    return told(settings, run, place, x_1, drawn) if drawn else None
