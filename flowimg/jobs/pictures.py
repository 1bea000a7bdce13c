"""What `interpolate` and `invert` share: opening a run on pictures, and writing pictures into a folder."""

from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from flowimg.build.sampler import DrawingT, build_sampler, settle
from flowimg.errors import SettingsError
from flowimg.machine.device import pick_device
from flowimg.machine.precision import autocast
from flowimg.runs.opening import Run, open_run
from flowimg.sampling.sampler import Sampler
from flowimg.settings.verbs import Drawing
from flowimg.spaces.space import Space


def open_pictures(settings: DrawingT) -> tuple[DrawingT, Run]:
    """The settings with their precision settled, and the run, which must be on pictures.

    Raises:
        SettingsError: If its samples are not pictures.
    """
    run = open_run(settings.run, settings.weights, settings.step, pick_device())
    if "png" not in run.space.formats:
        raise SettingsError(f"{settings.run} is a run on points: this verb is for pictures")
    return settle(settings, run.config), run


def sampler_of(run: Run, settings: Drawing) -> Sampler:
    """The sampler of these settings."""
    precision = partial(autocast, next(run.field.parameters()).device, settings.precision)
    return build_sampler(run.field, run.config, run.space, settings, precision)


def new_folder(out: str | None, usual: Path) -> Path:
    """The folder of --out, which must be new or empty, or else the usual one, whose files may be replaced."""
    folder = Path(out) if out else usual
    if out and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"--out {out} exists and is not overwritten: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_picture(space: Space, x: Tensor, path: Path) -> None:
    """Write one picture, shape *D, as a PNG."""
    Image.fromarray(space.rows(x[None])[0].squeeze(-1).numpy()).save(path)
