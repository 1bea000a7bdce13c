"""README.md and docs/, run: their commands and Python as they stand (made short), and what they say how to add."""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flowimg.cli import VERBS, main
from flowimg.fields.unet import new_unet
from flowimg.runs.folder import RunFolder
from flowimg.runs.resume import check_folder
from flowimg.settings.reading import dump
from flowimg.settings.run import Config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]
SHORT = {
    "train": shlex.split(
        "--train.steps 3 --train.batch-size 32 --train.sample-every 3 --grid.count 20 --grid.num-steps 1 "
        "--figures false"
    ),
    "sample": ["--num-steps", "2"],  # a single step of a stochastic solver is refused
    "evaluate": ["--num-steps", "1", "--count", "30"],
    "likelihood": ["--count", "8", "--solver", "euler", "--num-steps", "1"],
    "interpolate": ["--num-steps", "1"],
    "figures": ["--num-steps", "1"],
    "invert": ["--solver", "euler", "--num-steps", "1"],
    "inpaint": ["--num-steps", "6"],
    "vary": ["--num-steps", "2"],
}
SMALL = shlex.split("--field.channels 32 64 --field.layers 1 --field.attention")
SWEEP = ["--count", "30", "--sweep-solvers", "euler", "--sweep-shifts", "1"]
LATER = {"--solver dopri5 --tolerance 1e-4": "--solver dopri5 --tolerance 1e-1"}
"""Commands that would take long on an untrained network."""
PARSED_ONLY = re.compile(r"--push-to-hub|--profile|--dry-run|\bcifar10|\bfashion_mnist")
"""Commands that need the hub, a GPU or hours: their settings are read, and nothing more."""
SHORT_PYTHON = {
    '{"run"': '{"figures": False, "grid.count": 10, "grid.num_steps": 1, '
    '"field.channels": [32, 64], "field.layers": 1, "run"',
    '"train.steps": 20': '"train.steps": 2, "train.batch_size": 16',
    "num_steps=20": "num_steps=2",
    "count=200": "count=20",
}
"""The same for the Python of the pages: no figures, a small network, few and short samples."""


def blocks(language, *pages):
    """The fenced blocks of a language, in order; of every page unless some are given."""
    text = "\n".join(page.read_text() for page in pages or PAGES)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(*pages):
    """The commands of the sh blocks, each once, without comments, lines that end in a backslash joined."""
    text = "".join(blocks("sh", *pages)).replace("\\\n", " ")
    lines = [" ".join(line.split("#")[0].split()) for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def test_every_command_is_of_a_kind_that_is_tried():
    kinds = (
        "make ",
        "flowimg ",
        "accelerate launch ",
        "ACCELERATE_USE_CPU=true accelerate launch ",
        "torchrun ",
        "python3 -m venv",
        "python examples/",
        "pip install -e ",
        "git clone URL ",
        "accelerate config",  # asks questions: there is nothing to try
    )
    assert [line for line in commands() if not line.startswith(kinds)] == []


def test_make_targets_exist():
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert targets <= set(rules)


def test_examples_exist():
    scripts = [line.split()[1] for line in commands() if line.startswith("python examples/")]
    assert scripts and [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with configs/, images in class folders, a pretrained network, as a reader of the pages may have."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    noise = np.random.default_rng(0).integers(0, 256, (60, 20, 24, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        file = Path("FOLDER", ("flags", "symbols")[number % 2], f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    Image.fromarray(noise[0]).save("PICTURE.png")
    Image.fromarray(noise[1, ..., 0]).save("MASK.png")
    new_unet(64, 3, channels=(32, 64), layers=1).save_pretrained("google/ddpm-cat-256")
    return tmp_path


def verb_and_settings(line):
    """The words after `flowimg` of a command, also of one started by `accelerate launch`; None for others."""
    words = shlex.split(line)
    scripts = [place for place, word in enumerate(words) if re.fullmatch(r"scripts/\w+\.py", word)]
    if scripts:
        return [Path(words[scripts[0]]).stem, *words[scripts[0] + 1 :]]
    return words[1:] if words[0] == "flowimg" else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_settings_that_its_verb_reads(desk, monkeypatch, page):
    """Each command goes through its verb as typed; only the job behind the verb is left out."""

    class Job(ModuleType):
        def __getattr__(self, name):
            return lambda *settings: read.append(settings) or {}

    source = (ROOT / "flowimg" / "cli.py").read_text()
    for name in re.findall(r'"((?:jobs|app)[\w.]*):\w+"', source):
        monkeypatch.setitem(sys.modules, f"flowimg.{name}", Job(name))
    for name in ("digits", "moons", "cifar10"):  # a run's folder holds its settings
        Path("runs", name).mkdir(parents=True)
        shutil.copy(Path("configs", f"{name}.yaml"), Path("runs", name, "config.yaml"))
    for line in commands(page):
        words, read = verb_and_settings(line), []
        if words is None or "--help" in words or words[0] in ("config", "experiment"):
            continue
        main(words)
        assert len(read) == 1, line


def test_a_run_folder_is_the_same_run_on_every_page(desk, monkeypatch):
    """A reader follows several pages at one desk: where one page trained, another may only continue."""

    def train(config, how):
        folder = RunFolder(Path(config.run))
        check_folder(folder, config, how)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(dump(config))

    monkeypatch.setitem(sys.modules, "flowimg.jobs.train.run", SimpleNamespace(train=train))
    for line in commands():
        words = verb_and_settings(line)
        if words and words[0] == "train" and "--help" not in words and not PARSED_ONLY.search(line):
            main(words)
    assert len(list(Path("runs").iterdir())) > 20


def run_commands(lines, monkeypatch):
    """Run flowimg commands in order, with few steps and samples."""
    for name, value in {"irreducible.DRAWS": 128, "irreducible.DATA": 32_768}.items():
        monkeypatch.setattr(f"flowimg.jobs.figures.{name}", value)
    for name, value in {"CROWD": 500, "FRAMES": 4, "PARTICLES": 50}.items():
        monkeypatch.setattr(f"flowimg.jobs.figures.points.{name}", value)
    monkeypatch.setattr("flowimg.jobs.evaluate.sweep.CONVERGED", {"solver": "heun", "num_steps": 2})
    monkeypatch.setattr("flowimg.fields.classifier.LEAST", 30)
    monkeypatch.setattr("flowimg.app.page.threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=int)))
    for line in lines:
        for said, done in LATER.items():
            line = line.replace(said, done)
        verb, *args = [word for part in shlex.split(line) for word in (glob.glob(part)[:1] or [part])]
        if "--help" in args:
            with pytest.raises(SystemExit) as done:
                main([verb, *args])
            assert done.value.code == 0
            continue
        if verb == "experiment":  # answers with the command that does it now
            with pytest.raises(SystemExit) as done:
                main([verb, *args])
            assert done.value.code == 2
            continue
        small = SMALL if verb == "train" and "FOLDER" in args and "--field.pretrained" not in args else []
        sized = ["--data.size", "64"] if "256" in args else []
        short = SWEEP if "--sweep-nfe" in args else SHORT.get(verb, [])
        main([verb, *args, *short, *small, *sized])


def test_the_readme_shows_every_verb():
    shown = {line.split()[1] for line in commands(README) if line.startswith("flowimg ")}
    assert shown == set(VERBS) - {"experiment"}  # which only names the example, and so does the page
    assert "python examples/frequency/run.py" in README.read_text()


@pytest.mark.slow
def test_flowimg_commands_of_every_page_run_in_order(desk, monkeypatch):
    first = ["train configs/digits.yaml", "train configs/moons.yaml --train.snapshots 16"]
    lines = [line.removeprefix("flowimg ") for line in commands() if line.startswith("flowimg ")]
    ran = [line for line in lines if line not in first and not PARSED_ONLY.search(line)]
    run_commands([*first, *ran], monkeypatch)
    assert Path("runs/digits/checkpoints").is_dir() and Path("exported/digits/model_index.json").exists()
    assert list(Path("runs/tracked/tracking").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[] if page == README else pytest.mark.slow)
        for page in PAGES
        if "import flowimg\n" in page.read_text()
    ],
)
def test_the_python_of_a_page_runs(desk, quick_judge, page):
    """In order, each block in a name space of its own, as a reader would paste it."""
    for block in blocks("python", page):
        if "import flowimg\n" in block:
            for said, done in SHORT_PYTHON.items():
                block = block.replace(said, done)
            exec(compile(block, str(page), "exec"), {"__name__": "__main__"})
    assert Path("sixteen.png" if page == README else "python.png").stat().st_size > 0


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
def test_two_processes_on_a_cpu_as_the_pages_say(tmp_path, line):
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


def test_torchrun_gives_the_script_its_options():
    """`--run` is ambiguous to torchrun, which has --run-path and --run_path."""
    from torch.distributed.run import parse_args

    lines = [shlex.split(line)[1:] for line in commands() if line.startswith("torchrun ")]
    assert lines and all("--run" in words for words in lines)
    for words in lines:
        parsed, place = parse_args(words), words.index("--") + 1
        assert [parsed.training_script, *parsed.training_script_args] == words[place:]


def pieces():
    """The code that the pages tell people to add: (file, code, sentence in the file's comment), in order."""
    found = []
    for block in [block for block in blocks("python") if block.startswith("# flowimg/")]:
        for part in re.split(r"^(?=# flowimg/)", block, flags=re.MULTILINE):
            if part.strip():
                head, _, code = part.partition("\n")
                file, _, hint = head.removeprefix("# ").partition(": ")
                found.append((file, code.strip("\n") + "\n", hint))
    return found


def home(folder, pattern):
    """The one file of a copy of flowimg that has a line like this."""
    found = [path for path in folder.rglob("*.py") if re.search(pattern, path.read_text(), re.MULTILINE)]
    assert len(found) == 1, (pattern, found)
    return found[0]


def add_your_own(folder):
    """A copy of flowimg with everything the pages add, put where they say."""
    for name in ("flowimg", "tests", "configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    package = folder / "flowimg"
    for file, code, hint in pieces():
        path = folder / file
        if file == "flowimg/settings/":
            new, old, group = re.match(r'and `?(?:\| )?([\w"]+)`? beside ([\w"]+) in ([\w.]+)', hint).groups()
            place = re.compile(rf"(?<=[|,] ){old}(?=[],])|(?<=\| ){old}$", re.MULTILINE)
            chosen = home(package / "settings", rf"^class {group.split('.')[0]}\(|^{group} = ")
            text = chosen.read_text()
            assert len(place.findall(text)) == 1, hint
            text = place.sub(f"{old}, {new}" if old.startswith('"') else f"{old} | {new}", text)
            chosen.write_text(text)
            if code.strip():
                beside = home(package / "settings", rf"^class {old}\(")
                text = beside.read_text()
                beside.write_text(text.replace(f"\nclass {old}(", f"\n{code}\n\nclass {old}("))
                if beside != chosen:
                    module = ".".join(beside.relative_to(folder).with_suffix("").parts)
                    text = chosen.read_text().replace(f"from {module} import ", f"from {module} import {new}, ", 1)
                    chosen.write_text(text.replace(f"import {new}, (", f"import ({new}, "))
        elif path.exists():
            path.write_text(path.read_text() + "\n\n" + code)
        else:  # a new file: the imports of its neighbours
            path.write_text(
                "import torch\nfrom torch import Tensor, nn\n\nfrom flowimg.flow.condition import Condition\n\n\n"
                + code
            )
    for file, line in {
        "field": "from flowimg.fields.affine import AffineField",
        "flow": "from flowimg.flow.paths import Quadratic",
        "sampler": "from flowimg.flow.solvers import RALSTON",
    }.items():
        table = package / "build" / f"{file}.py"
        table.write_text(table.read_text().replace("\nfrom flowimg.", f"\n{line}\nfrom flowimg.", 1))


@pytest.mark.slow
def test_what_the_pages_add_trains_and_passes_the_tests_of_its_room(tmp_path):
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_whole(page):
    text = page.read_text()
    assert not re.search(r"@@|TODO|FIXME|\b[A-Z]TIME\b", text)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, part = link.partition("#")
        if file.startswith("https://"):
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        if part:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert part in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_and_commands_fit_into_120_columns(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|") and "](" not in line]
    assert [line for line in lines if len(line) > 120] == []


def test_the_readme_is_short_and_links_to_every_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert [page.name for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in text] == []


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("configs/*.yaml"))], ids=lambda page: page.name)
def test_every_setting_that_a_page_names_exists(page):
    schema = Config.model_json_schema()
    keys = {
        f"{group}.{key}"
        for group, kinds in schema["properties"].items()
        for kind in re.findall(r"#/\$defs/(\w+)", str(kinds))
        for key in schema["$defs"][kind]["properties"]
    }
    groups = "|".join(sorted({key.split(".")[0] for key in keys}))
    named = re.findall(rf"(?:`|--)((?:{groups})\.[a-z][\w-]*)", page.read_text())
    files = re.compile(r"\.(py|yaml|json|npz|png)$")
    assert [name for name in named if name.replace("-", "_") not in keys and not files.search(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text()
    named = re.findall(r"`((?:\w+/)+[\w.]*|\w+\.py)`", text)
    if page == README:  # its table and tree leave out the package's name
        named = [name if (ROOT / name).exists() else f"flowimg/{name}" for name in named]
        tree = re.search(r"```\nflowimg/\n(.*?)```", text, re.DOTALL).group(1)
        named += [f"flowimg/{line.split()[0]}" for line in tree.splitlines() if line.startswith("  ")]
    else:
        named = [
            name for name in named if name.split("/")[0] in ("flowimg", "tests", "configs", "scripts", "benchmarks")
        ]
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
