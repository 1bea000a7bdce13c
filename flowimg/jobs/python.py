"""The Python API except for training: build settings, load a run, sample, evaluate. `flowimg.api` exports it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowimg.build.data import build_condition
from flowimg.build.sampler import settle
from flowimg.errors import SettingsError
from flowimg.figures.samples import draw_samples
from flowimg.flow.condition import Condition
from flowimg.jobs.drawing import label_of, sampler_of
from flowimg.jobs.evaluate.run import evaluate
from flowimg.machine.device import pick_device
from flowimg.runs import opening
from flowimg.runs.guides import with_guide
from flowimg.sampling.sampler import seeds_from
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import changed, load, validate
from flowimg.settings.run import Config
from flowimg.settings.verbs import OfWeights, Sample
from flowimg.spaces.space import Space

UNUSED = {"shape", "run", "weights", "step", "out", "format", "compile"}
"""Options of `flowimg sample` that say what to load and what to write."""


def configure(file: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The settings of a YAML file, with changes by dotted keys such as {"train.steps": 300}.

    Raises:
        SettingsError: With one line for each wrong key or value.
    """
    return changed(load(str(file)), dict(changes or {}), "configure")


@dataclass(frozen=True)
class Drawn:
    """Samples `x`, shape (N, *D), in the space of the run ([-1, 1] for images), and their conditions.

    `nfe` is the number of network evaluations per sample.
    """

    x: Tensor
    nfe: int
    cond: Condition
    space: Space

    @property
    def pixels(self) -> np.ndarray:
        """Images as (N, H, W, C), of the type that is stored: uint8 by default; points as (N, 2)."""
        return self.space.rows(self.x).numpy()

    def save(self, path: str | Path) -> None:
        """Write a grid of all images, or a plot of all points, as a PNG file.

        Raises:
            SettingsError: If the grid would have more pixels than programs open.
        """
        draw_samples(self.space, self.x, self.cond, Path(path), "samples")


class Run:
    """A trained run: its settings, and its network on a device.

    `velocity` is the network, an nn.Module (x, t, cond=None) -> v; `classes` are the names of the classes, in order.
    """

    def __init__(self, run: opening.OpenRun, weights: str | float, shape: tuple[int, int] | None = None) -> None:
        self._run, self._weights, self._shape = run, weights, shape
        self.config, self.step, self.space = run.config, run.step, run.space
        self.classes = run.facts.classes
        self.velocity: nn.Module = run.field

    def sample(self, count: int = 64, seed: int = 0, label: int | str | None = None, **how: Any) -> Drawn:
        """Draw samples; sample k has the seed `seed + k`.

        Args:
            count: Number of samples.
            seed: Seed of the first sample.
            label: The name of a class, 3 as well as "3"; by default the classes take turns.
            how: Options of `flowimg sample`: num_steps, solver, times, shift, guidance, precision, ...

        Raises:
            SettingsError: If an option is unknown, out of range or of no use here, or does not fit the run.
        """
        run = self._run
        if unused := sorted(how.keys() & UNUSED):
            raise SettingsError(
                f"sample() takes no {' or '.join(unused)}: load() chooses weights and shape, and no file is written"
            )
        options = {"run": str(run.folder.path), "count": count, "seed": seed, **how}
        settings = settle(validate(Sample, options, "sample"), run.config)
        settings = settings.model_copy(update={"label": label})  # as it is: numbers of NumPy and torch are names, too
        seeds = seeds_from(seed, count)
        cond = build_condition(run.config, run.facts, seeds, label_of(settings, run))
        sampler = sampler_of(with_guide(run, settings.guide), settings, self.velocity, settings.batch_size)
        return Drawn(*sampler.draw(seeds, cond), cond, self.space)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Compare samples with the run's data, print the scores and record them, as `flowimg evaluate` does.

        Args:
            options: Options of `flowimg evaluate`: count, seed, num_steps, features, ...

        Raises:
            SettingsError: If an option is unknown or out of range, or does not fit the run.
        """
        run: dict[str, Any] = {"run": str(self._run.folder.path), "weights": self._weights, "step": self.step}
        run["shape"] = self._shape
        return evaluate(validate(Evaluate, run | options, "evaluate")) or {}


def load_run(
    run: str | Path,
    weights: str | float = "ema",
    step: int | None = None,
    device: torch.device | str | None = None,
    shape: tuple[int, int] | None = None,
) -> Run:
    """Load a run from its folder.

    Args:
        run: The folder.
        weights: "ema", "raw", or the length of a post-hoc average.
        step: The checkpoint of this step; None for the newest.
        device: Where the network goes; None for the GPU if there is one.
        shape: Height and width to draw, of a run with `data.buckets`; None for the one nearest to a square.

    Raises:
        SettingsError: If the folder holds no run, or not these weights, or no pictures of this shape.
        CheckpointError: If there is no whole checkpoint.
    """
    validate(OfWeights, {"run": str(run), "weights": weights, "step": step, "shape": shape}, "load")
    where = pick_device() if device is None else torch.device(device)
    return Run(opening.open_run(str(run), weights, step, where, shape), weights, shape)
