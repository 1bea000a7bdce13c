"""Speed of trainings that share a machine, for each way in which OpenMP's idle threads can wait.

    python benchmarks/shared.py [--garments FOLDER] [--quick] [--spins N ...]

Trains the checkerboard, and Fashion-MNIST with --garments (the folder of its parquet files), alone and beside one and
two trainings of the same kind. The rows are GNU OpenMP's own default (300,000 spins), flowimg's, passive waiting, and
with --spins also other numbers of spins. All trainings of a table are started first; those that are not measured
sleep. Each cell of the table is measured in turn, --rounds times (3); reported are medians, in samples/s, of the first
training and, in brackets, of the sum of all. About 10 minutes on two cores; --quick: one short round, for a look.
"""

import argparse
import os
import platform
import selectors
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from turns import CHECKOUT, Trainer, environment_of, flowimg_command

from flowimg.machine.cores import WAITING
from flowimg.settings.reading import load

MOST = 3
"""Trainings at the same time."""
LEAST = 2
"""Turns of each training in a measurement at least; a turn takes a part of a second on a quiet machine."""
BOARD, GARMENTS = ("configs/checkerboard.yaml", 50), ("configs/fashion_mnist.yaml", 1)
"""Settings, and steps in a turn."""
SETTLING = 1.5
"""Seconds that are not measured, in which flowimg sees what runs beside it."""
NOTHING_ELSE = ["--figures", "false", *(f"--train.{name}=1000000" for name in ("steps", "sample-every"))]
NOTHING_ELSE += [f"--train.{name}=1000000" for name in ("checkpoint-every", "held-out-every")]


def policies(spins: Sequence[int]) -> dict[str, dict[str, str]]:
    """Variables of each way of waiting, by its name."""
    ways = {"GNU OpenMP's default": {"GOMP_SPINCOUNT": "300000"}, "flowimg": {}}
    ways["passive"] = {"OMP_WAIT_POLICY": "passive"}
    return ways | {f"{number:,} spins": {"GOMP_SPINCOUNT": str(number)} for number in spins}


def speeds(trainers: Sequence[Trainer], steps: int, seconds: float) -> list[float]:
    """Steps per second of trainings that run at the same time."""
    done, taken = [0] * len(trainers), [0.0] * len(trainers)
    begin = time.monotonic() + SETTLING
    with selectors.DefaultSelector() as answers:
        for number, trainer in enumerate(trainers):
            answers.register(trainer.heard, selectors.EVENT_READ, number)
            trainer.ask(steps)
        running = True
        while answers.get_map():
            for key, _ in answers.select():
                number = key.data
                spent = trainers[number].seconds()
                now = time.monotonic()
                if running and now - spent > begin:  # all of them were running from its begin to its end
                    done[number], taken[number] = done[number] + steps, taken[number] + spent
                running = running and (now < begin + seconds or min(done) < LEAST * steps)
                if running:
                    trainers[number].ask(steps)
                else:
                    answers.unregister(key.fileobj)
    return [count / spent for count, spent in zip(done, taken, strict=True)]


def table(config: str, steps: int, more: Sequence[str], given: argparse.Namespace, scratch: Path) -> None:
    """Measure all ways of waiting with these settings, and print their table."""
    batch = load(config).train.batch_size
    plain = {name: value for name, value in environment_of(CHECKOUT).items() if name not in WAITING}
    trainers: dict[str, list[Trainer]] = {}
    for name, variables in policies(given.spins).items():
        trainers[name] = []
        for number in range(MOST):
            run = scratch / f"{Path(config).stem} {name} {number}"
            command = flowimg_command("steps", [os.path.abspath(config), *NOTHING_ELSE, *more, "--run", str(run)])
            trainers[name].append(Trainer(command, plain | variables, run.with_suffix(".txt")))
            trainers[name][-1].seconds()
    found: dict[tuple[str, int], list[list[float]]] = {}
    try:
        for number in range(given.rounds + 1):
            for beside in range(MOST):
                for name in trainers if number % 2 else reversed(trainers):
                    now = speeds(trainers[name][: beside + 1], steps, given.seconds if number else 1.0)
                    if number:  # the first round warms up
                        found.setdefault((name, beside), []).append([batch * each for each in now])
            print(f"{config}: {number} of {given.rounds} rounds", file=sys.stderr, flush=True)
    finally:
        for trainer in (trainer for several in trainers.values() for trainer in several):
            trainer.end()
    threads = next(iter(trainers.values()))[0].threads
    print(f"\n`{config}`, {threads} threads each, samples/s:\n")
    print("| waiting | alone | beside 1 | beside 2 |\n|---|---|---|---|")
    for name in trainers:
        cells = []
        for beside in range(MOST):
            first, whole = ([which(now) for now in found[name, beside]] for which in (lambda now: now[0], sum))
            cells.append(f"{statistics.median(first):,.0f}" + (f" ({statistics.median(whole):,.0f})" if beside else ""))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--garments", metavar="FOLDER", help="the parquet files of Fashion-MNIST")
    parser.add_argument("--quick", action="store_true", help="one round, 3 seconds each")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each cell (default: 3)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a measurement at least (default: 6)")
    told = "further numbers of spins: variables GOMP_SPINCOUNT"
    parser.add_argument("--spins", type=int, nargs="+", default=[], metavar="N", help=told)
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 3.0
    cores = os.cpu_count()
    print(f"{platform.platform()}, {cores} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        table(*BOARD, [], given, Path(scratch))
        if given.garments:
            table(*GARMENTS, ["--data.source", os.path.abspath(given.garments)], given, Path(scratch))


if __name__ == "__main__":
    main()
