"""flowimg: image generation by flow matching, from a 2D checkerboard to pictures.

Reading order: config, flow, fields, data, training, sampling, evaluation, figures, jobs, cli.
"""

__version__ = "0.1.0"
