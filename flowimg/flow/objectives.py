"""What a run minimises: an objective draws what a step sees and gives the loss of each example.

The one there is regresses the conditional velocity of a path:

    L(v) = E_{x_0, x_1, t} | v(x_t, t, cond) - u_t |^2,    (x_t, u_t) = path(x_0, x_1, t)

Its minimiser is the marginal velocity, whose flow carries noise at t = 0 to data at t = 1. The loss does not go to
zero: the variance of u_t given x_t stays (`irreducible`).
Source: Lipman et al. 2023, arXiv:2210.02747, theorem 2.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from flowimg.flow import randomness
from flowimg.flow.condition import Condition, Velocity
from flowimg.flow.couplings import Coupling, whole_blocks
from flowimg.flow.paths import Path
from flowimg.flow.randomness import FEW, LOTS, lot_of
from flowimg.flow.times import TimeDistribution, shift_times, stratify
from flowimg.flow.weightings import Weighting

Data = Callable[[int, range], tuple[Tensor, Condition]]
"""(step, positions) -> (x_1, cond): the data of a step at those positions of its global batch, on their device."""


class Draw(NamedTuple):
    """Everything random in one (micro-)batch: noise, data (B, *D), flow times (B,), and what a field is given.

    To read only: what is drawn again may be the same tensors.
    """

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    cond: Condition

    def rows(self, index: Tensor) -> "Draw":
        """Some rows, in this order."""
        at = index.to(self.t.device)
        return Draw(self.x_0[at], self.x_1[at], self.t[at], self.cond.rows(at))


class Objective(Protocol):
    """What the loop, the search for memory and the metrics ask of an objective.

    `path` is the path that its fields follow; `seed` and `batch_size` are those of the run.
    """

    @property
    def path(self) -> Path: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...

    def draw(self, data: Data, step: int, positions: range) -> Draw:
        """What an optimiser step sees at these positions of its global batch; see `FlowMatching.draw`."""
        ...

    def fixed_draw(self, x_1: Tensor, cond: Condition) -> Draw:
        """Held-out data with noise and times that never change, so that losses compare across steps and runs."""
        ...

    def loss(self, field: Velocity, draw: Draw) -> Tensor:
        """The loss of each example, shape (B,), float32 or better."""
        ...

    def weighted(self, losses: Tensor, draw: Draw) -> Tensor:
        """What the gradient is taken of, an example, shape (B,)."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of its own, which the optimiser moves with those of the field."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """The choices that make a flow-matching problem out of a data set; the first `Objective`."""

    path: Path
    coupling: Coupling
    times: TimeDistribution
    stratified: bool
    shift: float
    drops: tuple[tuple[str, float], ...]
    batch_size: int
    seed: int
    weighting: Weighting | None = None

    def draw(self, data: Data, step: int, positions: range) -> Draw:
        """What the optimiser step sees at these positions of its global batch.

        A function of (seed, step, positions) and the data only; consecutive ranges that cover the batch give the same
        rows, bit for bit, whoever asks for them and however they are cut.

        Args:
            data: Gives the data of a step at given positions.
            step: Optimiser step, from 0.
            positions: Consecutive positions within range(batch_size).

        Returns:
            The draw, len(positions) rows, on the data's device.
        """
        # couplings pair noise and data within whole blocks
        wide = whole_blocks(positions, self.coupling.block, self.batch_size)
        mine = slice(positions.start - wide.start, positions.stop - wide.start)
        x_1, cond = data(step, wide)
        x_0 = self.coupling(_to(_noise(self.seed, step, wide, x_1.shape[1:]), x_1.device), x_1, cond.label)
        if len(wide) > len(positions):
            x_0, x_1, cond = x_0[mine], x_1[mine], cond.rows(mine)

        lot, how = lot_of(step, len(positions)), (self.times, self.shift, self.stratified, self.batch_size, self.seed)
        times = _times if len(lot) > 1 else _times.__wrapped__  # many rows are not kept
        t = _to(times(*how, lot, positions)[step - lot.start], x_1.device)
        for part, share in self.drops:
            if getattr(cond, part) is not None and share > 0:
                dropped = randomness.uniform(self.seed, f"{part} drop", step, positions) < share
                cond = cond.drop(part, _to(dropped, x_1.device))
        return Draw(x_0, x_1, t, cond)

    def fixed_draw(self, x_1: Tensor, cond: Condition) -> Draw:
        """Held-out data with noise and evenly spread times that never change, whatever the seed of the run."""
        positions = range(len(x_1))
        x_0 = randomness.normal(0, "held out noise", 0, positions, tuple(x_1.shape[1:])).to(x_1.device)
        t = stratify(torch.full((len(x_1),), 0.5), positions, len(x_1)).to(x_1.device)
        return Draw(x_0, x_1, t, cond)

    def loss(self, field: Velocity, draw: Draw) -> Tensor:
        """The loss of each example, a mean over its dimensions, so that points and pictures are on one scale.

            loss_b = mean_d (v(x_t, t, cond) - u_t)^2

        Args:
            field: The velocity to train.
            draw: Noise, data, times and condition; B rows.

        Returns:
            Loss an example, shape (B,), float32 or better. Reduce it where you can see it.
        """
        x_t, u_t = self.path.sample(draw.x_0, draw.x_1, draw.t)
        v = field(x_t, draw.t, draw.cond)
        return (v - u_t).square().flatten(1).mean(1)

    def weighted(self, losses: Tensor, draw: Draw) -> Tensor:
        """w(t) times the loss of each example, shape (B,)."""
        return losses if self.weighting is None else self.weighting(draw.t) * losses

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """It has none."""
        return ()


def _to(drawn: Tensor, device: torch.device) -> Tensor:
    """Random numbers on a device: pinned, or the host would wait for what a GPU still computes before it copies."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def _noise(seed: int, step: int, positions: range, shape: tuple[int, ...]) -> Tensor:
    """The noise of a step; of points, that of a lot of steps is made together."""
    lot = lot_of(step, len(positions))
    if len(lot) == 1 or math.prod(shape) > FEW:
        return randomness.normal(seed, "noise", step, positions, shape)
    return _noises(seed, lot, positions, shape)[step - lot.start]


@lru_cache(maxsize=LOTS)
def _noises(seed: int, lot: range, positions: range, shape: tuple[int, ...]) -> Tensor:
    """Noise, shape (len(lot), len(positions), *shape), the same as of each step by itself."""
    return torch.stack([randomness.normal(seed, "noise", step, positions, shape) for step in lot])


@lru_cache(maxsize=LOTS)
def _times(
    times: TimeDistribution, shift: float, stratified: bool, batch_size: int, seed: int, lot: range, positions: range
) -> Tensor:
    """Flow times, shape (len(lot), len(positions)), the same as of each step by itself."""
    u = torch.stack([randomness.uniform(seed, "time", step, positions) for step in lot])
    return shift_times(times(stratify(u, positions, batch_size) if stratified else u), shift)
