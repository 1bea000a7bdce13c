"""The one way to follow a flow: a velocity, its path, a solver and its times, bound together.

Image k is drawn from its own CPU generator with seed k: the noise of an image does not depend on the batch it is in,
the device or the number of processes, and is the noise diffusers draws from a list of such generators.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.errors import SettingsError
from flowimg.flow.condition import Condition, Velocity
from flowimg.flow.paths import Path
from flowimg.flow.randomness import SEEDS, generator
from flowimg.flow.solvers import LINEAR, Flow, Solver, integrate
from flowimg.sampling.fitting import in_parts


class Samples(NamedTuple):
    """Samples of consecutive seeds, (B, *D), on the CPU, and the evaluations of the network each took."""

    x_1: Tensor
    nfe: int


class Followed(NamedTuple):
    """States at the times asked for, (T, B, *D), float32 on the CPU, and the evaluations each sample took."""

    states: Tensor
    nfe: int


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, shape (len(seeds), *shape); row i depends on seeds[i] only.

    Raises:
        SettingsError: If a seed is not in [0, 2^32).
    """
    check_seeds(seeds)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds of samples that a generator would take for others.

    Raises:
        SettingsError: If one is not in [0, 2^32).
    """
    if wrong := [seed for seed in (min(seeds, default=0), max(seeds, default=0)) if not 0 <= seed < SEEDS]:
        raise SettingsError(
            f"seed {wrong[0]} of a sample is not below 2^32 = {SEEDS}: a generator keeps 32 bits of a seed, so two "
            "seeds would draw the same; give a lower seed, or fewer samples"
        )


def seeds_from(first: int, count: int) -> range:
    """The seeds of `count` samples.

    Raises:
        SettingsError: If the last one is not below 2^32.
    """
    check_seeds([first, first + count - 1])
    return range(first, first + count)


@dataclass(frozen=True)
class Sampler:
    """From seeds and conditions to samples, a batch at a time.

    A batch that memory has no room for is halved, and so are those after it: the samples are the same.

    Args:
        velocity: The field, guided or not, on `device`.
        shape: Shape of a sample, *D.
        solver: The step function.
        times: Solver times from 0 (noise) to 1 (data), shape (N + 1,).
        device: Where the velocity lives.
        batch_size: Samples at once; changes speed and memory, not the samples.
        precision: Gives a context to evaluate the velocity in.
        path: The path that the velocity belongs to; stochastic solvers ask for it.
    """

    velocity: Velocity
    shape: tuple[int, ...]
    solver: Solver
    times: Tensor
    device: torch.device | str = "cpu"
    batch_size: int = 256
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    path: Path = LINEAR

    def samples(self, seeds: Sequence[int], cond: Condition | None = None) -> Iterator[Samples]:
        """Samples of these seeds, a batch at a time, in order.

        Args:
            seeds: One a sample.
            cond: What the field is given, a row a sample; None for null.

        Raises:
            SettingsError: If a seed is not in [0, 2^32), before anything is drawn.
        """
        check_seeds(seeds)

        def batch(mine: slice) -> Samples:
            flow = self._flow(noise(seeds[mine], self.shape), self.times, cond, mine, seeds)
            return Samples(flow.x.cpu(), flow.nfe)

        yield from in_parts(batch, len(seeds), self.batch_size)

    def draw(self, seeds: Sequence[int], cond: Condition | None = None) -> Samples:
        """All samples of these seeds, float32; with a bar on a terminal where it takes several batches."""
        x_1, nfe = [], 0
        quiet = True if len(seeds) <= self.batch_size else None
        with tqdm(total=len(seeds), unit="sample", leave=False, disable=quiet) as progress:
            for batch in self.samples(seeds, cond):
                x_1.append(batch.x_1.float())
                nfe = max(nfe, batch.nfe)
                progress.update(len(batch.x_1))
        return Samples(torch.cat(x_1), nfe)

    def follow(
        self,
        x: Tensor,
        cond: Condition | None = None,
        times: Sequence[float] | None = None,
        back: bool = False,
        seeds: Sequence[int] | None = None,
        hook: Callable[[slice, Tensor, float], Tensor] | None = None,
    ) -> Followed:
        """The states on the way from x, on straight lines between the times that the solver visits.

        Args:
            x: Noise or, on the way back, data; shape (B, *D).
            cond: What the field is given, a row a sample; None for null.
            times: Flow times wanted, rising; an adaptive solver visits them besides its own. By default the ends.
            back: From data to noise; the states are still in the order of `times`, turned around.
            seeds: One a sample, for stochastic solvers; by default the rows' numbers.
            hook: (rows, x, t) -> x after every solver step: it may replace the state. The sampler's times may then
                turn back, where the solver allows it.
        """
        seeds = range(len(x)) if seeds is None else seeds
        visited = torch.tensor(times) if times is not None and self.solver.adaptive else self.times
        ends = times is None or tuple(times) == (0.0, 1.0) == (float(visited[0]), float(visited[-1]))

        def batch(mine: slice) -> Followed:
            way, stepped = visited.flip(0) if back else visited, partial(hook, mine) if hook else None
            options = {"trajectory": not ends, "hook": stepped, "turns": hook is not None}
            flow = self._flow(x[mine], way, cond, mine, seeds, **options)
            if times is None or flow.trajectory is None:
                states = torch.stack([x[mine].to(flow.x), flow.x]).float()
            else:
                trajectory = flow.trajectory.float()
                states = at_times(trajectory.flip(0) if back else trajectory, visited, times)
                states = states.flip(0) if back else states
            return Followed(states.cpu(), flow.nfe)

        parts = list(in_parts(batch, len(x), self.batch_size))
        return Followed(torch.cat([part.states for part in parts], dim=1), max(part.nfe for part in parts))

    @torch.no_grad()
    def _flow(
        self, x: Tensor, times: Tensor, cond: Condition | None, mine: slice, seeds: Sequence[int], **options: Any
    ) -> Flow:
        """The flow of the rows `mine`, which start from x; `options` are those of `integrate`."""
        given, shaken = (cond or Condition()).rows(mine).to(self.device), self._noise(seeds[mine])
        x = x.to(self.device)
        with self.precision():
            return integrate(self.velocity, x, times, self.solver, given, path=self.path, noise=shaken, **options)

    def _noise(self, seeds: Sequence[int]) -> Callable[[int, Tensor], Tensor]:
        """Noise of a stochastic solver's step: of a sample a function of its seed and the step."""

        def draw(step: int, x: Tensor) -> Tensor:
            rows = [torch.randn(self.shape, generator=generator("solver", seed, step)) for seed in seeds]
            return torch.stack(rows).to(x)

        return draw


def at_times(states: Tensor, visited: Tensor, times: Sequence[float]) -> Tensor:
    """States at these times, from those at the times visited, (T, B, *D), by straight lines between them."""
    grid = visited.double()
    wanted = torch.tensor(times, dtype=torch.float64).clamp(float(grid[0]), float(grid[-1]))
    right = torch.searchsorted(grid, wanted).clamp(1, len(grid) - 1)
    part = ((wanted - grid[right - 1]) / (grid[right] - grid[right - 1])).to(states)
    return torch.lerp(states[right - 1], states[right], part.reshape(-1, *[1] * (states.ndim - 1)))


def arc(a: Tensor, b: Tensor, count: int) -> Tensor:
    """The noises on the arc from a to b, both included, shape (count, *D).

        x(s) = (sin((1 - s) w) a + sin(s w) b) / sin(w),    w the angle between a and b

    On the straight line half way noise would have variance 1/2, which the field has never seen at t = 0.
    Source: Shoemake 1985, Animating rotation with quaternion curves (slerp).

    Args:
        a: Noise, shape (*D).
        b: Noise, shape (*D), not parallel to a.
        count: How many, 2 or more.
    """
    s = torch.linspace(0, 1, count, dtype=torch.float64).reshape(-1, *[1] * a.ndim)
    x, y = a.double(), b.double()
    w = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
    return ((torch.sin((1 - s) * w) * x + torch.sin(s * w) * y) / torch.sin(w)).float()
