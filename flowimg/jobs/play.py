"""`flowimg play`: a page in the browser for a person with no Python; on this machine alone, and with no account.

This file opens the page and keeps its bounds; what is drawn is in `play_images` and `play_points`.
"""

import math
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from flowimg.config import Drawing, Play, Solver
from flowimg.fields.guidance import guided
from flowimg.flow.solvers import integrate
from flowimg.jobs.build import build_solver, build_times
from flowimg.jobs.figures import between_steps
from flowimg.jobs.folder import Trained, open_run, weights_name
from flowimg.jobs.machine import MachineError, alone, autocast, pick_device, settle_precision

STEPS, GUIDANCE, SEED = 200, 10.0, 2**63 - 1
"""The most that the page may ask for."""
WAITING = 40
"""Visitors who may wait for their turn; one is served at a time."""
PORTS = range(7860, 7880)


class PlayError(Exception):
    """What a visitor asked for is out of bounds; the message says what and how to mend it."""

    exit_status = 2


def play(settings: Play) -> dict[str, Any]:
    """Open the page about a run and say where it is; ends by Ctrl-C."""
    alone("play")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import: nothing leaves this machine
    try:
        import gradio
    except ImportError:
        raise MachineError("flowimg play needs Gradio: pip install -e '.[play]'") from None
    port = _free_port(settings.host, settings.port)
    run = open_run(settings.run, settings.weights, settings.step, pick_device())
    page = build_page(run, settle_precision(settings.precision, run.config))
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    with redirect_stdout(StringIO()):  # its own words name other addresses
        page.launch(
            server_name=settings.host,
            server_port=port,
            inbrowser=settings.open,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            max_file_size="1mb",
            state_session_capacity=200,
            ssr_mode=False,
            enable_monitoring=False,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
        )
    print(f"playing   {settings.run}, step {run.step}, {weights_name(settings.weights)} weights")
    print(f"open      http://{settings.host}:{port}   (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        with redirect_stdout(StringIO()):
            page.close(verbose=False)
    return {}


CSS = """
.gradio-container { max-width: 62rem !important; margin: auto }
footer { display: none !important }
.dark #plane canvas { filter: invert(.922) hue-rotate(180deg) }
.pixels img { image-rendering: pixelated; width: 100%; object-fit: contain }
"""


def build_page(run: Trained, precision: str = "fp32") -> Any:
    """The page about a run, not served yet."""
    if run.config.data.kind == "points":
        from flowimg.jobs.play_points import points_page

        return points_page(run, precision)
    from flowimg.jobs.play_images import images_page

    return images_page(run, precision)


def solving(run: Trained, steps: Any, solver: Any, guidance: Any) -> Drawing:
    """The settings that a visitor chose, in bounds.

    Raises:
        PlayError: If they are not.
    """
    solvers = Solver.__args__  # type: ignore[attr-defined]
    if solver not in solvers:
        raise PlayError(f"the solver is one of {', '.join(solvers)}")
    number = whole(steps, "steps", 1, STEPS)
    scale = 1.0 if guidance is None else guidance
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= GUIDANCE:
        raise PlayError(f"guidance is a number from 0 to {GUIDANCE:g}, not {_short(guidance)}")
    if scale != 1 and not guidable(run):
        raise PlayError("this run has no classes that it could be guided to: leave guidance at 1")
    return Drawing(run=str(run.folder.path), solver=solver, num_steps=number, guidance=float(scale), tolerance=1e-4)


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in bounds.

    Raises:
        PlayError: If it is none.
    """
    fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not fits or value != int(value) or not low <= value <= high:
        raise PlayError(f"{name}: give a whole number from {low} to {high}, not {_short(value)}")
    return int(value)


def class_number(run: Trained, label: Any) -> int | None:
    """The class a visitor chose by name; None in a run without classes.

    Raises:
        PlayError: If there is no such class.
    """
    classes = list(run.facts.classes)
    if not classes:
        return None
    if label not in classes:
        raise PlayError(f"there is no class {_short(label)}")
    return classes.index(label)


def guidable(run: Trained) -> bool:
    """Whether the run learned with and without its classes."""
    return bool(run.facts.classes) and run.config.train.label_drop > 0


@torch.no_grad()
def travel(run: Trained, how: Drawing, x_0: Tensor, label: int | None, times: Sequence[float], precision: str) -> Any:
    """The states at these times, shape (T, B, *D), on the CPU, and the evaluations of the network each took."""
    device = next(run.field.parameters()).device
    solver = build_solver(how)
    visited = torch.tensor(times) if solver.adaptive else build_times(how)
    cond = None if label is None else torch.full((len(x_0),), label, device=device)
    velocity = guided(run.field, how.guidance, how.guidance_interval)
    with autocast(device, precision):
        flow = integrate(velocity, x_0.to(device), visited, solver, cond, trajectory=True)
    assert flow.trajectory is not None
    states = between_steps(flow.trajectory.float(), visited, times).cpu()
    if not bool(states.isfinite().all()):
        raise PlayError("that leads to numbers that are not finite: more steps or less guidance helps")
    return states, flow.nfe


def told(how: Drawing, nfe: int, seconds: float) -> str:
    """How an answer was made."""
    guidance = f", guidance {how.guidance:g}" if how.guidance != 1 else ""
    steps = "" if how.solver == "dopri5" else f" in {how.num_steps} steps"
    return f"{how.solver}{steps}{guidance}: {nfe} evaluations of the network, {seconds:.1f} s"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else text[:30] + "..."


def _free_port(host: str, asked: int | None) -> int:
    """The port asked for, or the first free one of a few.

    Raises:
        MachineError: If there is none.
    """
    for port in [asked] if asked is not None else PORTS:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as door:
            try:
                door.bind((host, port))
            except OSError as error:
                said = error.strerror or str(error)
                continue
            return int(door.getsockname()[1])
    which = f"port {asked} of {host}" if asked is not None else f"ports {PORTS[0]} to {PORTS[-1]} of {host}"
    raise MachineError(f"{which} cannot be used ({said}): give another by --port, or 0 for any")
