"""Folders for the packages that write below the user's home, where that cannot be written.

The home of a container, a service or a cluster may be read-only, missing or unknown, and the cache elsewhere
($FLOWIMG_CACHE, $XDG_CACHE_HOME, data.cache). A package reads its variable when it is imported: call this before.
"""

import os
from pathlib import Path

from flowimg.files import can_write

NOWHERE = Path(os.devnull)
"""Where the home of a user without one lies: nothing can be written below it."""


def settle_home(cache: Path) -> None:
    """Let packages that cannot write their usual folder use one in the cache.

    A variable that is set is kept. A folder of downloads that can be read is kept too, for what is in it.
    """
    kept = _below("XDG_CACHE_HOME", ".cache")
    hub = Path(os.environ.get("HF_HOME") or kept / "huggingface")
    usual = {
        "HF_HOME": [hub],
        "HF_DATASETS_CACHE": [hub / "datasets"],  # where it unpacks what it reads, also files of the user
        "TORCH_HOME": [kept / "torch"],
        "MPLCONFIGDIR": [kept / "matplotlib", _below("XDG_CONFIG_HOME", ".config") / "matplotlib"],
    }
    for variable, folders in usual.items():
        downloads = variable.endswith("_HOME")
        right = all(can_write(folder) or (downloads and folder.is_dir()) for folder in folders)
        free = Path(os.environ.get(variable) or NOWHERE).is_relative_to(NOWHERE)
        # without a home, packages would write below a folder that is called ~: rather nowhere
        if free and not right and (can_write(cache) or folders[0].is_relative_to(NOWHERE)):
            os.environ[variable] = str(cache.absolute() / "home" / variable.lower())


def _below(variable: str, usual: str) -> Path:
    """The folder of a variable, or the usual one below the home."""
    try:
        return Path(os.environ.get(variable) or Path.home() / usual)
    except RuntimeError:  # the user has no home
        return NOWHERE / usual
