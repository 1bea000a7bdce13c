"""The modules of examples/frequency, imported from their files."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples" / "frequency"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where run.py looks for figures, and pydantic for the settings
    spec.loader.exec_module(module)
    return module


figures = _load("figures")
run = _load("run")
