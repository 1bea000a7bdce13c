"""The tab about pictures that a visitor gives: a brushed part drawn anew, or pictures like it."""

from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from flowimg.app.asked import SEED, class_number, is_number, solving, told_of, whole
from flowimg.app.controls import controls, kindly
from flowimg.app.shown import Answer, enlarged, pixels, row, shown
from flowimg.build.sampler import SOLVERS
from flowimg.conditions.labels import labelled
from flowimg.errors import PageError
from flowimg.jobs.drawing import sampler_of
from flowimg.jobs.given import OPAQUE, as_png, mask_from, picture_from
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import Followed
from flowimg.sampling.steering import from_noised, inpaint
from flowimg.settings.steering import Inpaint

COUNT = 4
"""Pictures drawn at once, of consecutive seeds."""


def brushed(
    run: OpenRun, edited: Any, seed: Any, steps: Any, solver: Any, guidance: Any, label: Any, away: Any = 1.0,
    precision: str = "fp32",
) -> Answer:  # fmt: skip
    """The picture of the editor with its brushed part drawn anew, of several seeds.

    # house: a parameter for each input of the page, as Gradio passes them

    Raises:
        PageError: If an input is out of bounds, or nothing is brushed.
    """
    how, first = solving(run, steps, solver, guidance, precision, away), whole(seed, "seed", 0, SEED - COUNT + 1)
    if SOLVERS[how.solver].adaptive or SOLVERS[how.solver].multistep:
        raise PageError(f"{how.solver} cannot draw a part of a picture: choose euler or heun")
    x_1, drawn = picture_of(run, edited), mask_of(run, edited)
    if not bool(drawn.any()):
        raise PageError("nothing is brushed: paint over what is to be drawn anew")
    if how.num_steps == 1:
        raise PageError("steps: give 2 or more for a part of a picture")
    cond, seeds = labelled(class_number(run, label), COUNT, run.facts.classes), range(first, first + COUNT)
    sampler = sampler_of(run, how, batch_size=COUNT)
    usual = Inpaint(run=how.run, num_steps=how.num_steps, solver=how.solver)
    rounds = usual.rounds, usual.steps_a_stretch
    return _answer(run, how, inpaint(sampler, x_1.repeat(COUNT, 1, 1, 1), drawn, seeds, cond, *rounds))


def like(
    run: OpenRun, edited: Any, strength: Any, seed: Any, steps: Any, solver: Any, guidance: Any, label: Any,
    away: Any = 1.0, precision: str = "fp32",
) -> Answer:  # fmt: skip
    """Pictures like that of the editor, of several seeds.

    # house: a parameter for each input of the page, as Gradio passes them

    Raises:
        PageError: If an input is out of bounds.
    """
    how, first = solving(run, steps, solver, guidance, precision, away), whole(seed, "seed", 0, SEED - COUNT + 1)
    if not is_number(strength) or not 0 <= strength <= 1:
        raise PageError("strength is a number from 0 (the picture itself) to 1 (nothing of it)")
    x_1, seeds = picture_of(run, edited).repeat(COUNT, 1, 1, 1), range(first, first + COUNT)
    cond = labelled(class_number(run, label), COUNT, run.facts.classes)
    return _answer(run, how, from_noised(sampler_of(run, how, batch_size=COUNT), x_1, seeds, float(strength), cond))


def _answer(run: OpenRun, how: Any, drawn: Followed) -> Answer:
    x_1 = drawn.states[-1]
    if not bool(x_1.isfinite().all()):
        raise PageError("the result is not finite: use more steps or less guidance")
    return Answer(pixels(run, x_1), told_of(how, drawn.nfe))


def picture_of(run: OpenRun, edited: Any) -> Tensor:
    """The picture of the editor in the run's space, shape (1, C, H, W).

    Raises:
        PageError: If there is none.
    """
    return picture_from(run, as_png(_at_its_size(run, _background(edited))), "the picture")


def mask_of(run: OpenRun, edited: Any) -> Tensor:
    """Where the editor was brushed, or else what is transparent in its picture, shape (1, 1, H, W) of bool."""
    picture = _background(edited)
    drawn = np.zeros(picture.shape[:2], bool)
    for layer in edited.get("layers") or ():
        drawn |= layer[..., 3] > 0
    if not drawn.any() and picture.shape[2] == 4:
        drawn = picture[..., 3] < OPAQUE
    height, width = _at_its_size(run, picture).shape[:2]
    blocks = drawn.reshape(height, len(drawn) // height, width, -1)
    return mask_from(run, np.asarray(blocks.any((1, 3))), "the mask")


def _background(edited: Any) -> np.ndarray:
    """The picture of the editor as it was uploaded, (H, W, 3 or 4).

    Raises:
        PageError: If there is none.
    """
    if not isinstance(edited, dict) or edited.get("background") is None:
        raise PageError("there is no picture: upload one, or press Draw one")
    return edited["background"]


def _at_its_size(run: OpenRun, picture: np.ndarray) -> np.ndarray:
    """A picture that the page enlarged by a whole factor, such as one it drew, as it was; others unchanged."""
    factor = max(1, picture.shape[0] // run.space.shape[1])
    small = picture[::factor, ::factor]
    enlarged = small.shape[:2] == run.space.shape[1:] and np.array_equal(
        small.repeat(factor, 0).repeat(factor, 1), picture
    )
    return small if enlarged else picture


def editable(run: OpenRun) -> bool:
    """Whether the editor can show the run's pictures: grey and RGB ones."""
    return run.space.shape[0] in (1, 3)


def given_tab(run: OpenRun, precision: str, draw_one: Any) -> None:
    """The tab; `draw_one` gives the pictures of a seed on their way, as the first tab draws them."""
    with gr.Tab("From a picture"), gr.Row():
        with gr.Column(scale=3, min_width=300):
            editor = gr.ImageEditor(
                type="numpy", image_mode="RGBA", sources=["upload", "clipboard"], elem_id="editor", layers=False,
                brush=gr.Brush(default_size=40, colors=["#d55e00"], color_mode="fixed"), transforms=(), height=420,
                label="upload a picture or press Draw one; brush what is to be drawn anew",
            )  # fmt: skip
            drawn, said = shown("drawn", "given_row", height=90), gr.Markdown(elem_id="said_3")
        with gr.Column(scale=2, min_width=280):
            seed = gr.Number(0, label="seed of the first", precision=None, elem_id="seed_3")
            strength = gr.Slider(0, 1, 0.6, step=0.05, label="strength: 0 keeps the picture", elem_id="strength")
            label, steps, solver, guidance, away = controls(run, "_3")
            take = gr.Button("Draw one", elem_id="take")
            paint = gr.Button("Draw the brushed part", variant="primary", elem_id="paint")
            vary = gr.Button("Draw pictures like it", elem_id="vary")

    def taken(*asked: Any) -> Any:
        return enlarged(kindly(draw_one, run, *asked, precision).pictures[-1])

    def painted(*asked: Any) -> tuple[Any, ...]:
        answer = kindly(brushed, run, *asked, precision)
        return row(answer.pictures), answer.said

    def varied(*asked: Any) -> tuple[Any, ...]:
        answer = kindly(like, run, *asked, precision)
        return row(answer.pictures), answer.said

    how = [seed, steps, solver, guidance, label, away]
    take.click(taken, how, editor, api_visibility="private")
    paint.click(painted, [editor, *how], [drawn, said], api_name="inpaint")
    vary.click(varied, [editor, strength, *how], [drawn, said], api_name="vary")
