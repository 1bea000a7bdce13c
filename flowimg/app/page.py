"""`flowimg play`: a web page for people who do not use Python; on this machine only, without an account.

This file serves the page; `images` and `points` draw it, and `asked` checks what a visitor sends.
"""

import os
import socket
import threading
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from flowimg.errors import MachineError
from flowimg.machine.device import pick_device
from flowimg.machine.precision import settle_precision
from flowimg.machine.processes import one_process
from flowimg.runs.guides import with_guide
from flowimg.runs.opening import OpenRun, open_run, weights_name
from flowimg.settings.verbs import Play
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points
from flowimg.spaces.space import chosen

WAITING = 40
"""Visitors who may wait; one is served at a time."""
PORTS = range(7860, 7880)


def play(settings: Play) -> dict[str, Any]:
    """Serve the page about a run and print its address; ends by Ctrl-C."""
    one_process("play")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import: nothing leaves this machine
    try:
        import gradio
    except ImportError:
        raise MachineError("flowimg play needs Gradio: pip install -e '.[play]'") from None
    port = _free_port(settings.host, settings.port)
    run = open_run(settings.run, settings.weights, settings.step, pick_device(), settings.shape)
    run = with_guide(run, settings.guide)
    page = build_page(run, settle_precision(settings.precision, run.config.field.fast_in_bf16))
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    with redirect_stdout(StringIO()):  # Gradio would print other addresses
        page.launch(
            server_name=settings.host, server_port=port, inbrowser=settings.open,
            share=False, prevent_thread_lock=True, quiet=True, ssr_mode=False, enable_monitoring=False,
            max_file_size="1mb", state_session_capacity=200, footer_links=[], css=CSS,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )  # fmt: skip
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


def build_page(run: OpenRun, precision: str = "fp32") -> Any:
    """The page about a run, not served yet."""
    from flowimg.app.images import images_page
    from flowimg.app.points import points_page  # Gradio takes seconds to import

    pages: dict[type, Any] = {Points: points_page, Pixels: images_page}
    return chosen(pages, run.space)(run, precision)


def _free_port(host: str, asked: int | None) -> int:
    """The port of the settings, or the first free one of `PORTS`.

    Raises:
        MachineError: If none is free.
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
