"""`flowimg report`: one page about a run, or about several side by side; training rewrites it as it goes."""

from datetime import datetime
from pathlib import Path
from typing import Any

from flowimg.errors import SettingsError
from flowimg.evaluation.record import HOW, protocol, scores_of
from flowimg.figures.record import kept_figures
from flowimg.figures.report import RunSummary, Scores, Shot, compare_page, report_page, shot
from flowimg.files import read_json, write_text
from flowimg.jobs.drawing import check_places
from flowimg.jobs.figures.run import draw_curves
from flowimg.machine.processes import one_process
from flowimg.names import one_line, text_of, word
from flowimg.runs.folder import RunFolder, find_run
from flowimg.runs.places import read_config
from flowimg.settings.reading import dump, flatten, load
from flowimg.settings.run import Config
from flowimg.settings.verbs import Report

FIELDS = {"mlp": "An MLP", "unet": "A U-Net", "dit": "A transformer (DiT)", "jit": "A transformer"}
"""The names of fields in a sentence; others are called by their kind."""
REFRESH = 20
"""Seconds after which the page of a running run reloads itself."""


def report(settings: Report) -> dict[str, Any]:
    """Write the page about a run, or about several side by side, and print its path."""
    one_process("report")
    folders = [find_run(run) for run in (settings.run, *settings.others)]
    if settings.out and Path(settings.out).exists():
        raise SettingsError(f"--out {settings.out} exists and is not overwritten: name a new file")
    usual = folders[0].path / ("comparison.html" if settings.others else "report.html")
    path = Path(settings.out or usual)
    check_places(path, *(folder.figures / "figures.json" for folder in folders))
    for folder in folders:
        draw_curves(folder, read_config(folder), None)
    page = _compare(folders) if settings.others else report_page(summarise(folders[0]), None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    print(f"report    {path} ({len(page) / 1e6:.1f} MB, opens in a browser)")
    return {"runs": [str(folder.path) for folder in folders], "report": str(path)}


def write_report(folder: RunFolder, running: bool) -> None:
    """Write RUN/report.html from the current files of the folder."""
    write_text(folder.report, report_page(summarise(folder, running), REFRESH if running else None))


def summarise(folder: RunFolder, running: bool = False, moving: bool = True) -> RunSummary:
    """Everything on a page about a run, from its folder only; with `moving` its animations, else stills of them."""
    config = load(str(folder.config))
    machine = read_json(folder.environment)
    step = max((record["step"] for record in folder.records()), default=0)
    done = step >= config.train.steps
    state = "trained" if done else "training" if running else "stopped"
    pictures, curves = _shots(folder, config, moving)
    return RunSummary(
        name=_name(folder),
        evaluate=f"flowimg evaluate {word(folder.path)}",
        story=_story(config, machine),
        state=f"{state}: step {step:,} of {config.train.steps:,}",
        running=running and not done,
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        pictures=pictures,
        curves=curves,
        evaluations=[_scores(_name(folder), evaluation) for evaluation in folder.evaluated()],
        commands=_commands(folder, config, done),
        changed=_changed(config),
        settings=dump(config),
        environment=[(name, one_line(str(value))) for name, value in machine.items() if value is not None],
    )


def _name(folder: RunFolder) -> str:
    """What a run is called on a page."""
    return one_line(text_of(folder.path.name or folder.path.resolve().name))


def _story(config: Config, machine: dict[str, Any]) -> str:
    """The field, the data and the training, in two sentences."""
    parameters = f" with {machine['parameters']:,} parameters" if "parameters" in machine else ""
    steps, batch_size = config.train.steps, config.train.batch_size
    data = machine.get("data", one_line(config.data.source))
    return (
        f"{FIELDS.get(config.field.kind, config.field.kind)}{parameters}, trained on {data}. {steps:,} steps of "
        f"{batch_size:,} ({steps * batch_size:,} samples) on the {config.path.kind} path with {config.coupling.kind} "
        f"coupling and {config.times.kind} times, seed {config.seed}."
    )


def _shots(folder: RunFolder, config: Config, moving: bool) -> tuple[list[Shot], list[Shot]]:
    """The newest grid and the figures of the run; and, separately, its curves."""
    kind = "pictures" if config.data.holds_pictures else "drawing"
    pictures, curves = list[Shot](), list[Shot]()
    if grids := folder.grids():
        step, grid = grids[-1]
        caption = f"EMA weights at step {step:,}, from the same seeds at every step; {grid.relative_to(folder.path)}."
        pictures.append(shot(grid, "Samples", caption, kind))
    if folder.preview.exists():
        caption = "The first training pictures as the network sees them; data.png."
        pictures.append(shot(folder.preview, "Training data", caption, "pictures"))
    for figure in kept_figures(folder.figures):
        path = folder.figures / figure.file
        path = path if moving else path.with_suffix(".png")  # the last frame, which some animations have as a PNG
        if path.exists():
            caption = f"{figure.caption} {figure.how}".strip()
            shown = shot(path, figure.title, caption, "drawing" if figure.curve else kind)
            (curves if figure.curve else pictures).append(shown)
    return pictures, curves


def _scores(run: str, evaluation: dict[str, Any]) -> Scores:
    """An evaluation for the page; one of another version may lack keys."""
    try:
        how = protocol(run, evaluation)
    except (KeyError, TypeError, ValueError, IndexError):
        how = ", ".join(f"{name} {_value(evaluation[name])}" for name in HOW if name in evaluation)
    return Scores(how, [(name, _value(value)) for name, value in scores_of(evaluation).items()])


def _commands(folder: RunFolder, config: Config, done: bool) -> list[tuple[str, str]]:
    path = word(folder.path)
    longer = f" --train.steps {2 * config.train.steps}" if done else ""
    commands = [
        ("Train longer" if done else "Resume from the last checkpoint", f"flowimg train {path}{longer}"),
        ("Draw samples", f"flowimg sample {path} --count 64"),
        ("Evaluate samples", f"flowimg evaluate {path}"),
    ]
    if folder.model.exists():
        conditional = "LabelPipeline" in (folder.model / "model_index.json").read_text(encoding="utf-8")
        ours, stock = ("flowimg.sampling.pipeline", "LabelPipeline"), ("diffusers", "DiffusionPipeline")
        module, name = ours if conditional else stock
        code = f"from {module} import {name}\n\npipeline = {name}.from_pretrained({str(folder.model)!r})"
        commands.append(("Load it in Python", code))
    return commands


def _changed(config: Config) -> list[tuple[str, str, str]]:
    """Settings that differ from the defaults of their kind, with these defaults."""
    kinds = ("data", "path", "coupling", "times", "field")
    defaults = flatten(Config(**{name: type(getattr(config, name))() for name in kinds}))
    base = flatten(Config())
    rows = []
    for key, value in flatten(config).items():
        default = (base if key.endswith(".kind") else defaults).get(key)
        if value != default and key != "run":
            rows.append((key, _value(value), _value(default)))
    return rows


def _compare(folders: list[RunFolder]) -> str:
    from flowimg.figures.curves import compare_figure

    paths = [str(folder.path) for folder in folders]
    names = [_name(folder) for folder in folders]
    names = names if len(set(names)) == len(names) else [one_line(path) for path in paths]
    # the animations of several runs would make the page too large to send
    runs = [summarise(folder, moving=False)._replace(name=name) for folder, name in zip(folders, names, strict=True)]
    path = folders[0].figures / "comparison.png"
    compare_figure({name: folder.records() for name, folder in zip(names, folders, strict=True)}, path)
    caption = "Loss of the EMA weights on held-out data, gradient norm and speed."
    settings = [flatten(load(str(folder.config))) for folder in folders]
    differ = []
    for key in dict.fromkeys(key for flat in settings for key in flat if key != "run"):
        values = [flat.get(key, "not there") for flat in settings]
        if len(set(map(str, values))) > 1:
            differ.append((key, [_value(value) for value in values]))
    return compare_page(runs, shot(path, "Training side by side", caption, "drawing"), differ, runs[0].written)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "none"
    return "none" if value is None else one_line(str(value))
