"""The doors of the house: who may import whom, and what the quick ways through it must not load."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from flowimg.build import data, field, flow, sampler
from flowimg.settings.data import PointData
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.run import members
from flowimg.settings.sampling import ADAPTIVE, NOISE, Grid, NoiseShape, Solver, Stochastic, Times
from flowimg.settings.train import Optim
from flowimg.settings.verbs import Interpolate, Invert, Sample

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("flowimg/**/*.py"), *ROOT.glob("scripts/*.py")])

OPEN = {"errors", "version", "files", "names"}
"""Modules that every room may import."""
LOWER = {"flow", "spaces", "conditions", "fields", "data", "training", "sampling", "evaluation", "figures"}
UPPER = {"settings", "machine", *LOWER, "build", "runs"}
OURS = {
    "__init__": {"api", "version", "machine.cores"},
    "__main__": {"cli"},
    "errors": set(),
    "version": set(),
    "files": set(),
    "names": {"errors"},
    "settings": {"settings"},
    "machine": {"machine"},
    "flow": {"flow"},
    "spaces": {"flow", "spaces"},
    "conditions": {"flow", "conditions"},
    "fields": {"flow", "machine", "fields"},
    "data": {"flow.randomness", "flow.condition", "spaces", "conditions", "machine.cores", "data"},
    "training": {"flow", "fields", "training"},
    "sampling": {"flow", "fields", "spaces", "conditions", "sampling"},
    "evaluation": {"flow", "fields", "spaces", "conditions", "sampling", "data", "evaluation"},
    "figures": {"flow", "spaces", "sampling", "evaluation", "figures"},
    "build": {"settings", "machine", *LOWER, "build"},
    "runs": {"settings", "machine", "spaces", "build", "training.checkpoint", "training.snapshots", "runs"},
    "jobs": {*UPPER, "jobs"},
    "app": {*UPPER, "jobs", "app"},
    "api": {"jobs"},
    "cli": {"settings", "machine", "runs.signals", "jobs", "app"},
    "scripts": {"cli"},
}
"""Modules of flowimg that each room may import, besides those that are open to all."""
ONLY = {"flow": {"torch", "scipy", "torchdiffeq"}, "scripts": set(), **{room: set() for room in OPEN}}
"""Rooms that may import these packages of others and no more (the standard library is free to all)."""
NEVER = {"settings": {"torch"}}
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
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+(\.\w+)+:\w+", str(node.value)):
            yield "flowimg." + node.value.replace(":", ".")  # a job of `flowimg.cli`


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
            doors = OURS[room] if room in OPEN or room == "scripts" else OURS[room] | OPEN
            right = any(inside == door or inside.startswith(door + ".") for door in doors)
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
        ("flowimg/errors.py", "import torch"),
        ("flowimg/errors.py", "from flowimg.files import sync"),
        ("flowimg/settings/run.py", "from torch import Tensor"),
        ("flowimg/settings/run.py", "from flowimg.flow.paths import Linear"),
        ("flowimg/machine/device.py", "from flowimg.settings.run import Config"),
        ("flowimg/spaces/pixels.py", "from flowimg.data.store import Images"),
        ("flowimg/fields/mlp.py", "from flowimg.settings.field import MLP"),
        ("flowimg/fields/mlp.py", "from flowimg import settings"),
        ("flowimg/data/toys.py", "from flowimg.flow import paths"),
        ("flowimg/data/toys.py", "from flowimg.flow import *"),
        ("flowimg/data/toys.py", "import flowimg.flow"),
        ("flowimg/data/toys.py", "import flowimg.flow.paths as randomness"),
        ("flowimg/training/loop.py", "import flowimg.sampling.sampler as s"),
        ("flowimg/training/loop.py", "from ..sampling import sampler"),
        ("flowimg/training/loop.py", "from flowimg.machine.device import pick_device"),
        ("flowimg/sampling/sampler.py", "from flowimg.training.averages import make_ema"),
        ("flowimg/evaluation/points.py", "def score():\n    from flowimg.build.data import build_toy"),
        ("flowimg/evaluation/points.py", "if TYPE_CHECKING:\n    from flowimg.runs.opening import OpenRun"),
        ("flowimg/figures/points.py", "def draw():\n    import importlib\n    importlib.import_module('flowimg.jobs')"),
        ("flowimg/build/data.py", "from flowimg.runs.folder import RunFolder"),
        ("flowimg/runs/opening.py", "from flowimg.training.loop import train"),
        ("flowimg/jobs/train/run.py", "def train():\n    from flowimg import cli"),
        ("flowimg/jobs/report.py", "from flowimg.app.page import play"),
        ("flowimg/api.py", "from flowimg.runs.opening import open_run"),
        ("flowimg/cli.py", "class Verb:\n    def run(self):\n        import flowimg.training.loop as loop"),
        ("flowimg/cli.py", "job = 'training.loop:train'"),
        ("scripts/train.py", "from flowimg.jobs.train.run import train"),
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
            "flowimg/flow/objectives.py",
            "from . import randomness\nfrom .paths import Path\nfrom flowimg.flow import times",
        ),
        (
            "flowimg/data/order.py",
            "import numpy\nfrom flowimg.flow import randomness\nfrom ..flow.randomness import key",
        ),
        ("flowimg/training/checkpoint.py", "from flowimg.errors import CheckpointError\nimport flowimg.files"),
        ("flowimg/jobs/train/run.py", "from flowimg.version import __version__\nimport flowimg.flow.paths as paths"),
        ("flowimg/cli.py", "def train():\n    from flowimg.jobs.train.run import train"),
        ("scripts/train.py", "import sys\nfrom flowimg.cli import main"),
    ],
)
def test_a_right_import_is_let_through(path, source):
    assert wrong_imports(path, source) == []


def test_no_file_imports_itself_by_way_of_others():
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        names = set(imported(file.relative_to(ROOT), file.read_text()))
        # `from a.b import c` is a.b.c: the module is the longest part of it that is a file
        targets = {next((m for m in (n, n.rpartition(".")[0]) if m in modules), None) for n in names}
        graph[module] = targets - {module, None} if not module.endswith("__init__") else set()
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert graph == {}


def read_as_the_locale_says(source):
    """Calls that read or write text without naming its encoding: that of the locale would be taken."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, words = (
            ast.unparse(call.func).rpartition(".")[2],
            {text for word in call.keywords for text in (word.arg, ast.unparse(word))},
        )
        method = isinstance(call.func, ast.Attribute)
        texts = [str(getattr(value, "value", "")) for value in call.args]
        mode = next((text for text in texts[0 if method else 1 :][:1] if re.fullmatch("[rwxabt+]+", text)), None)
        reads = {
            "read_text": method and not call.args,
            "write_text": method and len(call.args) < 2,
            "open": (mode is not None and "b" not in mode) or (not method and len(call.args) < 2),
            "fdopen": "b" not in "".join(texts[1:]),
        }
        if (reads.get(name) or words & {"text=True", "universal_newlines=True"}) and "encoding" not in words:
            yield ast.unparse(call)


@pytest.mark.parametrize("file", [*FILES, *ROOT.glob("examples/**/*.py")], ids=lambda file: str(file.relative_to(ROOT)))
def test_every_text_file_is_read_and_written_in_an_encoding_that_is_named(file):
    assert list(read_as_the_locale_says(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "call",
    ["path.read_text()", "path.write_text(x)", "open(x)", "open(x, 'w')", "path.open('a')", "os.fdopen(3, 'w')",
     "subprocess.run(x, text=True)"],
)  # fmt: skip
def test_a_file_without_an_encoding_is_found(call):
    encoded = call[:-1] + (", " if call[-2] != "(" else "") + "encoding='utf-8')"
    assert list(read_as_the_locale_says(call)) and not list(read_as_the_locale_says(encoded))


# --- kinds and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "table"),
    [
        ("path", flow.PATHS),
        ("coupling", flow.COUPLINGS),
        ("times", flow.TIMES),
        ("weighting", flow.WEIGHTINGS),
        ("field", field.FIELDS),
        ("data", data.KINDS),
        ("data", data.SPACES),
    ],
)
def test_the_kinds_of_the_settings_are_the_keys_of_the_table(group, table):
    kinds = members(group)
    assert [get_args(member.model_fields["kind"].annotation) for member in kinds] == [(kind,) for kind in table]
    assert [member.model_fields["kind"].default for member in kinds] == list(table)


def test_toys_schedules_solvers_and_their_times_in_the_settings_are_the_keys_of_their_tables():
    assert set(get_args(PointData.model_fields["source"].annotation)) == set(data.TOYS)
    assert set(get_args(Optim.model_fields["schedule"].annotation)) == set(flow.SCHEDULES)
    assert set(get_args(Solver)) == set(sampler.SOLVERS)
    assert set(get_args(Times)) == set(sampler.TIME_GRIDS)
    for model in (Grid, Sample, Evaluate, Interpolate, Invert):
        assert model.model_fields["solver"].annotation == Solver
        assert model.model_fields["times"].annotation == Times


def test_the_solvers_that_the_settings_call_adaptive_are():
    assert {name for name, solver in sampler.SOLVERS.items() if solver.adaptive} == set(ADAPTIVE)
    assert (
        {name for name, solver in sampler.SOLVERS.items() if solver.stochastic} == set(get_args(Stochastic)) == {*NOISE}
    )
    assert set(get_args(NoiseShape)) == set(sampler.NOISE_SHAPES)


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
    few = "from flowimg.jobs.figures import irreducible as i, points as p\n"
    few += "p.CROWD, p.FRAMES, p.PARTICLES, i.DRAWS = 100, 3, 10, 16\n"
    few += "from matplotlib.figure import Figure\nFigure.savefig = lambda self, path, **how: path.touch()"
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
