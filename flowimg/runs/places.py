"""Where the relative paths of a run's settings lead when it is used from another working directory.

RUN/environment.json has the folder in which the run was begun, as it is and as it is seen from the run's folder. A run
that lies where it lay then means the data of that folder. One that was moved or copied means those that its paths lead
to from here; else those of that folder; else those that were moved with it.
"""

import os
from pathlib import Path

from flowimg.build.paths import locate
from flowimg.files import read_json
from flowimg.runs.folder import RunFolder
from flowimg.settings.reading import load
from flowimg.settings.run import Config

BEGUN, FROM_RUN = "begun_in", "begun_in_from_run"
"""Keys of environment.json: the working directory in which the run was begun, and how it is seen from its folder."""


def read_config(folder: RunFolder) -> Config:
    """The settings of a run, for use from here."""
    return located(load(str(folder.config)), folder)


def located(config: Config, folder: RunFolder) -> Config:
    """These settings of a run, for use from here: its relative paths as they led where it was begun."""
    before = begun(folder)
    if not before:
        return config
    there, beside = Path(before[BEGUN]), Path(os.path.normpath(folder.path.resolve() / before[FROM_RUN]))
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted, and no path leads anywhere from it
        here = there
    return locate(config, [there, here] if there == beside else [here, there, beside])


def begun(folder: RunFolder) -> dict[str, str]:
    """What the folder says of where its run was begun; {} if it says nothing, or holds no run."""
    about = read_json(folder.environment)
    if isinstance(about.get(BEGUN), str) and isinstance(about.get(FROM_RUN), str):
        return {key: about[key] for key in (BEGUN, FROM_RUN)}
    if not folder.config.exists():
        return {}
    # a run of an earlier version: its folder is named as it was seen from there
    name, lies = Path(str(load(str(folder.config)).run)), folder.path.resolve()
    levels = len(name.parts)
    if name.is_absolute() or not levels or lies.parts[-levels:] != name.parts:
        return {}
    return {BEGUN: str(lies.parents[levels - 1]), FROM_RUN: os.path.join(*[os.pardir] * levels)}


def begun_here(folder: RunFolder) -> dict[str, str]:
    """What a run that begins here says of that; {} where it cannot be said."""
    try:
        here = Path.cwd()
        return {BEGUN: str(here), FROM_RUN: os.path.relpath(here, folder.path.resolve())}
    except (OSError, ValueError):  # the working directory was deleted, or is on another drive than the run
        return {}
