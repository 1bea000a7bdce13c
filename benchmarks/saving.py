"""What saving costs `configs/fashion_mnist.yaml`: steps with and without a checkpoint written beside them, interleaved.

python benchmarks/saving.py SOURCE [PAIRS]      SOURCE: a folder with the parquet files of Fashion-MNIST

Prints the time of a block of steps after which a checkpoint begins, over that of a block with none, and what that is
at the cadence of the config.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowimg.build.data import build_source, build_space
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.strategy import strategy_of
from flowimg.jobs.train.launch import cut, open_accelerator, recipe_of
from flowimg.jobs.train.saving import keep_checkpoints
from flowimg.jobs.train.session import Session, Span
from flowimg.runs.folder import RunFolder
from flowimg.runs.signals import StopRequests
from flowimg.runs.status import Status
from flowimg.settings.reading import load, validate
from flowimg.training.loop import train_step, warm_up
from flowimg.training.state import start

BLOCK = 4
"""Steps of a block: a save is over within them."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source")
parser.add_argument("pairs", type=int, nargs="?", default=7)
given = parser.parse_args()
config = load("configs/fashion_mnist.yaml")
values = config.model_dump(mode="json")
values["data"]["source"] = given.source
with tempfile.TemporaryDirectory() as folder:
    config = validate(type(config), {**values, "run": folder}, "benchmark")
    strategy = strategy_of(open_accelerator(config))
    source = build_source(config)
    data = source.load(strategy.device)
    objective, field = build_objective(config), build_field(config, source.facts)
    _, accumulation = cut(config, strategy, field.to(strategy.device), objective, data)
    state = start(strategy, field, objective, data, recipe_of(config, accumulation))
    run = RunFolder(Path(folder))
    requests, space = StopRequests(), build_space(config, source.facts)
    status = Status(run, 1, requests)
    every = config.train.checkpoint_every
    with ThreadPoolExecutor(1) as thread:
        span = Span(1, 10**9)
        session = Session(config, run, source.facts, space, data, strategy, span, requests, status, thread)
        save = keep_checkpoints(session)
        state.wrapped.train()
        warm_up(state)
        taken = {True: [], False: []}
        for _pair in range(given.pairs):
            for saving in (True, False):
                began = time.perf_counter()
                if saving:
                    step, state.step = state.step, every * (state.step // every + 1)  # as if it were due
                    save(state)
                    state.step = step
                for _ in range(BLOCK):
                    train_step(state)
                taken[saving].append(time.perf_counter() - began)
    with_, without = (statistics.median(taken[saving]) for saving in (True, False))
    pairs = [a - b for a, b in zip(taken[True], taken[False], strict=True)]
    cost = statistics.median(pairs)
    print(f"{BLOCK} steps: {without:.3f} s without, {with_:.3f} s with a checkpoint; differences of pairs:")
    print("  " + ", ".join(f"{1000 * pair:.0f}" for pair in pairs) + " ms")
    print(f"a checkpoint costs {1000 * cost:.0f} ms (median), one in {every} steps of {without / BLOCK:.3f} s:")
    print(f"  {100 * cost / (every * without / BLOCK):.3f} % of the time")
