"""What the verbs that draw share: opening a run, its sampler, and a folder for what is drawn."""

from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from flowimg.build.data import cache_of
from flowimg.build.sampler import DrawingT, build_sampler, settle
from flowimg.conditions.labels import parse_label
from flowimg.errors import MachineError, SettingsError
from flowimg.files import check_writable
from flowimg.machine.compiling import compiled_for
from flowimg.machine.device import pick_device
from flowimg.machine.precision import autocast
from flowimg.machine.processes import one_process, share
from flowimg.runs.guides import with_guide
from flowimg.runs.opening import OpenRun, check_guidance, open_run
from flowimg.sampling.sampler import Sampler
from flowimg.settings.steering import FromPictures
from flowimg.settings.verbs import Drawing, Interpolate, Invert, Many, Sample


def opened(settings: DrawingT, device: torch.device) -> tuple[DrawingT, OpenRun]:
    """The settings with their precision settled, and the run with its guide."""
    run = open_run(settings.run, settings.weights, settings.step, device, settings.shape)
    return settle(settings, run.config), with_guide(run, settings.guide)


def opened_on_pictures(verb: str, settings: DrawingT) -> tuple[DrawingT, OpenRun]:
    """As `opened`, for a verb on one process whose run must be on pictures.

    Raises:
        SettingsError: If its samples are not pictures.
    """
    one_process(verb)
    settings, run = opened(settings, pick_device())
    check_pictures(settings, run)
    return settings, run


def check_pictures(settings: Drawing, run: OpenRun) -> None:
    """Refuse a run on points.

    Raises:
        SettingsError: If it is one.
    """
    if not run.config.data.holds_pictures:
        raise SettingsError(f"{settings.run} is a run on points: this verb is for pictures")


def check_same_run(settings: Drawing, run: OpenRun) -> None:
    """Refuse processes that opened different networks, which a run that trains meanwhile would give them.

    Raises:
        MachineError: If they did.
    """
    if len(set(gather_object([(run.step, run.sha256, run.guide and run.guide.sha256)]))) > 1:
        raise MachineError(f"the processes found different checkpoints in {settings.run}: name one by --step")


def label_of(settings: Sample | Interpolate | Invert | FromPictures, run: OpenRun) -> int | None:
    """The number of the class in the settings; a class or guidance that the run does not know is refused."""
    label = parse_label(settings.label, run.facts.classes, settings.run, run.facts.absent)
    check_guidance(settings.guidance, run.facts, run.config)
    return label


def compiled(run: OpenRun, settings: Many, count: int, state: PartialState) -> nn.Module:
    """The run's field, compiled where that is requested or worth it for this process's share of `count` samples."""
    mine = len(share(range(count), state.process_index, state.num_processes))
    size = settings.batch_size or run.space.at_once
    return compiled_for(run.field, settings.compile, mine, size, settings.num_steps, cache_of(run.config))


def sampler_of(
    run: OpenRun, settings: Drawing, field: nn.Module | None = None, batch_size: int | None = None
) -> Sampler:
    """The sampler of these settings; `field` stands for the run's own, such as the same one compiled."""
    precision = partial(autocast, next(run.field.parameters()).device, settings.precision)
    assert not settings.guide or run.guide, "the requested guide was not opened"
    guide = run.guide.field if settings.guide and run.guide else None
    return build_sampler(field or run.field, run.config, run.space, settings, precision, batch_size, guide)


def check_places(*paths: Path) -> None:
    """Refuse work whose result could not be written.

    Raises:
        MachineError: If one of these files cannot be written.
    """
    for path in paths:
        try:
            check_writable(path)
        except OSError as error:
            raise MachineError(
                f"{path}, where the result goes, cannot be written ({error.strerror}): make it and its folder writable"
            ) from None


def new_folder(out: str | None, usual: Path) -> Path:
    """The folder of --out, which must be new or empty, or else the usual one, whose files may be replaced."""
    folder = Path(out) if out else usual
    if out and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"--out {out} exists and is not overwritten: name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder}, where the result goes, cannot be made: {error.strerror}") from None
    return folder
