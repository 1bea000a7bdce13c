"""The README, run: its commands as they stand (made short), and what it tells people to add."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowimg.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = {
    "train": shlex.split(
        "--train.steps 3 --train.batch-size 32 --train.sample-every 3 --grid.count 20 --grid.num-steps 1"
    ),
    "sample": ["--num-steps", "1"],
    "evaluate": ["--num-steps", "1", "--count", "30"],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_of_the_readme_is_of_a_kind_that_is_tried():
    kinds = ("make ", "flowimg ", "accelerate launch ", "ACCELERATE_USE_CPU=true accelerate launch ", "python3 -m venv")
    assert [line for line in commands() if not line.startswith((*kinds, "pip install -e ."))] == []


def test_make_targets_exist():
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert targets <= set(rules)


def test_flowimg_commands_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    ran = [shlex.split(line)[1:] for line in commands() if line.startswith("flowimg ")]
    assert {verb for verb, *_ in ran} == {"train", "config", "sample", "evaluate"}
    for verb, *args in ran:
        main([verb, *args, *SHORT.get(verb, [])])
    assert (tmp_path / "runs" / "digits" / "checkpoints").is_dir()


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
    for block in blocks("python"):
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
    room = ["tests/flow/test_paths.py", "tests/flow/test_solvers.py", "tests/fields/test_every_field.py"]
    tested = run(
        "pytest", "-vv", *room, "tests/test_architecture.py", "-k", "not import and not help", "-p", "no:xdist"
    )
    for new in ("quadratic", "ralston", "affine"):
        assert f"[{new}" in tested or f"{new}]" in tested
