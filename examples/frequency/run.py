"""Finer boards are harder: train a small network and its repairs on checkerboards of more and more squares.

    python examples/frequency/run.py [--run FOLDER] [--cells 2 4 8 16] [--steps N] [--plain-only true] [--seed N]

docs/frequency.md discusses the results.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import torch
import tyro
from figures import Line, boards_figure, frequency_figure
from pydantic import Field
from torch import nn

from flowimg.build.data import build_toy
from flowimg.build.facts import DataFacts
from flowimg.build.field import build_field
from flowimg.build.sampler import build_sampler
from flowimg.errors import FlowimgError, SettingsError, Stopped
from flowimg.files import write_text
from flowimg.flow.randomness import generator
from flowimg.jobs.evaluate.run import evaluate
from flowimg.jobs.train.run import train
from flowimg.machine.processes import one_process
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import open_run
from flowimg.settings.base import Positive, Seed, Settings
from flowimg.settings.command import override
from flowimg.settings.data import PointData
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.field import MLP
from flowimg.settings.flow import UniformTimes
from flowimg.settings.reading import flatten, nearest
from flowimg.settings.run import Config
from flowimg.settings.sampling import Grid
from flowimg.settings.train import Optim, Train

PROGRAM = "python examples/frequency/run.py"
BATCH = 512
POINTS = 5000
"""Points on each board of the picture."""


class Experiment(Settings):
    """Train boards of finer and finer squares with several recipes, and compare which of them helps."""

    run: Annotated[str, Field(min_length=1)] = "runs/frequency"
    """Folder for all runs, tables and pictures."""
    cells: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Field(min_length=1)] = (2, 4, 8, 16)
    """Squares per side of each board."""
    steps: Positive = 8000
    """Training steps of the plain network; the others get as many as their compute allows."""
    plain_only: bool = False
    """Train only the plain network, which fails on fine boards, and none of the repairs."""
    seed: Seed = 0
    """Seed of every run."""


class Recipe(NamedTuple):
    """A change to the plain network; `compute` is training FLOPs relative to the plain one."""

    name: str
    field: MLP
    shift: float
    compute: float


PLAIN = MLP(width=128, depth=4, t_frequencies=4)
WIDE = MLP(width=256, depth=4, t_frequencies=4)
WAVES = MLP(width=128, depth=4, t_frequencies=4, x_frequencies=20)
WIDE_WAVES = MLP(width=256, depth=4, t_frequencies=4, x_frequencies=20)
RECIPES = (
    Recipe("plain", PLAIN, 1.0, 1),
    Recipe("times near the data", PLAIN, 0.15, 1),
    Recipe("twice as wide", WIDE, 1.0, 4),
    Recipe("four times as long", PLAIN, 1.0, 4),
    Recipe("Fourier features", WAVES, 1.0, 1),
    Recipe("Fourier and times", WAVES, 0.15, 1),
    Recipe("Fourier, times, width", WIDE_WAVES, 0.15, 4),
)
"""From the plain network to the best repair."""


def experiment(settings: Experiment) -> dict[str, Any]:
    """Train and evaluate every recipe on every board, write the table and the pictures; finished runs are skipped.

    Returns:
        The folder and, for each run, its scores, steps, FLOPs and seconds.
    """
    one_process("experiment")
    folder = Path(settings.run)
    recipes = RECIPES[:1] if settings.plain_only else RECIPES
    runs = [(recipe, cells) for recipe in recipes for cells in settings.cells]
    print(f"{len(recipes)} recipes on {len(settings.cells)} boards: {len(runs)} runs into {folder}")
    rows = []
    for number, (recipe, cells) in enumerate(runs, 1):
        config = plan(settings, recipe, cells)
        row = {"recipe": recipe.name, "cells": cells, **_measure(config)}
        rows.append(row)
        what = f"run {number:>2} of {len(runs)}  {recipe.name:<25} {cells:>2} x {cells:<2}"
        print(f"{what}  {100 * row['off']:5.1f} % off  {row['flops']:.1e} FLOP  {row['seconds']:.0f} s", flush=True)
    write_text(folder / "frequency.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "frequency.md", _table(rows, recipes, settings))
    _draw(settings, rows, recipes, folder)
    for name in ("frequency.md", "frequency.png", "boards.png"):
        print(folder / name)
    return {"run": settings.run, "runs": rows}


def plan(settings: Experiment, recipe: Recipe, cells: int) -> Config:
    """Settings of the run of a recipe on a board, with as many steps as its compute allows."""
    data = PointData(cells=cells)
    config = Config(data=data, field=recipe.field, times=UniformTimes(shift=recipe.shift))
    plain = Config(data=data, field=PLAIN)
    steps = round(settings.steps * recipe.compute * flops(plain, 1) / flops(config, 1))
    train = Train(
        steps=steps, batch_size=BATCH, log_every=max(steps // 50, 1), sample_every=steps, checkpoint_every=steps
    )
    return config.model_copy(
        update={
            "run": f"{settings.run}/{recipe.name.replace(' ', '_').replace(',', '')}_{cells}_seed{settings.seed}",
            "seed": settings.seed,
            "optim": Optim(lr=5e-3, warmup=50),
            "train": train,
            "grid": Grid(count=2000),
            "figures": False,
        }
    )


def flops(config: Config, samples: int) -> float:
    """Floating-point operations to train an MLP on a number of samples: 6 per sample and weight of its matrices.

    2 forward (multiply, add), 4 backward (the same for the inputs and for the weights). Source: Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1.
    """
    field = build_field(config, DataFacts((2,), ()))
    return 6.0 * samples * sum(layer.weight.numel() for layer in field.modules() if isinstance(layer, nn.Linear))


def _measure(config: Config) -> dict[str, Any]:
    """Train and evaluate a run, each only if that is not done yet; returns its scores and its cost."""
    folder = RunFolder(Path(str(config.run)))
    with _silence():
        train(config)
        done = [score for score in folder.evaluated() if score["step"] == config.train.steps]
        scores = done[-1] if done else evaluate(Evaluate(run=str(config.run)))
    assert scores is not None
    records = [record for record in folder.records() if "samples_per_second" in record]
    before = [0, *(record["samples"] for record in records)]
    seconds = sum((r["samples"] - b) / r["samples_per_second"] for r, b in zip(records, before, strict=False))
    samples = config.train.steps * BATCH
    return {
        **{name: scores[name] for name in ("off", "sw2", "mass_ratio", "nfe")},
        "steps": config.train.steps,
        "flops": flops(config, samples),
        "seconds": seconds,
        "run": config.run,
    }


@contextmanager
def _silence() -> Iterator[None]:
    """Discard the output of the single runs, which would bury the experiment's own."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _table(rows: list[dict[str, Any]], recipes: Sequence[Recipe], settings: Experiment) -> str:
    """The share off the board of every run, as a table in Markdown."""
    lines = [
        "| recipe | steps | FLOP a run | seconds a run | " + " | ".join(f"{n} x {n}" for n in settings.cells) + " |",
        "|" + "---|" * (4 + len(settings.cells)),
    ]
    for recipe in recipes:
        mine = [row for row in rows if row["recipe"] == recipe.name]
        seconds = sorted(row["seconds"] for row in mine)
        shares = " | ".join(f"{100 * row['off']:.1f} %" for row in mine)
        took = f"{seconds[0]:.0f} to {seconds[-1]:.0f}"
        lines.append(f"| {recipe.name} | {mine[0]['steps']:,} | {mine[0]['flops']:.1e} | {took} | {shares} |")
    return "\n".join(lines) + "\n"


def _draw(settings: Experiment, rows: list[dict[str, Any]], recipes: Sequence[Recipe], folder: Path) -> None:
    """Write frequency.png, the share off the board, and boards.png, points on each board."""
    lines = [
        Line(recipe.name, recipe.compute, [row["off"] for row in rows if row["recipe"] == recipe.name])
        for recipe in recipes
    ]
    frequency_figure(lines, settings.cells, folder / "frequency.png")
    shown = {recipe.name: recipe for recipe in (recipes[0], recipes[-1])}
    boards: dict[str, list[Any]] = {"data": [], **{name: [] for name in shown}}
    for cells in settings.cells:
        toy = build_toy(Config(data=PointData(cells=cells)))
        truth = toy.sample(torch.rand(POINTS, 3, generator=generator("figure")))
        boards["data"].append((truth, toy.part(truth) < 0))
        for name, recipe in shown.items():
            run = open_run(str(plan(settings, recipe, cells).run), "ema", None, torch.device("cpu"))
            drawn = build_sampler(run.field, run.config, run.space, Evaluate(run="")).draw(range(POINTS)).x_1
            boards[name].append((drawn, toy.part(drawn) < 0))
    boards_figure(boards, settings.cells, toy.extent, folder / "boards.png")


def read(args: Sequence[str]) -> Experiment:
    """The settings of a command line; `--help` prints all of them and exits.

    Raises:
        SettingsError: If a setting is unknown or its value is not allowed.
    """
    if any(arg in ("-h", "--help") for arg in args):
        options = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
        tyro.cli(Experiment, prog=PROGRAM, default=Experiment(), args=["--help"], config=options)
    known = list(flatten(Experiment()))
    for option in (arg.split("=")[0] for arg in args if arg.startswith("--")):
        name = option.removeprefix("--").replace("-", "_")
        if name not in known:
            raise SettingsError(f"unknown setting {option}: {nearest(name, known)}")
    return override(Experiment(), args)


def main(args: Sequence[str] | None = None) -> None:
    """Run the experiment; a mistake of the user ends with one sentence and the exit status that flowimg would give.

    With `--quiet` only errors are printed; with `--json` stdout is the result as JSON, all other output goes to stderr.
    """
    args = list(sys.argv[1:] if args is None else args)
    quiet, as_json = "--quiet" in args, "--json" in args
    try:
        settings = read([arg for arg in args if arg not in ("--quiet", "--json")])
        with ExitStack() as stack:
            if quiet:
                stack.enter_context(_silence())
            elif as_json:
                stack.enter_context(redirect_stdout(sys.stderr))
            result = experiment(settings)
        if as_json:
            print(json.dumps(result, allow_nan=False))
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except Stopped as stopped:
        _fail(stopped.message, stopped.exit_status)
    except FlowimgError as error:
        _fail(str(error), error.exit_status)
    except OSError as error:  # a full disk, a folder that cannot be written
        _fail(str(error), 4)


def _fail(message: str, status: int) -> NoReturn:
    print("\n".join(f"frequency: {line}" for line in message.splitlines()), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
