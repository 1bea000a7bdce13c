"""From seeds to samples.

Image k is drawn from its own CPU generator with seed k: the noise of an image does not depend on the batch it is in,
the device or the number of processes, and is the noise diffusers draws from a list of such generators.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.objective import Velocity
from flowimg.flow.solvers import Solver, integrate
from flowimg.sampling.fitting import in_parts


class Samples(NamedTuple):
    """Samples of consecutive seeds, (B, *D), on the CPU, and the evaluations of the network each took."""

    x_1: Tensor
    nfe: int


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, shape (len(seeds), *shape); row i depends on seeds[i] alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def generate(
    velocity: Velocity,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    times: Tensor,
    solver: Solver,
    labels: Tensor | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Iterator[Samples]:
    """Samples of these seeds, a batch at a time.

    A batch that memory has no room for is halved, and so are those after it: the samples are the same.

    Args:
        velocity: The field, guided or not, on `device`.
        seeds: One a sample.
        shape: Shape of a sample, *D.
        times: Solver times from 0 (noise) to 1 (data), shape (N + 1,).
        solver: The step function.
        labels: The class of each sample, shape (len(seeds),), or None.
        batch_size: Samples at once; changes speed and memory, not the samples.
        device: Where the velocity lives.
    Yields:
        Batches in the order of the seeds.
    """

    def batch(mine: slice) -> Samples:
        x_0 = noise(seeds[mine], shape).to(device)
        cond = None if labels is None else labels[mine].to(device)
        flow = integrate(velocity, x_0, times, solver, cond)
        return Samples(flow.x.cpu(), flow.nfe)

    yield from in_parts(batch, len(seeds), batch_size)


def between(a: Tensor, b: Tensor, count: int) -> Tensor:
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


def to_uint8(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] to whole grey levels 0 .. 255, rounded as diffusers' pipelines do; values outside clipped."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
