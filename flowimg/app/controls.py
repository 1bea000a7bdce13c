"""What the pages of `flowimg play` share: the controls, and errors as sentences in the page."""

from html import escape
from typing import Any

import gradio as gr

from flowimg.app.asked import GUIDANCE, STEPS, guidable
from flowimg.build.sampler import SOLVERS
from flowimg.errors import PageError
from flowimg.names import in_markdown, one_line, text_of
from flowimg.runs.opening import OpenRun


def controls(run: OpenRun, mark: str = "") -> tuple[Any, Any, Any, Any, Any]:
    """The controls for class, steps, solver, guidance and autoguidance that this run has; `mark` ends their ids."""
    classes = [run.facts.classes[number] for number in run.facts.present] or [""]
    visible = bool(run.facts.classes)
    usual = run.config.grid
    label = gr.Dropdown(classes, value=classes[0], label="class", visible=visible, elem_id=f"class{mark}")
    steps = gr.Slider(1, STEPS, min(usual.num_steps, STEPS), step=1, label="steps", elem_id=f"steps{mark}")
    solver = gr.Dropdown(list(SOLVERS), value="euler", label="solver", elem_id=f"solver{mark}")
    guidance = gr.Slider(
        0, GUIDANCE, usual.guidance if guidable(run) else 1, step=0.1, visible=guidable(run), elem_id=f"guidance{mark}",
        label="guidance: above 1 is more like its class, and less varied",
    )  # fmt: skip
    away = gr.Slider(
        0, 4, 1 if run.guide is None else 2, step=0.1, visible=run.guide is not None, elem_id=f"away{mark}",
        label="autoguidance: above 1 goes away from what a worse network draws",
    )  # fmt: skip
    return label, steps, solver, guidance, away


def heading(run: OpenRun, text: str) -> tuple[str, Any]:
    """The run's name, for the title of the page; and the heading of the page, with this text below it."""
    name = one_line(text_of(run.folder.path.resolve().name))
    return name, gr.Markdown(f"# {in_markdown(name)}\n{text}", latex_delimiters=[], render=False)


def kindly(answer: Any, *asked: Any) -> Any:
    """The answer, or its error as a sentence in the page."""
    try:
        return answer(*asked)
    except PageError as error:
        raise gr.Error(escape(str(error), quote=False), title="Invalid input", print_exception=False) from None
