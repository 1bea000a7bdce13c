"""Trackers, through accelerate: the numbers of metrics.jsonl and the grids, for tensorboard, wandb or trackio."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available
from PIL import Image

from flowimg.errors import MachineError
from flowimg.files import write_text
from flowimg.settings.reading import flatten
from flowimg.settings.run import Config

THERE = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "trackio": is_trackio_available}
"""Whether a tracker is installed."""


def check_tracker(config: Config) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        MachineError: With what to install.
    """
    if config.track and not THERE[config.track]():
        raise MachineError(f"track {config.track} needs a package that is not installed: pip install {config.track}")


def start_tracker(accelerator: Accelerator, config: Config, step: int) -> None:
    """Start the tracker's run, or continue it."""
    if not config.track:
        return
    settings = flatten(config).items()
    scalars = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings}
    name, folder = Path(str(config.run)).name, Path(str(config.run), "tracking")
    identity = folder / "id"  # of this run, wherever its folder lies; another run of the same name is another one
    if accelerator.is_main_process and not identity.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(identity, uuid.uuid4().hex[:12])
    accelerator.wait_for_everyone()
    unique = identity.read_text(encoding="utf-8")
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1 if step else None},  # steps that a continued run writes again
        "wandb": {"name": name, "id": unique, "dir": str(folder), "resume": "allow"},
        "trackio": {"name": f"{name}-{unique}", "resume": "allow"},
    }
    try:
        accelerator.init_trackers("flowimg", scalars, {config.track: options[config.track]})
    except Exception as error:  # of the tracker: a login, a network, a server, of many types
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MachineError(f"track {config.track} cannot start: {reason}") from None


def track_numbers(accelerator: Accelerator, record: dict[str, Any]) -> None:
    """Send a line of metrics."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
    numbers |= {f"loss_by_t/{b}": loss for b, loss in enumerate(record.get("loss_by_t", [])) if loss is not None}
    accelerator.log(numbers, step=record["step"])


def track_picture(accelerator: Accelerator, name: str, path: Path, step: int) -> None:
    """Send a picture."""
    for tracker in accelerator.trackers:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if tracker.name == "trackio":  # accelerate's adapter sends it numbers only
            import trackio

            tracker.log({name: trackio.Image(pixels)}, step=step)
        else:
            form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=step, **form)
