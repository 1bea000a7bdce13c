"""flowimg: image generation by flow matching, from a 2D checkerboard to images.

Reading order: settings, flow, spaces, conditions, fields, data, training, sampling, evaluation, figures, build, runs,
jobs, api, cli. Importing flowimg loads no package of others; the Python API (`flowimg.api`) is loaded with the first
name used.
"""

import os
from typing import Any

from flowimg.machine.cores import set_defaults
from flowimg.version import __version__

set_defaults(os.environ)  # here, because torch reads them when it is loaded, whichever way flowimg was started

__all__ = ["Drawn", "Run", "__version__", "configure", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from flowimg import api

        return getattr(api, name)
    raise AttributeError(f"module 'flowimg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
