"""Training steps and samples beside the floor: what the network alone costs, on data that is there.

    python benchmarks/speed.py train CONFIG [--KEY VALUE ...]    a step of `flowimg train`, everything on
    python benchmarks/speed.py sample CONFIG [--KEY VALUE ...]   50 Euler steps of 64 samples, untrained
    python benchmarks/speed.py sample RUN                        the same of a run, and how bf16 changes the pictures

A training step is measured in a run as users start it, from the end of one to the end of the next, with its data,
clipping, averages, metrics and lines of progress; with --compile in others too, compiled in those ways. Its floors are
forward, backward and torch's fused AdamW of the same network as diffusers has it (for points, of ours), on one batch
that stays: in the run's precision, and in fp32, which is what diffusers', torchcfm's and Meta's trainers do unless they
are told otherwise (on a GPU their convolutions are in TF32, and Meta's trainer is in fp16). Of points there are loops
too, as one writes them down: they draw points, noise and times afresh. With checkouts of trainers (--torchcfm, --meta,
--diffusers PATH) their own loops are steps beside ours, on the same network and the same PNGs. In turn, --pairs times
(6) after one that is not counted, as many steps of each as take the floor about --seconds (6); medians, with the least
and the most. Lines of metrics are within what is measured as often as --train.log-every says.
Sampling is beside 50 forward passes. Needs a machine with nothing else to do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from steps import LEVERS, Stock, stock
from torch import Tensor

from flowimg.cli import run_settings
from flowimg.settings.run import Config
from flowimg.data.batches import ImageBatches
from flowimg.fields.unet import UNetField
from flowimg.flow.solvers import EULER
from flowimg.flow.times import uniform_grid
from flowimg.build.data import build_source
from flowimg.build.field import build_field
from flowimg.runs.opening import open_run
from flowimg.machine.device import keep_memory, pick_device
from flowimg.machine.precision import autocast, settle_precision
from flowimg.machine.throughput import pass_flops, product_flops
from flowimg.sampling.sampler import generate, to_uint8

STEPS, SAMPLES = 50, 64
WRITTEN = 10_000
"""Pictures that are written for the others, who go on drawing samples after an epoch, which would be timed."""
MOST = 40_000 if torch.cuda.is_available() else WRITTEN
"""Files of them that there are."""
BUDGET = 51_200_000
"""Pictures that torchcfm's recipe for CIFAR-10 sees: 400,000 steps of 128."""


class Trainer:
    """A process of steps.py that waits for its turns."""

    def __init__(self, told: dict[str, Any], log: Path) -> None:
        asked, heard = os.pipe(), os.pipe()
        self.log = log
        self.asked = os.fdopen(asked[1], "w", buffering=1)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("steps.py")), json.dumps(told)],
            env={**os.environ, "TURNS": f"{asked[0]} {heard[1]}"},
            pass_fds=(asked[0], heard[1]), stdout=log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(asked[0])
        os.close(heard[1])
        self.heard = os.fdopen(heard[0])
        self.ask(1)  # it gets ready beside the others, and takes its first step

    def ask(self, steps: int) -> None:
        """Let it go on for so many steps."""
        with suppress(BrokenPipeError):  # it ended, which is seen where it is heard
            print(steps, file=self.asked)

    def seconds(self) -> float:
        """Of the steps that were asked for last; waits for them.

        Raises:
            ChildProcessError: If it ended; with the last lines that it wrote.
        """
        line = self.heard.readline()
        if not line:
            raise ChildProcessError("it ended:\n" + "".join(self.log.read_text().splitlines(keepends=True)[-25:]))
        seconds, mib = line.split()
        self.mib = int(mib)  # in use at most so far
        return float(seconds)


def timed(work: Callable[[], Any], times: int = 1) -> float:
    """Seconds of one, of so many."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def training(args: list[str], config: Config, given: argparse.Namespace, scratch: Path) -> dict[str, list[float]]:
    """Seconds a step, by what was stepped."""
    checkouts = {"torchcfm": given.torchcfm, "Meta": given.meta, "diffusers": given.diffusers}
    checkouts = {name: os.path.abspath(path) for name, path in checkouts.items() if path}
    if checkouts:
        args = [*args, "--data.labels", "false", "--grid.guidance", "1", "--data.source", str(scratch / "pictures")]
        write_pictures(config, scratch / "pictures")
    precision = settle_precision(config.train.precision, config)
    told: dict[str, dict[str, Any]] = {f"flowimg, {precision}": {"name": "flowimg"}}
    for way in given.compile:
        told[f"flowimg, {precision}, compile {way}"] = {"name": "flowimg", "args": [*args, "--train.compile", way]}
    for form in dict.fromkeys((precision, "fp32")):
        told[f"floor, {form}"] = {"name": "floor", "precision": form}
    for levers in given.levers:
        told[f"{precision}, {levers}"] = {"name": "floor", "precision": precision, "levers": levers.split("+")}
    if config.data.kind == "points":
        told["bare loop, fused AdamW"] = {"name": "bare loop", "fused": True}
        told["bare loop, AdamW"] = {"name": "bare loop", "fused": False}
    for name, checkout in checkouts.items():
        told[name] = {"name": name, "checkout": checkout, "pictures": str(scratch / "pictures")}
    trainers: dict[str, Trainer] = {}
    for number, (name, how) in enumerate(told.items()):
        own = scratch / str(number)
        own.mkdir()
        asked = [*how.get("args", args), "--run", str(own / "run")]
        trainers[name] = Trainer({**how, "args": asked, "scratch": str(own)}, scratch / f"{number}.txt")
    for name, trainer in list(trainers.items()):  # once all are ready, nothing else runs
        try:
            trainer.seconds()
            turn(trainer, 3)  # of graphs, the second step is recorded
        except ChildProcessError as error:  # the others are worth something without it
            if name == f"floor, {precision}":  # which says how many steps a turn has
                raise SystemExit(f"{name}: {error}") from None
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            del trainers[name]
    steps = max(2, round(given.seconds / turn(trainers[f"floor, {precision}"], 2)))
    if checkouts:
        steps = min(steps, MOST // config.train.batch_size // (given.pairs + 2) - 1)
        if steps < 1:
            raise SystemExit(f"{MOST:,} pictures are too few for {given.pairs} pairs of batches of so many: lower one")
    found: dict[str, list[float]] = {name: [] for name in trainers}
    for pair in range(given.pairs + 1):
        now = {}
        for name, trainer in list(trainers.items()):
            try:
                now[name] = turn(trainer, steps)
            except ChildProcessError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                del trainers[name], found[name]
        for name, seconds in now.items() if pair else ():
            found[name].append(seconds)
        milliseconds = ", ".join(f"{1000 * seconds:.1f}" for seconds in now.values())
        print(f"{pair} of {given.pairs} pairs, {steps} steps each, ms: {milliseconds}", file=sys.stderr, flush=True)
    if lost := [name for name in told if name not in trainers]:
        print(f"without {'; '.join(lost)}, which ended, as told among the errors")
    for trainer in trainers.values():
        trainer.process.kill()
        trainer.process.wait()
    needed = pass_flops(stock(config).eval(), build_source(config).facts.shape)
    form, dtype = ("bf16", torch.bfloat16) if precision == "bf16" else ("fp32", torch.float32)
    most = product_flops(pick_device(), dtype) / needed
    for name, trainer in trainers.items():
        speed = config.train.batch_size / statistics.median(found[name])
        print(
            f"{name:<28} {trainer.mib:>7,} MiB at most, {speed:8,.1f} samples/s, {100 * speed / most:3.0f} % of "
            f"the speed of matrix products in {form}, {BUDGET / speed / 3600:,.1f} h for {BUDGET / 1e6:.1f} M pictures"
        )
    return found


def turn(trainer: Trainer, steps: int) -> float:
    """Seconds a step, of so many."""
    trainer.ask(steps)
    return trainer.seconds() / steps


def write_pictures(config: Config, folder: Path) -> None:
    """Pictures of a set as the field sees them, in colour, over and over: PNGs, as others want them."""
    batches = build_source(config).load(torch.device("cpu"))
    if not isinstance(batches, ImageBatches):
        raise SystemExit("other trainers need pictures that are not streamed")
    (folder / "all").mkdir(parents=True)
    for number in range(MOST):
        file = folder / "all" / f"{number:05d}.png"
        if number >= WRITTEN:
            os.link(folder / "all" / f"{number % WRITTEN:05d}.png", file)
            continue
        picture = batches.images.pixels[number % len(batches.images.pixels)]
        Image.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).numpy()).save(file, compress_level=1)


@torch.no_grad()
def sampling(config: Config, pairs: int) -> dict[str, list[float]]:
    """Seconds for all samples, by what drew them."""
    keep_memory()
    device = pick_device()
    if trained := Path(str(config.run)).is_dir():
        run = open_run(str(config.run), "ema", None, device)
        field, facts = run.field, run.facts
    else:
        facts = build_source(config).facts
        field = build_field(config, facts).to(device).eval()
    bare = field
    if isinstance(field, UNetField):
        bare = Stock(field.architecture()).to(device).eval()
        bare.unet.load_state_dict(field.unet.state_dict())
    x, t = torch.randn(SAMPLES, *facts.shape, device=device), torch.rand(SAMPLES, device=device)
    labels = torch.arange(SAMPLES) % len(facts.classes) if facts.classes else None
    given = None if labels is None else labels.to(device)

    def pictures(steps: int) -> Tensor:
        drawn = generate(field, range(SAMPLES), facts.shape, uniform_grid(steps), EULER, labels, SAMPLES, device)
        return torch.cat([part.x_1.float() for part in drawn])

    precision = settle_precision("auto", config)
    found: dict[str, list[float]] = {}
    seen: dict[str, Tensor] = {}
    for pair in range(pairs + 1):
        for form in dict.fromkeys((precision, "fp32")):
            # of what takes minutes a part: of fp32 where no pictures are compared, and of the forwards, which are alike
            steps = STEPS if (pair and form == precision) or (trained and not pair) else 5
            with autocast(device, form):
                if not pair:
                    seen[form] = to_uint8(pictures(steps)).float()
                    bare(x, t, given)
                    continue
                now = {f"flowimg, {form}": timed(lambda steps=steps: pictures(steps)) * STEPS / steps}  # type: ignore[misc]
                now[f"{STEPS} forwards, {form}"] = timed(lambda: bare(x, t, given), 10) * STEPS
            for name, seconds in now.items():
                found.setdefault(name, []).append(seconds)
    if precision != "fp32" and trained:
        error = (seen[precision] - seen["fp32"]).square().mean((1, 2, 3)).clamp(min=1e-3)
        decibels = 10 * torch.log10(255**2 / error)
        print(
            f"{precision} beside fp32: {decibels.median():.1f} dB, of {SAMPLES} pictures at least {decibels.min():.1f}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "sample"])
    parser.add_argument("config", help="a settings file, or a run's folder to sample")
    for name in ("torchcfm", "meta", "diffusers"):
        parser.add_argument(f"--{name}", metavar="PATH", help="a checkout, whose trainer is to be measured too")
    told = f"floors with, as compiled+graphs, any of: {', '.join(LEVERS)}"
    parser.add_argument("--levers", nargs="+", default=[], metavar="LEVERS", help=told)
    told = "flowimg once more, with each of these for train.compile: false true graphs"
    parser.add_argument("--compile", nargs="+", default=[], metavar="WAY", help=told)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0, help="of the floor's steps, at a time")
    given, more = parser.parse_known_args()
    for asked in (set(levers.split("+")) for levers in given.levers):
        if not asked <= {*LEVERS} or (asked & {"layout", "graphs"} and "compiled" not in asked):
            parser.error(f"--levers are of {', '.join(LEVERS)}; layout and graphs are of what is compiled")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        args = [os.path.abspath(given.config), *more]
        if given.what == "sample" and not Path(args[0]).is_dir():
            args += ["--run", f"{scratch}/run"]
        config = run_settings("train", args)
        found = training(args, config, given, Path(scratch)) if given.what == "train" else sampling(config, given.pairs)
    ours = [name for name in found if name.startswith("flowimg")] or list(found)[:1]
    print(f"\n{'':<28} {'ms':>9} {'least':>9} {'most':>9}   {'; '.join(ours)}: so many times as fast")
    for name, seconds in found.items():
        told = []
        for base in ours:
            ratios = [theirs / own for own, theirs in zip(found[base], seconds, strict=True)]
            told.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        values = [1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds))]
        print(f"{name:<28} {values[0]:9.1f} {values[1]:9.1f} {values[2]:9.1f}   {'; '.join(told)}")


if __name__ == "__main__":
    main()
