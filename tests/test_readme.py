"""The README, run: its commands as they stand (made short), and what it tells people to add."""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flowimg.cli import VERBS, main
from flowimg.fields.unet import new_unet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = {
    "train": shlex.split(
        "--train.steps 3 --train.batch-size 32 --train.sample-every 3 --grid.count 20 --grid.num-steps 1 "
        "--figures false"
    ),
    "sample": ["--num-steps", "1"],
    "evaluate": ["--num-steps", "1", "--count", "30"],
    "likelihood": ["--count", "8", "--solver", "euler", "--num-steps", "1"],
    "interpolate": ["--num-steps", "1"],
    "figures": ["--num-steps", "1"],
    "experiment": ["--cells", "2", "--steps", "1"],
    "invert": ["--solver", "euler", "--num-steps", "1"],
}
SMALL = shlex.split("--field.channels 32 64 --field.layers 1 --field.attention")
SWEEP = ["--count", "30", "--sweep-solvers", "euler", "--sweep-shifts", "1"]
LATER = {"--solver dopri5 --tolerance 1e-4": "--solver dopri5 --tolerance 1e-1"}
"""What would take long on an untrained network."""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_of_the_readme_is_of_a_kind_that_is_tried():
    kinds = (
        "make ",
        "flowimg ",
        "accelerate launch ",
        "ACCELERATE_USE_CPU=true accelerate launch ",
        "python3 -m venv",
        "pip install -e ",
        "accelerate config",  # asks questions: there is nothing to try
    )
    assert [line for line in commands() if not line.startswith(kinds)] == []


def test_make_targets_exist():
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert targets <= set(rules)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with configs/, pictures in class folders, a pretrained network, as a reader of the README may have."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    noise = np.random.default_rng(0).integers(0, 256, (60, 20, 24, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        file = Path("FOLDER", ("flags", "symbols")[number % 2], f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    new_unet(64, 3, channels=(32, 64), layers=1).save_pretrained("google/ddpm-cat-256")
    return tmp_path


@pytest.mark.slow
def test_flowimg_commands_run_in_order(desk, monkeypatch):
    for name, value in {"FLOOR_DRAWS": 128, "FLOOR_DATA": 32_768, "CROWD": 500, "FRAMES": 4, "PARTICLES": 50}.items():
        monkeypatch.setattr(f"flowimg.jobs.figures.{name}", value)
    monkeypatch.setattr("flowimg.jobs.sweep.CONVERGED", {"solver": "heun", "num_steps": 2})
    monkeypatch.setattr("flowimg.evaluation.classifier.LEAST", 30)
    monkeypatch.setattr("flowimg.jobs.play.threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=int)))
    ran = [line.removeprefix("flowimg ") for line in commands() if line.startswith("flowimg ")]
    assert {line.split()[0] for line in ran} == set(VERBS)
    for line in ran:
        for said, done in LATER.items():
            line = line.replace(said, done)
        verb, *args = [word for part in shlex.split(line) for word in (glob.glob(part)[:1] or [part])]
        if "--push-to-hub" in args:
            continue
        small = SMALL if verb == "train" and "FOLDER" in args and "--field.pretrained" not in args else []
        sized = ["--data.size", "64"] if "256" in args else []
        short = SWEEP if "--sweep-nfe" in args else SHORT.get(verb, [])
        main([verb, *args, *short, *small, *sized])
    assert Path("runs/digits/checkpoints").is_dir() and Path("exported/digits/model_index.json").exists()
    assert list(Path("runs/tracked/tracking").rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_diffusers_in_three_lines(desk):
    unconditional = ["--data.source", "FOLDER", "--data.size", "16", "--run", "runs/cifar10"]
    main(["train", "configs/cifar10.yaml", "--data.held-out", "4", *unconditional, *SHORT["train"], *SMALL])
    (code,) = [block for block in blocks("python") if "DiffusionPipeline" in block]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['flowimg'] = None\n" + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Image.open("cifar.png").size == (16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in commands() if "accelerate launch" in line and "moons" in line])
def test_two_processes_on_a_cpu_as_the_readme_says(tmp_path, line):
    words = shlex.split(line)
    command = [str(Path(sys.executable).parent / "accelerate"), *words[2:], "--run", str(tmp_path / "run")]
    command[command.index("launch") + 1 : command.index("launch") + 1] = ["--main_process_port", "0"]
    done = subprocess.run(
        [*command, *SHORT["train"]], cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert words[0] == "ACCELERATE_USE_CPU=true"
    assert "2 processes" in done.stdout
    assert "run " in done.stdout and done.stdout.count("training  steps") == 1


def pieces():
    """The code of "Add your own": (file, code, sentence in the file's comment), in order."""
    found = []
    for block in [block for block in blocks("python") if block.startswith("# flowimg/")]:
        for part in re.split(r"^(?=# flowimg/)", block, flags=re.MULTILINE):
            if part.strip():
                head, _, code = part.partition("\n")
                file, _, hint = head.removeprefix("# ").partition(": ")
                found.append((file, code.strip("\n") + "\n", hint))
    return found


def add_your_own(folder):
    """A copy of flowimg with everything the README adds, put where it says."""
    for name in ("flowimg", "tests", "configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    config = (folder / "flowimg" / "config.py").read_text()
    for file, code, hint in pieces():
        path = folder / file
        if file == "flowimg/config.py":
            new, old, _ = re.match(r'and `?(?:\| )?([\w"]+)`? beside ([\w"]+) in ([\w.]+)', hint).groups()
            place = re.compile(rf"(?<=[|,] ){old}(?=[],])")
            assert len(place.findall(config)) == 1, hint
            config = place.sub(f"{old}, {new}" if old.startswith('"') else f"{old} | {new}", config)
            config = config.replace("\nclass Config(Settings):", f"\n{code}\n\nclass Config(Settings):")
        elif path.exists():
            path.write_text(path.read_text() + "\n\n" + code)
        else:  # a new file: what its neighbours import
            path.write_text("import torch\nfrom torch import Tensor, nn\n\n\n" + code)
    (folder / "flowimg" / "config.py").write_text(config)
    build = folder / "flowimg" / "jobs" / "build.py"
    imports = "from flowimg.fields.affine import AffineField\nfrom flowimg.flow.paths import Quadratic\n"
    imports += "from flowimg.flow.solvers import RALSTON\n"
    build.write_text(build.read_text().replace("import torch\n", f"import torch\n{imports}", 1))


@pytest.mark.slow
def test_what_the_readme_adds_trains_and_passes_the_tests_of_its_room(tmp_path):
    add_your_own(tmp_path)
    (tmp_path / "mine.yaml").write_text("path: {kind: quadratic}\nfield: {kind: affine}\ngrid: {solver: ralston}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*command):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "affine, 8 parameters" in run("flowimg", "train", "mine.yaml", *SHORT["train"])
    (tmp_path / "stripes.yaml").write_text(
        "data: {kind: images, source: stripes}\nfield: {kind: unet, channels: [32, 64]}\n"
    )
    told = run("flowimg", "train", "stripes.yaml", *SHORT["train"])
    assert "200 pictures of train, 16 x 16, L; 2 classes" in told
    room = ["tests/flow/test_paths.py", "tests/flow/test_solvers.py", "tests/fields/test_every_field.py"]
    new = "quadratic or ralston or affine or settings and not help"  # the others are tested as they are here
    tested = run("pytest", "-vv", *room, "tests/test_architecture.py", "-k", new, "-p", "no:xdist")
    for new in ("quadratic", "ralston", "affine"):
        assert f"[{new}" in tested or f"{new}]" in tested


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda page: page.name)
def test_a_page_is_whole(page):
    text = page.read_text()
    assert not re.search(r"@@|TODO|FIXME|[A-Z]TIME\b", text)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
