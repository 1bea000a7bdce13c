"""Training steps and samples beside the floor: what the network alone costs, on data that is there.

    python benchmarks/speed.py train CONFIG [--KEY VALUE ...]    a step of `flowimg train`, everything on
    python benchmarks/speed.py sample CONFIG [--KEY VALUE ...]   50 Euler steps of 64 samples, untrained
    python benchmarks/speed.py sample RUN                        the same of a run, and how bf16 changes the pictures

A training step is measured in a run as users start it, from the end of one to the end of the next, with its data,
clipping, averages, metrics and bars. Its floors are forward, backward and torch's fused AdamW of the same network as
diffusers has it (for points, of ours), on one batch that stays: in the run's precision, and in fp32, which is what
diffusers', torchcfm's and Meta's trainers do unless they are told otherwise. Of points there is a loop too, as one
writes it down: it draws points, noise and times afresh. In turn, PAIRS times after one that is
not counted, as many steps of each as take about SECONDS; medians, with the least and the most. Sampling is beside 50
forward passes. Needs a machine with nothing else to do.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flowimg.training.loop as loop
from flowimg.cli import run_settings
from flowimg.config import Config
from flowimg.data.batches import PointBatches
from flowimg.data.toys import Toy
from flowimg.fields.mlp import class_rows
from flowimg.fields.unet import UNetField, empty_unet
from flowimg.flow.solvers import EULER
from flowimg.flow.times import uniform_grid
from flowimg.jobs.build import DataFacts, build_field, build_source
from flowimg.jobs.folder import open_run
from flowimg.jobs.machine import autocast, keep_memory, pick_device, settle_precision
from flowimg.jobs.train import train
from flowimg.sampling.generate import generate, to_uint8

PAIRS, SECONDS = 12, 2.0
STEPS, SAMPLES = 50, 64


class Enough(Exception):
    """All pairs are measured."""


class Stock(nn.Module):
    """The network of a field and its weights, its modules as diffusers has them."""

    def __init__(self, field: UNetField) -> None:
        super().__init__()
        self.unet = empty_unet(field.architecture()).to(next(field.parameters()).device)
        self.unet.load_state_dict(field.unet.state_dict())
        self.num_classes = field.num_classes

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        rows = class_rows(labels, len(x), self.num_classes, x.device) if self.num_classes else None
        return -self.unet(x, 1000 * (1 - t), class_labels=rows).sample


def stock(field: nn.Module, config: Config, facts: DataFacts) -> nn.Module:
    """What is stepped without flowimg; for points it is our own network, as nothing else has it."""
    # a copy of the field would keep the autocast that accelerate put around its forward
    bare = Stock(field) if isinstance(field, UNetField) else build_field(config, facts)
    return bare.to(next(field.parameters()).device)


def bare_step(field: nn.Module, x: Tensor, labels: Tensor | None, precision: str) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(field.parameters(), lr=1e-4, fused=True)
    t, target = torch.rand(len(x), device=x.device), torch.randn_like(x)

    def step() -> None:
        with autocast(x.device, precision):
            out = field(x, t, labels)
        (out.float() - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_loop(field: nn.Module, toy: Toy, count: int) -> Callable[[], None]:
    """A step of flow matching on points in plain torch."""
    optimizer = torch.optim.AdamW(field.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        x_1, x_0, t = toy.sample(torch.rand(count, 3)), torch.randn(count, 2), torch.rand(count)
        x_t = (1 - t[:, None]) * x_0 + t[:, None] * x_1
        loss = (field(x_t, t, None) - (x_1 - x_0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def timed(work: Callable[[], Any], times: int = 1) -> float:
    """Seconds of one, of so many."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


class Beside:
    """In place of `train_step`: its steps as they are, and after each so many of them, as many of the floors."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.precision = settle_precision(config.train.precision, config)
        self.step = loop.train_step
        self.floors: dict[str, Callable[[], None]] = {}
        self.found: dict[str, list[float]] = {}
        self.done, self.of, self.began = 0, 1, 0.0

    def __call__(self, state: Any, wanted: int = 0) -> None:
        if not self.floors:
            self._begin(state)
        elif self.done == self.of:
            self._compare(state)
        self.step(state, wanted)
        self.done += 1

    def _begin(self, state: Any) -> None:
        facts = build_source(self.config).facts
        draw = state.objective.draw(state.data, state.step, state.micro_batches()[0])
        for precision in dict.fromkeys((self.precision, "fp32")):
            field = stock(state.field, self.config, facts).train()
            self.floors[f"floor, {precision}"] = bare_step(field, draw.x_1, draw.cond, precision)
        if isinstance(state.data, PointBatches):
            field = stock(state.field, self.config, facts).train()
            self.floors["bare loop, fp32"] = bare_loop(field, state.data.toy, len(draw.x_1))
        self.began = time.perf_counter()

    def _compare(self, state: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ours = (time.perf_counter() - self.began) / self.done
        first = self.of == 1  # of the first pair no more than the pace is learned
        now = {f"flowimg, {self.precision}": ours, **{name: timed(f, self.done) for name, f in self.floors.items()}}
        if first:
            self.of = max(2, round(SECONDS / timed(self.floors[f"floor, {self.precision}"], 2)))
        else:
            for name, seconds in now.items():
                self.found.setdefault(name, []).append(seconds)
        if len(self.found.get("floor, fp32", [])) > PAIRS:
            raise Enough
        self.done, self.began = 0, time.perf_counter()


def training(config: Config) -> dict[str, list[float]]:
    """Seconds a step, by what was stepped."""
    beside = Beside(config)
    loop.train_step = beside
    with suppress(Enough):
        train(config)
    return {name: seconds[1:] for name, seconds in beside.found.items()}


@torch.no_grad()
def sampling(config: Config) -> dict[str, list[float]]:
    """Seconds for all samples, by what drew them."""
    keep_memory()
    device = pick_device()
    if trained := Path(str(config.run)).is_dir():
        run = open_run(str(config.run), "ema", None, device)
        field, facts = run.field, run.facts
    else:
        facts = build_source(config).facts
        field = build_field(config, facts).to(device).eval()
    bare = stock(field, config, facts).eval()
    x, t = torch.randn(SAMPLES, *facts.shape, device=device), torch.rand(SAMPLES, device=device)
    labels = torch.arange(SAMPLES) % len(facts.classes) if facts.classes else None
    given = None if labels is None else labels.to(device)

    def pictures(steps: int) -> Tensor:
        drawn = generate(field, range(SAMPLES), facts.shape, uniform_grid(steps), EULER, labels, SAMPLES, device)
        return torch.cat([part.x_1.float() for part in drawn])

    precision = settle_precision("auto", config)
    found: dict[str, list[float]] = {}
    seen: dict[str, Tensor] = {}
    for pair in range(PAIRS + 1):
        for form in dict.fromkeys((precision, "fp32")):
            steps = STEPS if form == precision or not pair else 5  # of fp32, which takes minutes, a tenth but once
            with autocast(device, form):
                if not pair:
                    seen[form] = to_uint8(pictures(steps)).float()
                    bare(x, t, given)
                    continue
                now = {f"flowimg, {form}": timed(lambda steps=steps: pictures(steps)) * STEPS / steps}  # type: ignore[misc]
                now[f"{STEPS} forwards, {form}"] = timed(lambda: bare(x, t, given), steps) * STEPS
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
    if len(sys.argv) < 3 or sys.argv[1] not in ("train", "sample"):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        args = [os.path.abspath(sys.argv[2]), *sys.argv[3:]]
        if not Path(args[0]).is_dir():
            args += ["--run", f"{folder}/run"]
        config = run_settings("train", args)
        found = (training if sys.argv[1] == "train" else sampling)(config)
    first = next(iter(found.values()))
    print(f"\n{'':<20} {'ms':>9} {'least':>9} {'most':>9}   flowimg is so many times as fast")
    for name, seconds in found.items():
        ratios = [theirs / ours for ours, theirs in zip(first, seconds, strict=True)]
        told = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        values = [1000 * value for value in (statistics.median(seconds), min(seconds), max(seconds))]
        print(f"{name:<20} {values[0]:9.1f} {values[1]:9.1f} {values[2]:9.1f}   {told}")


if __name__ == "__main__":
    main()
