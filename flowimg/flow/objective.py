"""The one objective: regress the conditional velocity of a path.

    L(v) = E_{x_0, x_1, t} | v(x_t, t, cond) - u_t |^2,    (x_t, u_t) = path(x_0, x_1, t)

Its minimiser is the marginal velocity, whose flow carries noise at t = 0 to data at t = 1. The loss does not go to
zero: the variance of u_t given x_t stays.
Source: Lipman et al. 2023, arXiv:2210.02747, theorem 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow import randomness
from flowimg.flow.couplings import Coupling, whole_blocks
from flowimg.flow.paths import Path
from flowimg.flow.randomness import FEW, LOTS, lot_of
from flowimg.flow.times import TimeDistribution, shift_times, stratify
from flowimg.flow.weightings import Weighting

NO_CLASS = -1
"""The label that stands for "no class": what label drop and unguided calls use."""


class Cond(NamedTuple):
    """What a field is told where pictures are augmented: labels (B,) or None, and numbers (B, N), 0 for "as it is"."""

    labels: Tensor | None
    augment: Tensor


Velocity = Callable[[Tensor, Tensor, Tensor | Cond | None], Tensor]
"""(x, t, cond) -> v: x and v of shape (B, *D), t of shape (B,), cond None, labels of shape (B,), or a `Cond`."""

Data = Callable[[int, range], tuple[Tensor, Tensor | tuple[Tensor | None, Tensor] | None]]
"""(step, places) -> (x_1, labels): the data of a step at those places, on the device it will be used on.

Augmented data come with (labels, numbers) in place of labels.
"""


class Draw(NamedTuple):
    """Everything random in one (micro-)batch: noise, data (B, *D), flow times (B,), and what a field is told.

    To read: what is drawn again may be the same tensors.
    """

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    cond: Tensor | Cond | None


@dataclass(frozen=True)
class Objective:
    """The choices that make a flow-matching problem out of a data set."""

    path: Path
    coupling: Coupling
    times: TimeDistribution
    stratified: bool
    shift: float
    label_drop: float
    batch_size: int
    seed: int
    weighting: Weighting | None = None

    def draw(self, data: Data, step: int, places: range) -> Draw:
        """What the optimiser step sees at these places of its global batch.

        A function of (seed, step, places) and the data alone; consecutive ranges that cover the batch give the same
        rows, bit for bit, whoever asks for them and however they are cut.

        Args:
            data: Gives the data of a step at given places.
            step: Optimiser step, from 0.
            places: Consecutive places within range(batch_size).
        Returns:
            The draw, len(places) rows, on the data's device.
        """
        # couplings pair noise and data within whole blocks
        wide = whole_blocks(places, self.coupling.block, self.batch_size)
        mine = slice(places.start - wide.start, places.stop - wide.start)
        x_1, told = data(step, wide)
        labels, numbers = told if isinstance(told, tuple) else (told, None)
        x_0 = self.coupling(_to(_noise(self.seed, step, wide, x_1.shape[1:]), x_1.device), x_1, labels)
        if len(wide) > len(places):
            x_0, x_1 = x_0[mine], x_1[mine]
            labels, numbers = (None if told is None else told[mine] for told in (labels, numbers))

        lot, how = lot_of(step, len(places)), (self.times, self.shift, self.stratified, self.batch_size, self.seed)
        times = _times if len(lot) > 1 else _times.__wrapped__  # many rows are not kept
        t = _to(times(*how, lot, places)[step - lot.start], x_1.device)
        if labels is not None and self.label_drop > 0:
            dropped = randomness.uniform(self.seed, "label drop", step, places) < self.label_drop
            labels = torch.where(_to(dropped, x_1.device), NO_CLASS, labels)
        return Draw(x_0, x_1, t, labels if numbers is None else Cond(labels, numbers))

    def weighted(self, losses: Tensor, t: Tensor) -> Tensor:
        """What the gradient is taken of, an example: w(t) times its loss, shape (B,)."""
        return losses if self.weighting is None else self.weighting(t) * losses


def _to(drawn: Tensor, device: torch.device) -> Tensor:
    """Random numbers on a device: pinned, or the host would wait for what a GPU still computes before it copies."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def _noise(seed: int, step: int, places: range, shape: tuple[int, ...]) -> Tensor:
    """The noise of a step; of points, that of a lot of steps is made together."""
    lot = lot_of(step, len(places))
    if len(lot) == 1 or math.prod(shape) > FEW:
        return randomness.normal(seed, "noise", step, places, shape)
    return _noises(seed, lot, places, shape)[step - lot.start]


@lru_cache(maxsize=LOTS)
def _noises(seed: int, lot: range, places: range, shape: tuple[int, ...]) -> Tensor:
    """Noise, shape (len(lot), len(places), *shape), the same as of each step by itself."""
    return torch.stack([randomness.normal(seed, "noise", step, places, shape) for step in lot])


@lru_cache(maxsize=LOTS)
def _times(
    times: TimeDistribution, shift: float, stratified: bool, batch_size: int, seed: int, lot: range, places: range
) -> Tensor:
    """Flow times, shape (len(lot), len(places)), the same as of each step by itself."""
    u = torch.stack([randomness.uniform(seed, "time", step, places) for step in lot])
    return shift_times(times(stratify(u, places, batch_size) if stratified else u), shift)


def flow_matching_loss(velocity: Velocity, path: Path, draw: Draw) -> Tensor:
    """The loss of each example, a mean over its dimensions, so that points and pictures are on one scale.

        loss_b = mean_d (v(x_t, t, cond) - u_t)^2

    Args:
        velocity: The field to train.
        path: Gives x_t and u_t.
        draw: Noise, data, times and labels; B rows.
    Returns:
        Loss an example, shape (B,), float32 or better. Reduce it where you can see it.
    """
    x_t, u_t = path.sample(draw.x_0, draw.x_1, draw.t)
    v = velocity(x_t, draw.t, draw.cond)
    return (v - u_t).square().flatten(1).mean(1)
