"""The page about a run on points: drop particles on the plane, or draw noise, and follow the flow."""

import json
from typing import Any

import gradio as gr
import torch

from flowimg.app.asked import SEED, class_number, is_number, solving, travel, whole
from flowimg.app.controls import controls, heading, kindly
from flowimg.errors import PageError
from flowimg.figures.report import plane_script
from flowimg.figures.style import DATA, FLOW, NOISE
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import noise

MOST = 2000
"""Particles at once."""
MOMENTS = [place / 60 for place in range(61)]
"""Flow times at which the page gets the particles' positions."""
FAR = 100.0
"""Largest coordinate of a particle."""
TEMPLATE = """<div class="plane"><canvas style="touch-action: none"></canvas>
<div class="bar"><button type="button">pause</button><label>t <input type="range" min="0" max="1" step="0.01" value="0"
aria-label="flow time: 0 is noise, 1 is data"></label></div></div>"""
STYLE = """
.plane canvas { width: 100%; aspect-ratio: 1; border: 1px solid #999; border-radius: 4px; cursor: crosshair }
.plane canvas { display: block }
.bar { display: flex; gap: .8rem; align-items: center; margin-top: .4rem }
.bar button { min-width: 4.5rem; padding: .3rem .8rem; border: 1px solid currentColor; border-radius: 4px }
.bar label { flex: 1; display: flex; gap: .6rem; align-items: center }
.bar input { flex: 1; accent-color: #d55e00 }
"""


def flow_particles(
    run: OpenRun, plane: Any, steps: Any, solver: Any, guidance: Any, label: Any, away: Any = 1.0,
    precision: str = "fp32",
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """The paths of the particles on the plane, and how they were made.

    Raises:
        PageError: If an input is out of bounds.
    """
    how = solving(run, steps, solver, guidance, precision, away)
    particles = check_particles(plane)
    states, said = travel(run, how, torch.tensor(particles), class_number(run, label), MOMENTS)
    paths = [[round(value, 3) for value in path] for path in states.transpose(0, 1).flatten(1).tolist()]
    return {"particles": particles, "paths": paths, "times": MOMENTS}, f"{len(particles):,} particles; {said}"


def check_particles(plane: Any) -> list[list[float]]:
    """The particles that a page sent.

    Raises:
        PageError: If there are none or too many, or they are not points of the plane.
    """
    particles = plane.get("particles") if isinstance(plane, dict) else None
    if not isinstance(particles, list) or not particles:
        raise PageError("there are no particles: press on the plane, draw, or use Gaussian noise")
    if len(particles) > MOST:
        raise PageError(f"{len(particles):,} particles are too many: {MOST:,} at most")
    for point in particles:
        pair = isinstance(point, list) and len(point) == 2
        if not pair or not all(is_number(value) and abs(value) <= FAR for value in point):
            raise PageError(f"a particle is two numbers between -{FAR:g} and {FAR:g}")
    return [[float(value) for value in point] for point in particles]


def gaussian(count: Any, seed: Any) -> dict[str, Any]:
    """Standard normal particles: seed k and those after it, as `flowimg sample` draws them.

    Raises:
        PageError: If count or seed is out of bounds.
    """
    many = whole(count, "particles", 1, MOST)
    first = whole(seed, "seed", 0, SEED - (many - 1))
    return {"particles": noise(range(first, first + many), (2,)).tolist()}


def points_page(run: OpenRun, precision: str) -> gr.Blocks:
    """The page, not served yet."""
    space: Any = run.space
    name, head = heading(
        run,
        f"Press on the plane to drop particles, or draw with them; then let them flow. Blue is the data "
        f"({run.config.data.source}), grey is noise, orange is on its way. Run for {run.step:,} steps.",
    )
    data = [[round(value, 2) for value in point] for point in space.examples(3000).tolist()]
    colours = {"noise_colour": NOISE, "data_colour": DATA, "flow_colour": FLOW}
    setup = {"side": 1.25 * space.extent, "most": MOST, "data": data, **colours}
    script = f"const setup = {json.dumps(setup)};\n" + plane_script()
    with gr.Blocks(analytics_enabled=False, title=f"{name}: flowimg", delete_cache=(600, 3600)) as page:
        head.render()
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                plane = gr.HTML(None, html_template=TEMPLATE, css_template=STYLE, js_on_load=script, elem_id="plane")
                said = gr.Markdown(elem_id="said")
            with gr.Column(scale=2, min_width=280):
                with gr.Row():
                    flow = gr.Button("Flow", variant="primary", elem_id="flow")
                    clear = gr.Button("Clear", elem_id="clear")
                count = gr.Slider(1, MOST, 500, step=1, label="particles of Gaussian noise", elem_id="count")
                seed = gr.Number(0, label="seed of the first", precision=None, elem_id="seed")
                fill = gr.Button("Gaussian noise", elem_id="gaussian")
                label, steps, solver, guidance, away = controls(run)

        def flowed(*asked: Any) -> tuple[Any, ...]:
            return kindly(flow_particles, run, *asked, precision)

        def filled(count: Any, seed: Any) -> Any:
            return kindly(gaussian, count, seed), ""

        asked, seen = [plane, steps, solver, guidance, label, away], [plane, said]
        # the paths stay in the browser: only the particles go up again
        up = "(plane, ...others) => [{particles: (plane && plane.particles) || []}, ...others]"
        flow.click(flowed, asked, seen, js=up, api_name="flow")
        fill.click(filled, [count, seed], seen, api_name="gaussian")
        clear.click(lambda: ({"particles": []}, ""), None, seen, queue=False, api_visibility="private")
        loaded = page.load(filled, [count, seed], seen, api_visibility="private")
        loaded.then(flowed, asked, seen, api_visibility="private")
    return page
