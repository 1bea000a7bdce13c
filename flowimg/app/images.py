"""The page about a run on pictures: one picture and its way from noise, and pictures between two seeds."""

from typing import Any

import gradio as gr
import torch

from flowimg.app.asked import SEED, class_number, solving, travel, whole
from flowimg.app.controls import controls, heading, kindly
from flowimg.app.given import editable, given_tab
from flowimg.app.shown import Answer, at_place, pixels, row, shown
from flowimg.errors import PageError
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import arc, noise

MOMENTS = [place / 20 for place in range(21)]
"""Flow times at which a picture can be shown."""
FRAMES = 15
"""Pictures between two seeds at most."""


def one_picture(
    run: OpenRun, seed: Any, steps: Any, solver: Any, guidance: Any, label: Any, away: Any = 1.0,
    precision: str = "fp32",
) -> Answer:  # fmt: skip
    """The picture of a seed at every flow time, from noise to data.

    Raises:
        PageError: If an input is out of bounds.
    """
    how, number = solving(run, steps, solver, guidance, precision, away), whole(seed, "seed", 0, SEED)
    x_0 = noise([number], run.space.shape)
    states, said = travel(run, how, x_0, class_number(run, label), MOMENTS, [number])
    return Answer(pixels(run, states[:, 0]), said)


def two_seeds(
    run: OpenRun, first: Any, second: Any, frames: Any, steps: Any, solver: Any, guidance: Any, label: Any,
    away: Any = 1.0, precision: str = "fp32",
) -> Answer:  # fmt: skip
    """The pictures between the noises of two seeds, both included.

    # house: a parameter for each input of the page, as Gradio passes them

    Raises:
        PageError: If an input is out of bounds.
    """
    how, count = solving(run, steps, solver, guidance, precision, away), whole(frames, "pictures", 2, FRAMES)
    seeds = [whole(first, "first seed", 0, SEED), whole(second, "second seed", 0, SEED)]
    if seeds[0] == seeds[1]:
        raise PageError("the two seeds are the same: give two that differ")
    a, b = noise(seeds, run.space.shape)
    states, said = travel(run, how, arc(a, b, count), class_number(run, label), [0.0, 1.0], [seeds[0]] * count)
    return Answer(pixels(run, states[-1]), said)


def images_page(run: OpenRun, precision: str) -> gr.Blocks:
    """The page, not served yet."""
    _, height, width = run.space.shape
    classes = list(run.facts.classes)
    name, head = heading(
        run,
        f"Pictures of {width} x {height} pixels out of noise, by a network trained for {run.step:,} steps"
        f"{f' on {len(classes)} classes' if classes else ''}.",
    )
    with gr.Blocks(analytics_enabled=False, title=f"{name}: flowimg", delete_cache=(600, 3600)) as page:
        head.render()
        with gr.Tab("One picture"), gr.Row():
            with gr.Column(scale=3, min_width=300):
                picture = shown("the picture", "picture")
                moment = gr.Slider(0, 1, 1, step=0.05, label="t: 0 is noise, 1 is the picture", elem_id="moment")
                way = shown("its way from noise", "way", height=90)
                said = gr.Markdown(elem_id="said")
            with gr.Column(scale=2, min_width=280):
                seed = gr.Number(0, label="seed: another seed, another picture", precision=None, elem_id="seed")
                label, steps, solver, guidance, away = controls(run)
                with gr.Row():
                    go = gr.Button("Draw", variant="primary", elem_id="draw")
                    dice = gr.Button("Another seed", elem_id="dice")
            kept = gr.State(time_to_live=3600)
        with gr.Tab("Between two seeds"), gr.Row():
            with gr.Column(scale=3, min_width=300):
                frame = shown("the picture", "frame")
                place = gr.Slider(0, 1, 0, step=0.01, label="from the first seed to the second", elem_id="place")
                strip = shown("all of them", "row", height=90)
                said_2 = gr.Markdown(elem_id="said_2")
            with gr.Column(scale=2, min_width=280):
                first = gr.Number(0, label="first seed", precision=None, elem_id="first")
                second = gr.Number(1, label="second seed", precision=None, elem_id="second")
                frames = gr.Slider(2, FRAMES, 9, step=1, label="pictures", elem_id="frames")
                label_2, steps_2, solver_2, guidance_2, away_2 = controls(run, "_2")
                go_2 = gr.Button("Draw", variant="primary", elem_id="draw_2")
            kept_2 = gr.State(time_to_live=3600)
        if editable(run):
            given_tab(run, precision, one_picture)

        def drawn(at: float, *asked: Any) -> tuple[Any, ...]:
            answer = kindly(one_picture, run, *asked, precision)
            return answer.pictures, at_place(answer.pictures, at), row(answer.pictures[::2]), answer.said

        def drawn_2(at: float, *asked: Any) -> tuple[Any, ...]:
            answer = kindly(two_seeds, run, *asked, precision)
            return answer.pictures, at_place(answer.pictures, at), row(answer.pictures), answer.said

        asked, seen = [moment, seed, steps, solver, guidance, label, away], [kept, picture, way, said]
        gr.on([go.click, page.load, seed.submit], drawn, asked, seen, api_name="draw")
        private = {"api_visibility": "private"}
        rolled = dice.click(lambda: int(torch.randint(10_000, ()).item()), None, seed, queue=False, **private)
        rolled.then(drawn, asked, seen, **private)
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", **private}
        moment.input(at_place, [kept, moment], picture, **quick)
        asked_2 = [place, first, second, frames, steps_2, solver_2, guidance_2, label_2, away_2]
        go_2.click(drawn_2, asked_2, [kept_2, frame, strip, said_2], api_name="between")
        place.input(at_place, [kept_2, place], frame, **quick)
    return page
