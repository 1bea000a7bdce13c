"""flowimg: image generation by flow matching, from a 2D checkerboard to pictures.

Reading order: settings, flow, spaces, conditions, fields, data, training, sampling, evaluation, figures, build, runs,
jobs, api, cli. Importing flowimg loads nothing; the Python API (`flowimg.api`) is loaded with the first name asked for.
"""

from flowimg.version import __version__

__all__ = ["__version__"]
