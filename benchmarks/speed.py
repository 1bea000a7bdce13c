"""Time of training steps and of samples: flowimg beside the bare network, other trainers, other checkouts of flowimg.

    python benchmarks/speed.py train CONFIG [--KEY VALUE ...]    a step of `flowimg train`, complete
    python benchmarks/speed.py train CONFIG --flowimg CHECKOUT   a step of this checkout beside a step of that one
    python benchmarks/speed.py sample CONFIG [--KEY VALUE ...]   64 samples by 50 Euler steps, untrained
    python benchmarks/speed.py sample RUN                        64 samples of a run; how bf16 changes them

A training step is measured in a normal run, from the end of one optimiser step to the next: data, clipping, averages,
metrics and progress lines included; with --compile also compiled in those ways. It is compared with the floor: forward,
backward and torch's fused AdamW of the same network as diffusers has it (for points: flowimg's network), on one fixed
batch, in the run's precision and in fp32, the default of diffusers', torchcfm's and Meta's trainers (on a GPU their
convolutions are in TF32, and Meta's trainer is in fp16). For points there are also loops as one writes them in torch,
which draw points, noise and times at every step. With a checkout of a trainer (--torchcfm, --meta, --diffusers PATH)
its own loop is measured on the same network and the same PNGs. All of them are processes that take turns, forwards and
backwards (A B, B A, ...), --pairs times (6) after one round that does not count; a turn has as many steps as take
flowimg about --seconds (6). Reported: median, minimum and maximum.

Another checkout of flowimg (--flowimg, one or more) is run by its command line only, so its files may lie elsewhere;
floors and loops on points are left out then. Reported besides: the ratio of the times of a step, the median over pairs
with its 95 % interval, and whether the difference is beyond the noise. Two processes of the same code can differ by 1 %
or more for as long as they live: give this checkout too (--flowimg OLD .), as a control, and repeat the comparison.

The run must outlast the benchmark, and should not draw or save meanwhile: --figures false --train.steps 1000000
--train.sample-every 1000000 --train.checkpoint-every 1000000.

A sample is compared with 50 forward passes. Run this on a machine that does nothing else.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from steps import LEVERS, Stock, stock
from torch import Tensor
from turns import CHECKOUT, Trainer, checkout_of, compared, environment_of, flowimg_command

from flowimg.build.data import build_source
from flowimg.build.field import build_field
from flowimg.data.batches import ImageBatches
from flowimg.fields.stock import architecture
from flowimg.fields.unet import UNetField
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import EULER
from flowimg.flow.times import uniform_grid
from flowimg.jobs.train.metrics import NO_PEAK
from flowimg.machine.device import keep_memory, pick_device
from flowimg.machine.precision import autocast, settle_precision
from flowimg.machine.throughput import pass_flops, product_flops
from flowimg.runs.opening import open_run
from flowimg.sampling.sampler import Sampler
from flowimg.settings.command import run_settings
from flowimg.settings.run import Config
from flowimg.spaces.pixels import Pixels

STEPS, SAMPLES = 50, 64
WRITTEN = 10_000
"""Pictures that are written for the others, who go on drawing samples after an epoch, which would be timed."""
OTHER = "checkout "
"""Rows of other checkouts of flowimg start with this."""
MOST = 40_000 if torch.cuda.is_available() else WRITTEN
"""Files of them that there are."""
BUDGET = 51_200_000
"""Pictures that torchcfm's recipe for CIFAR-10 sees: 400,000 steps of 128."""


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
    peers = {"torchcfm": given.torchcfm, "Meta": given.meta, "diffusers": given.diffusers}
    peers = {name: os.path.abspath(path) for name, path in peers.items() if path}
    if peers:
        args = [*args, "--data.labels", "false", "--grid.guidance", "1", "--data.source", str(scratch / "pictures")]
        write_pictures(config, scratch / "pictures")
    precision = settle_precision(config.train.precision, config.field.fast_in_bf16)
    trainers = {
        **flowimg_trainers(args, given, precision, scratch),
        **other_trainers(args, config, given, precision, peers, scratch),
    }
    names = list(trainers)
    for warm_up in (Trainer.seconds, lambda trainer: trainer.turn(3)):  # of graphs, the second step is recorded
        for name in list(trainers):
            attempt(trainers, name, warm_up)
    if names[0] not in trainers:
        raise SystemExit(f"{names[0]} ended, whose steps say how many a turn has")
    steps = max(2, round(given.seconds / trainers[names[0]].turn(2)))
    if peers:
        steps = min(steps, MOST // config.train.batch_size // (given.pairs + 2) - 1)
        if steps < 1:
            raise SystemExit(f"{MOST:,} pictures are too few for {given.pairs} pairs of batches of so many: lower one")
    rounds: list[dict[str, float]] = []
    for pair in range(given.pairs + 1):
        order = list(trainers) if pair % 2 else list(reversed(trainers))
        now = {name: attempt(trainers, name, lambda trainer: trainer.turn(steps)) for name in order}
        rounds.append(now)
        milliseconds = ", ".join(f"{1000 * now[name]:.1f}" for name in names if name in now)
        print(f"{pair} of {given.pairs} pairs, {steps} steps each, ms: {milliseconds}", file=sys.stderr, flush=True)
    if lost := [name for name in names if name not in trainers]:
        print(f"without {'; '.join(lost)}, which ended: see the errors")
    for trainer in trainers.values():
        trainer.end()
    found = {name: [now[name] for now in rounds[1:]] for name in trainers}
    print_throughput(config, precision, trainers, found)
    return found


def attempt(trainers: dict[str, Trainer], name: str, what: Callable[[Trainer], float]) -> float:
    """What this trainer answers; NaN where its process ended, which is reported, and the others continue without it."""
    try:
        return what(trainers[name])
    except ChildProcessError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        trainers.pop(name).end()
        return math.nan


def print_throughput(
    config: Config, precision: str, trainers: dict[str, Trainer], found: dict[str, list[float]]
) -> None:
    """Memory, threads and samples a second of each, and what these are of the speed of matrix products."""
    most, form, device = 0.0, "bf16" if precision == "bf16" else "fp32", pick_device()
    if device.type not in NO_PEAK:
        needed = pass_flops(stock(config).eval(), build_source(config).facts.shape)
        most = product_flops(device, torch.bfloat16 if form == "bf16" else torch.float32) / needed
    for name, trainer in trainers.items():
        speed = config.train.batch_size / statistics.median(found[name])
        share = f"{100 * speed / most:3.0f} % of the speed of matrix products in {form}, " if most else ""
        print(
            f"{name:<28} {trainer.mib:>7,} MiB at most, {trainer.threads} threads, {speed:8,.1f} samples/s, {share}"
            f"{BUDGET / speed / 3600:,.1f} h for {BUDGET / 1e6:.1f} M pictures"
        )


def flowimg_trainers(args: list[str], given: argparse.Namespace, precision: str, scratch: Path) -> dict[str, Trainer]:
    """Processes of `flowimg train`: this checkout, compiled in other ways, and other checkouts."""
    told = {f"flowimg, {precision}": (CHECKOUT, args)}
    for way in given.compile:
        told[f"flowimg, {precision}, compile {way}"] = (CHECKOUT, [*args, "--train.compile", way])
    for path in given.flowimg:
        told[f"{OTHER}{path}"] = (checkout_of(path), args)
    trainers = {}
    for number, (name, (checkout, asked)) in enumerate(told.items()):
        command = flowimg_command("steps", [*asked, "--run", str(scratch / f"run_{number}")])
        trainers[name] = Trainer(command, environment_of(checkout), scratch / f"run_{number}.txt")
    return trainers


def other_trainers(
    args: list[str], config: Config, given: argparse.Namespace, precision: str, peers: dict[str, str], scratch: Path
) -> dict[str, Trainer]:
    """Processes of steps.py: floors, loops on points, and the loops of other projects, from their checkouts."""
    told: dict[str, dict[str, Any]] = {}
    for form in () if given.flowimg else dict.fromkeys((precision, "fp32")):
        told[f"floor, {form}"] = {"name": "floor", "precision": form}
    for levers in given.levers:
        told[f"{precision}, {levers}"] = {"name": "floor", "precision": precision, "levers": levers.split("+")}
    if config.data.kind == "points" and not given.flowimg:
        told["bare loop, fused AdamW"] = {"name": "bare loop", "fused": True}
        told["bare loop, AdamW"] = {"name": "bare loop", "fused": False}
    for name, checkout in peers.items():
        told[name] = {"name": name, "checkout": checkout, "pictures": str(scratch / "pictures")}
    trainers = {}
    for number, (name, how) in enumerate(told.items()):
        own = scratch / f"other_{number}"
        own.mkdir()
        how |= {"args": [*args, "--run", str(own / "run")], "scratch": str(own)}
        command = [str(Path(__file__).with_name("steps.py")), json.dumps(how)]
        trainers[name] = Trainer(command, environment_of(CHECKOUT, safe=False), own.with_suffix(".txt"))
    return trainers


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
        bare = Stock(architecture(field.unet)).to(device).eval()
        bare.unet.load_state_dict(field.unet.state_dict())
    x, t = torch.randn(SAMPLES, *facts.shape, device=device), torch.rand(SAMPLES, device=device)
    cond = Condition(torch.arange(SAMPLES) % len(facts.classes) if facts.classes else None)
    given = cond.to(device)

    def pictures(steps: int) -> Tensor:
        sampler = Sampler(field, facts.shape, EULER, uniform_grid(steps), device, SAMPLES)
        return sampler.draw(range(SAMPLES), cond).x_1

    precision = settle_precision("auto", config.field.fast_in_bf16)
    found: dict[str, list[float]] = {}
    seen: dict[str, Tensor] = {}
    for pair in range(pairs + 1):
        for form in dict.fromkeys((precision, "fp32")):
            # of what takes minutes a part: of fp32 where no pictures are compared, and of the forwards, which are alike
            steps = STEPS if (pair and form == precision) or (trained and not pair) else 5
            with autocast(device, form):
                if not pair:
                    seen[form] = Pixels(facts.shape).decode(pictures(steps)).float()
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=["train", "sample"])
    parser.add_argument("config", help="a settings file, or a run's folder to sample")
    told = "other checkouts of flowimg, whose steps take turns with this one's on the same settings"
    parser.add_argument("--flowimg", nargs="+", default=[], metavar="CHECKOUT", help=told)
    for name in ("torchcfm", "meta", "diffusers"):
        parser.add_argument(f"--{name}", metavar="PATH", help="a checkout whose trainer is measured too")
    told = f"also measure floors with these, joined as in compiled+graphs: {', '.join(LEVERS)}"
    parser.add_argument("--levers", nargs="+", default=[], metavar="LEVERS", help=told)
    told = "also measure flowimg with each of these as train.compile: false true graphs"
    parser.add_argument("--compile", nargs="+", default=[], metavar="WAY", help=told)
    parser.add_argument("--pairs", type=int, default=6, help="turns of each (default: 6)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of flowimg's steps, per turn (default: 6)")
    given, more = parser.parse_known_args()
    if given.flowimg and given.what == "sample":
        parser.error("--flowimg compares training steps: use it with train")
    for asked in (set(levers.split("+")) for levers in given.levers):
        if not asked <= {*LEVERS} or (asked & {"layout", "graphs"} and "compiled" not in asked):
            parser.error(f"--levers are of {', '.join(LEVERS)}; layout and graphs are of what is compiled")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        args = [os.path.abspath(given.config), *more]
        if given.what == "sample" and not Path(args[0]).is_dir():
            args += ["--run", f"{scratch}/run"]
        config = run_settings("train", args)
        found = training(args, config, given, Path(scratch)) if given.what == "train" else sampling(config, given.pairs)
    print_times(found)


def print_times(found: dict[str, list[float]]) -> None:
    """A table of milliseconds with their ratios, pair by pair, and how other checkouts of flowimg compare."""
    ours = [name for name in found if name.startswith("flowimg")] or list(found)[:1]
    print(f"\n{'':<28} {'ms':>9} {'min':>9} {'max':>9}   {'; '.join(ours)}: this many times as fast")
    for name, seconds in found.items():
        told = []
        for base in ours:
            ratios = [theirs / own for own, theirs in zip(found[base], seconds, strict=True)]
            told.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        values = [1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds))]
        print(f"{name:<28} {values[0]:9.1f} {values[1]:9.1f} {values[2]:9.1f}   {'; '.join(told)}")
    for name in found:
        if name.startswith(OTHER) and ours[0].startswith("flowimg"):
            print(f"\na step of {ours[0]}, beside {name}: {compared(found[ours[0]], found[name])}")


if __name__ == "__main__":
    main()
