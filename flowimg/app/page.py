"""`flowimg play`: a page in the browser for a person with no Python; on this machine alone, and with no account.

This file opens the page and keeps its bounds; what is drawn is in `play_images` and `play_points`.
"""

import math
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

from torch import Tensor

from flowimg.build.sampler import build_sampler
from flowimg.conditions.labels import labelled
from flowimg.errors import MachineError, PageError
from flowimg.flow.condition import Condition
from flowimg.machine.device import pick_device
from flowimg.machine.precision import autocast, settle_precision
from flowimg.machine.processes import alone
from flowimg.runs.opening import Run, open_run, weights_name
from flowimg.sampling.sampler import Followed
from flowimg.settings.sampling import Solver
from flowimg.settings.verbs import Drawing, Play
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points

STEPS, GUIDANCE, SEED = 200, 10.0, 2**63 - 1
"""The most that the page may ask for."""
WAITING = 40
"""Visitors who may wait for their turn; one is served at a time."""
PORTS = range(7860, 7880)


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
    page = build_page(run, settle_precision(settings.precision, run.config.field.fast_in_bf16))
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


def build_page(run: Run, precision: str = "fp32") -> Any:
    """The page about a run, not served yet."""
    from flowimg.app.images import images_page
    from flowimg.app.points import points_page  # Gradio takes seconds to import

    pages: dict[type, Any] = {Points: points_page, Pixels: images_page}
    return pages[type(run.space)](run, precision)


def solving(run: Run, steps: Any, solver: Any, guidance: Any) -> Drawing:
    """The settings that a visitor chose, in bounds.

    Raises:
        PageError: If they are not.
    """
    solvers = Solver.__args__  # type: ignore[attr-defined]
    if solver not in solvers:
        raise PageError(f"the solver is one of {', '.join(solvers)}")
    number = whole(steps, "steps", 1, STEPS)
    scale = 1.0 if guidance is None else guidance
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= GUIDANCE:
        raise PageError(f"guidance is a number from 0 to {GUIDANCE:g}, not {_short(guidance)}")
    if scale != 1 and not guidable(run):
        raise PageError("this run has no classes that it could be guided to: leave guidance at 1")
    return Drawing(run=str(run.folder.path), solver=solver, num_steps=number, guidance=float(scale), tolerance=1e-4)


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in bounds.

    Raises:
        PageError: If it is none.
    """
    fits = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not fits or value != int(value) or not low <= value <= high:
        raise PageError(f"{name}: give a whole number from {low} to {high}, not {_short(value)}")
    return int(value)


def class_number(run: Run, label: Any) -> int | None:
    """The class a visitor chose by name; None in a run without classes.

    Raises:
        PageError: If there is no such class.
    """
    classes = list(run.facts.classes)
    if not classes:
        return None
    if label not in classes:
        raise PageError(f"there is no class {_short(label)}")
    return classes.index(label)


def guidable(run: Run) -> bool:
    """Whether the run learned with and without its classes."""
    return bool(run.facts.classes) and run.config.train.label_drop > 0


def travel(run: Run, how: Drawing, x_0: Tensor, label: int | None, times: Sequence[float], precision: str) -> Followed:
    """The states at these times, shape (T, B, *D), on the CPU, and the evaluations of the network each took.

    Raises:
        PageError: If they are not finite.
    """
    device = next(run.field.parameters()).device
    sampler = build_sampler(run.field, run.config, run.space, how, partial(autocast, device, precision), len(x_0))
    followed = sampler.follow(
        x_0, Condition() if label is None else labelled(label, len(x_0), run.facts.classes), times
    )
    if not bool(followed.states.isfinite().all()):
        raise PageError("that leads to numbers that are not finite: more steps or less guidance helps")
    return followed


def told(how: Drawing, nfe: int, seconds: float) -> str:
    """How an answer was made."""
    guidance = f", guidance {how.guidance:g}" if how.guidance != 1 else ""
    steps = "" if how.adaptive else f" in {how.num_steps} steps"
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
