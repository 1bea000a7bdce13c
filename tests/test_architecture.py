"""The doors of the house: who may import whom, and what the quick ways through it must not load."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from flowimg import config
from flowimg.jobs import build

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("flowimg/**/*.py"), *ROOT.glob("scripts/*.py")])

ROOMS = {"flow", "fields", "data", "training", "sampling", "evaluation", "figures"}
OURS = {
    "__init__": set(),
    "__main__": {"cli"},
    "config": set(),
    "flow": {"flow"},
    "fields": {"flow", "fields"},
    "data": {"flow.randomness", "data"},
    "training": {"flow", "fields", "training"},
    "sampling": {"flow", "fields", "sampling"},
    "evaluation": {"flow", "fields", "sampling", "evaluation"},
    "figures": {"flow", "fields", "sampling", "figures"},
    "jobs": {*ROOMS, "config", "jobs", "__version__"},
    "cli": {"config", "jobs", "__version__"},
    "scripts": {"cli"},
}
"""Modules of flowimg that each room may import."""
ONLY = {"flow": {"torch", "scipy", "torchdiffeq"}, "scripts": set()}
"""Rooms that may import these packages of others and no more (the standard library is free to all)."""
NEVER = {"config": {"torch"}}
"""Packages of others that a room may not import; the rest is free."""


def imported(path, source):
    """Every dotted name that a file imports, wherever in it: `from a import b` is a.b, whether b is a module or not."""
    package = list(Path(path).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*up, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and node.args:
                yield getattr(node.args[0], "value", "a name known only when it runs")


def room_of(path):
    parts = Path(path).with_suffix("").parts
    return parts[1] if parts[0] == "flowimg" else parts[0]


def wrong_imports(path, source):
    """The imports of a file that its room has no door for."""
    room = room_of(path)
    wrong = []
    for name in imported(path, source):
        package, _, inside = name.partition(".")
        if package == "flowimg":
            right = any(inside == door or inside.startswith(door + ".") for door in OURS[room])
        elif package in sys.stdlib_module_names:
            # what importlib loads by name could not be read here; its metadata load nothing
            right = package != "importlib" or name.startswith("importlib.metadata")
        else:
            right = package in ONLY[room] if room in ONLY else package not in NEVER.get(room, set())
        if not right:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_goes_through_the_doors(file):
    path = file.relative_to(ROOT)
    assert wrong_imports(path, file.read_text()) == []


def test_every_room_has_doors_and_files():
    assert {room_of(file.relative_to(ROOT)) for file in FILES} == set(OURS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flowimg/flow/paths.py", "import numpy"),
        ("flowimg/flow/paths.py", "from importlib import import_module as load"),
        ("flowimg/flow/paths.py", "import torch, accelerate"),
        ("flowimg/flow/paths.py", "import flowimg.fields.mlp"),
        ("flowimg/flow/paths.py", "import flowimg"),
        ("flowimg/config.py", "from torch import Tensor"),
        ("flowimg/config.py", "from flowimg.flow.paths import Linear"),
        ("flowimg/config.py", "from flowimg import __version__"),
        ("flowimg/fields/mlp.py", "from flowimg.config import MLP"),
        ("flowimg/fields/mlp.py", "from flowimg import config"),
        ("flowimg/data/toys.py", "from flowimg.flow import paths"),
        ("flowimg/data/toys.py", "from flowimg.flow import *"),
        ("flowimg/data/toys.py", "import flowimg.flow"),
        ("flowimg/data/toys.py", "import flowimg.flow.paths as randomness"),
        ("flowimg/training/loop.py", "import flowimg.sampling.generate as g"),
        ("flowimg/training/loop.py", "from ..sampling import generate"),
        ("flowimg/training/loop.py", "from .. import config"),
        ("flowimg/sampling/generate.py", "from flowimg.training.ema import make_ema"),
        ("flowimg/evaluation/points.py", "def score():\n    from flowimg.data.toys import Toy"),
        ("flowimg/evaluation/points.py", "if TYPE_CHECKING:\n    from flowimg.jobs.build import Source"),
        ("flowimg/figures/points.py", "def draw():\n    import importlib\n    importlib.import_module('flowimg.jobs')"),
        ("flowimg/jobs/train.py", "def train():\n    from flowimg import cli"),
        ("flowimg/cli.py", "class Verb:\n    def run(self):\n        import flowimg.training.loop as loop"),
        ("scripts/train.py", "from flowimg.jobs.train import train"),
        ("scripts/train.py", "import torch"),
    ],
)
def test_a_wrong_import_is_found_wherever_it_hides(path, source):
    assert wrong_imports(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "flowimg/flow/solvers.py",
            "import math, torch\nfrom torchdiffeq import odeint\nfrom scipy.special import erf",
        ),
        (
            "flowimg/flow/objective.py",
            "from . import randomness\nfrom .paths import Path\nfrom flowimg.flow import times",
        ),
        (
            "flowimg/data/order.py",
            "import numpy\nfrom flowimg.flow import randomness\nfrom ..flow.randomness import key",
        ),
        ("flowimg/jobs/train.py", "from flowimg import __version__\nimport flowimg.flow.paths as paths"),
        ("flowimg/cli.py", "def train():\n    from flowimg.jobs.train import train"),
        ("scripts/train.py", "import sys\nfrom flowimg.cli import main"),
    ],
)
def test_a_right_import_is_let_through(path, source):
    assert wrong_imports(path, source) == []


# --- kinds and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "table"),
    [
        ("path", build.PATHS),
        ("coupling", build.COUPLINGS),
        ("times", build.TIMES),
        ("weighting", build.WEIGHTINGS),
        ("field", build.FIELDS),
        ("data", build.SOURCES),
    ],
)
def test_the_kinds_of_the_settings_are_the_keys_of_the_table(group, table):
    members = get_args(config.Config.model_fields[group].annotation)
    assert [get_args(member.model_fields["kind"].annotation) for member in members] == [(kind,) for kind in table]
    assert [member.model_fields["kind"].default for member in members] == list(table)


def test_toys_solvers_and_their_times_in_the_settings_are_the_keys_of_their_tables():
    assert set(get_args(config.PointData.model_fields["source"].annotation)) == set(build.TOYS)
    assert set(get_args(config.Solver)) == set(build.SOLVERS)
    assert set(get_args(config.Times)) == set(build.TIME_GRIDS)
    for model in (config.Grid, config.Sample, config.Evaluate, config.Interpolate, config.Invert):
        assert model.model_fields["solver"].annotation == config.Solver
        assert model.model_fields["times"].annotation == config.Times


# --- what is loaded --------------------------------------------------------------------------------------------------


def loaded_by(args, cwd, before=""):
    """The modules in memory, and the exit status, after `flowimg ARGS` in a fresh interpreter."""
    look = (
        f"{before}\nimport json, sys\nfrom flowimg.cli import main\nstatus = 0\n"
        f"try:\n    main({[str(arg) for arg in args]!r})\n"
        "except SystemExit as stop:\n    status = stop.code\n"
        "print('\\n' + json.dumps([status, list(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    status, modules = json.loads(done.stdout.splitlines()[-1])
    return status, {module.split(".")[0] for module in modules}


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--help"], 0),
        (["config", ROOT / "configs/digits.yaml"], 0),
        (["train", "--help"], 0),
        (["train", ROOT / "configs/digits.yaml", "--optim.lr", "fast"], 2),
        (["trian"], 2),
    ],
    ids=["help", "config", "help of a verb", "wrong setting", "wrong verb"],
)
def test_help_settings_and_their_mistakes_do_not_wait_for_torch(args, status, tmp_path):
    got, packages = loaded_by(args, tmp_path)
    assert got == status
    assert "flowimg" in packages
    assert not packages & {"torch", "numpy", "scipy", "accelerate", "diffusers", "datasets", "sklearn", "matplotlib"}


def test_training_on_points_loads_nothing_that_only_pictures_need(tmp_path):
    args = ["train", ROOT / "configs/checkerboard.yaml", "--run", tmp_path / "run", "--train.steps", "2"]
    args += ["--train.batch-size", "8", "--grid.count", "4", "--grid.num-steps", "1"]
    few = "from flowimg.jobs import figures as f; f.CROWD, f.FRAMES, f.PARTICLES, f.FLOOR_DRAWS = 100, 3, 10, 16"
    _, packages = loaded_by(args, tmp_path, few)
    assert (tmp_path / "run" / "samples" / "step_00000002.png").exists()
    assert {"torch", "matplotlib"} <= packages
    assert not packages & {"diffusers", "transformers", "torchvision", "datasets", "sklearn"}


def test_the_first_step_on_points_waits_for_little_more_than_torch(tmp_path):
    """Neither torch's compiler (as long to import as torch itself) nor scipy, matplotlib or torch's sharded tensors."""
    look = (
        "import sys\nfrom flowimg.cli import main\nimport flowimg.training.loop as loop\n"
        "def first(*args):\n    print('\\n' + ' '.join(sys.modules))\n    raise SystemExit\n"
        "loop.train_step = first\n"
        f"main(['train', {str(ROOT / 'configs/checkerboard.yaml')!r}, '--run', 'run'])"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.splitlines()[-1].split())
    assert "torch" in modules
    assert not modules & {"torch._dynamo", "torch.distributed.tensor", "scipy", "matplotlib", "sympy"}
