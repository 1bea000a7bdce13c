"""The paths among a run's settings."""

import os
import re
from collections.abc import Iterator, Sequence
from glob import iglob
from pathlib import Path

from flowimg.data.sources.known import NAMED, TORCHVISION
from flowimg.names import no_text
from flowimg.settings.reading import changed, flatten
from flowimg.settings.run import Config
from flowimg.settings.sampling import EARLY, GuideName


def locate(config: Config, places: Sequence[Path]) -> Config:
    """The settings with their relative paths as they lead from the first of these folders from which they do.

    A path that leads nowhere, or from the working directory if that comes first, stays as it is.
    """
    found: dict[str, str] = {}
    named = [place for place in places if not no_text(str(place))]  # others cannot be in a setting
    for key, value in _relative(config):
        leads = str(GuideName.read(value).run) if key == "grid.guide" else value
        place = next((place for place in named if _leads(place / leads)), None)
        if place is not None and not _is_here(place):
            found[key] = str(place / value)
    return changed(config, found, "the settings of the run") if found else config


def _is_here(place: Path) -> bool:
    try:
        return place == Path.cwd()
    except FileNotFoundError:
        return False


def _relative(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that hold a relative path, or might; the names of sets, networks and addresses are none."""
    flat = flatten(config)
    names = {*NAMED, *TORCHVISION, "inception", "proxy", "proxy-random"}
    keys = ["data.cache", "field.pretrained", "train.evaluate_features"]
    if config.data.holds_pictures:
        keys.append("data.root" if flat["data.source"] in TORCHVISION else "data.source")
    for key in keys:
        value = flat.get(key)
        if value and value not in names and "://" not in value and not os.path.isabs(os.path.expanduser(value)):
            yield key, value
    guide = config.grid.guide
    if guide and guide != EARLY and (run := GuideName.read(guide).run) and not os.path.isabs(os.path.expanduser(run)):
        yield "grid.guide", guide


def _leads(path: Path) -> bool:
    """Whether there is a file or folder, or one of the tar files that `*` or `{0000..0099}` stand for."""
    return os.path.lexists(path) or any(iglob(re.sub(r"\{\d+\.\.\d+\}", "*", str(path))))
