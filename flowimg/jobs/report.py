"""`flowimg report`: one page about a run, or several side by side; rewritten while a run goes on."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from flowimg.errors import SettingsError
from flowimg.evaluation.record import HOW, figures_of, protocol
from flowimg.figures.record import kept_figures
from flowimg.figures.report import Scores, Shot, Told, compare_page, report_page, shot
from flowimg.files import write_text
from flowimg.jobs.figures.run import draw_curves
from flowimg.machine.processes import alone
from flowimg.runs.folder import RunFolder, find_run
from flowimg.settings.reading import dump, flatten, load
from flowimg.settings.run import Config
from flowimg.settings.verbs import Report

FIELDS = {"mlp": "An MLP", "unet": "A U-Net"}
"""How a field is called in a sentence; one that is not here by its kind."""
REFRESH = 20
"""Seconds after which the page of a run that goes on loads itself again."""


def report(settings: Report) -> dict[str, Any]:
    """Write the page about a run, or about several side by side, and say where it is."""
    alone("report")
    folders = [find_run(run) for run in (settings.run, *settings.others)]
    if settings.out and Path(settings.out).exists():
        raise SettingsError(f"--out {settings.out} exists and is not overwritten: name a new file")
    for folder in folders:
        draw_curves(folder, load(str(folder.config)), None)
    told = [tell(folder, moving=len(folders) == 1) for folder in folders]  # many animations are too heavy to send
    if len(folders) == 1:
        path = Path(settings.out) if settings.out else folders[0].report
        page = report_page(told[0], None)
    else:
        path = Path(settings.out) if settings.out else folders[0].path / "comparison.html"
        page = _compare(folders, told)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    print(f"report    {path} ({len(page) / 1e6:.1f} MB, opens in a browser)")
    return {"runs": [str(folder.path) for folder in folders], "report": str(path)}


def write_report(folder: RunFolder, running: bool) -> None:
    """Write RUN/report.html of what is in the folder now."""
    write_text(folder.report, report_page(tell(folder, running), REFRESH if running else None))


def tell(folder: RunFolder, running: bool = False, moving: bool = True) -> Told:
    """Everything a page says about a run, from its folder alone; its animations as well, or stills alone."""
    config = load(str(folder.config))
    machine = _json(folder.environment)
    records = folder.records()
    step = max((record["step"] for record in records), default=0)
    done = step >= config.train.steps
    state = f"{'trained' if done else 'training' if running else 'stopped'}: step {step:,} of {config.train.steps:,}"
    pictures, curves = _shots(folder, config, moving)
    environment = [(name, str(value)) for name, value in machine.items() if value is not None]
    return Told(
        name=folder.path.name or str(folder.path),
        path=str(folder.path),
        story=_story(config, machine),
        state=state,
        running=running and not done,
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        pictures=pictures,
        curves=curves,
        evaluations=[_scores(folder.path.name, evaluation) for evaluation in folder.evaluated()],
        commands=_commands(folder, config, done),
        changed=_changed(config),
        settings=dump(config),
        environment=environment,
    )


def _story(config: Config, machine: dict[str, Any]) -> str:
    """What was trained on what, in a sentence or two."""
    parameters = f" of {machine['parameters']:,} parameters" if "parameters" in machine else ""
    seen = config.train.steps * config.train.batch_size
    data = machine.get("data", config.data.source)
    return (
        f"{FIELDS.get(config.field.kind, config.field.kind)}{parameters}, on {data}. {config.train.steps:,} steps of "
        f"{config.train.batch_size:,} ({seen:,} samples) on the {config.path.kind} path with {config.coupling.kind} "
        f"coupling and {config.times.kind} times, seed {config.seed}."
    )


def _shots(folder: RunFolder, config: Config, moving: bool) -> tuple[list[Shot], list[Shot]]:
    """The newest grid and the figures that are there; the curves apart."""
    drawings = not config.data.holds_pictures
    pictures: list[Shot] = []
    curves: list[Shot] = []
    if grids := folder.grids():
        step, grid = grids[-1]
        how = f"Fixed seeds through the averaged weights at step {step:,}; {grid.relative_to(folder.path)}."
        pictures.append(shot(grid, "Samples", how, "drawing" if drawings else "pictures"))
    if folder.preview.exists():
        seen = "The first pictures of the run as the field saw them; data.png."
        pictures.append(shot(folder.preview, "What it learned from", seen, "pictures"))
    for figure in kept_figures(folder.figures):
        path = folder.figures / figure.file
        path = path if moving else path.with_suffix(".png")  # the last frame, where one is kept
        if path.exists():
            drawn = drawings or figure.curve
            (curves if figure.curve else pictures).append(
                shot(path, figure.title, f"{figure.caption} {figure.how}".strip(), "drawing" if drawn else "pictures")
            )
    return pictures, curves


def _scores(run: str, evaluation: dict[str, Any]) -> Scores:
    """An evaluation as the page tells it; one of another version may lack what this one expects."""
    try:
        words = protocol(run, evaluation)
    except (KeyError, TypeError, ValueError, IndexError):
        words = ", ".join(f"{name} {_value(evaluation[name])}" for name in HOW if name in evaluation)
    return Scores(words, [(name, _value(value)) for name, value in figures_of(evaluation).items()])


def _commands(folder: RunFolder, config: Config, done: bool) -> list[tuple[str, str]]:
    path = folder.path
    more = f" --train.steps {2 * config.train.steps}" if done else ""
    commands = [
        ("Train longer" if done else "Go on from the last checkpoint", f"flowimg train {path}{more}"),
        ("Draw samples", f"flowimg sample {path} --count 64"),
        ("Measure them", f"flowimg evaluate {path}"),
    ]
    if folder.model.exists():
        classes = "from flowimg.sampling.pipeline import LabelPipeline as DiffusionPipeline"
        stock = "from diffusers import DiffusionPipeline"
        conditional = "LabelPipeline" in (folder.model / "model_index.json").read_text()
        code = f'{classes if conditional else stock}\n\npipeline = DiffusionPipeline.from_pretrained("{folder.model}")'
        commands.append(("Load it in Python", code))
    return commands


def _changed(config: Config) -> list[tuple[str, str, str]]:
    """Settings that differ from the defaults of their kind, with those."""
    usual = Config(
        data=type(config.data)(),
        path=type(config.path)(),
        coupling=type(config.coupling)(),
        times=type(config.times)(),
        field=type(config.field)(),
    )
    defaults, base = flatten(usual), flatten(Config())
    rows = []
    for key, value in flatten(config).items():
        default = base.get(key) if key.endswith(".kind") else defaults.get(key)
        if value != default and key != "run":
            rows.append((key, _value(value), _value(default)))
    return rows


def _compare(folders: list[RunFolder], told: list[Told]) -> str:
    from flowimg.figures.curves import compare_figure

    names = _apart([run.path for run in told])
    told = [run._replace(name=name) for run, name in zip(told, names, strict=True)]
    path = folders[0].figures / "comparison.png"
    compare_figure({name: folder.records() for name, folder in zip(names, folders, strict=True)}, path)
    seen = "Loss of the averaged weights on held-out data, gradient norm and speed."
    curves = shot(path, "Training side by side", seen, "drawing")
    settings = [flatten(load(str(folder.config))) for folder in folders]
    keys = list(dict.fromkeys(key for flat in settings for key in flat if key != "run"))
    differ = [
        (key, [_value(flat.get(key, "not there")) for flat in settings])
        for key in keys
        if len({str(flat.get(key, "not there")) for flat in settings}) > 1
    ]
    return compare_page(told, curves, differ, told[0].written)


def _apart(paths: list[str]) -> list[str]:
    """Names that tell the runs apart: the folder's, or its path where two are called the same."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
