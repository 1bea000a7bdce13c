"""Which flow times are trained on, and which a solver visits.

Training draws u uniform in [0, 1) for every position of the batch and warps it by an inverse distribution function:

    uniform       t = u
    logit-normal  t = sigmoid(mean + std Phi^-1(u))
    skewed        logit-normal(1.2, 1.2), not below 1e-4: the CIFAR-10 recipe of facebookresearch/flow_matching

Stratified, u is (k + u) / B with each stratum k of the batch used once, which lowers the variance of the gradient.
The shift moves t towards noise (shift > 1) or data: in sigma = 1 - t, sigma <- shift sigma / (1 + (shift - 1) sigma).

A solver goes through a grid 0 = t_0 < ... < t_N = 1:

    uniform     t_i = i / N
    edm         t_i = 1 / (1 + sigma_i) at the noise levels of Karras et al. 2022, dense near the data
    diffusers   the default times of FlowMatchEulerDiscreteScheduler: its last step is 1/1000 long

and each of them may be shifted like the training times. The diffusers grid is then that of the scheduler after
`set_shift(shift)`, not that of one built with `shift=shift`, which shifts the last time before data twice.
Sources: Kingma et al. 2021, arXiv:2107.00630 (stratified); Esser et al. 2024, arXiv:2403.03206 (logit-normal, shift);
Karras et al. 2022, arXiv:2206.00364, equation 5 (edm).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

NEAR = 1e-6
"""A time this near to an interval is inside: fields see t in float32."""


def within(t: float, interval: tuple[float, float]) -> bool:
    """Whether a flow time is in an interval, both ends included."""
    return interval[0] - NEAR <= t <= interval[1] + NEAR


class TimeDistribution(Protocol):
    """An inverse distribution function on [0, 1] that never changes; equal are those that give the same times."""

    def __hash__(self) -> int: ...

    def __call__(self, u: Tensor) -> Tensor:
        """Uniform numbers to flow times, monotone, shape kept."""
        ...


@dataclass(frozen=True)
class Uniform:
    """t = u."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2); a positive mean favours times near the data."""

    mean: float = 0.0
    std: float = 1.0
    least: float = 0.0

    def __call__(self, u: Tensor) -> Tensor:
        # not torch.sigmoid: it rounds the last few elements of a tensor otherwise, so t would depend on the cut
        logit = self.mean + self.std * torch.special.ndtri(u)
        return (1 / (1 + torch.exp(-logit))).clamp(min=self.least)


def skewed() -> LogitNormal:
    """Times near the data, as in facebookresearch/flow_matching's CIFAR-10 recipe (FID 2.07)."""
    return LogitNormal(mean=1.2, std=1.2, least=1e-4)


def stratify(u: Tensor, positions: range, batch_size: int) -> Tensor:
    """Uniform numbers spread evenly over the whole batch.

        u_i <- (k(i) + u_i) / B,    k(i) = a i mod B,    a coprime to B and nearest above B / golden ratio

    k is a permutation of the strata, computed per position. The golden stride spreads every range of consecutive
    positions, hence every micro-batch, over [0, 1] too.

    Args:
        u: Uniform numbers in [0, 1), shape (..., len(positions)), a row a step.
        positions: Positions in the global batch that u belongs to.
        batch_size: Size B of the global batch.
    Returns:
        Numbers in [0, 1), of the same shape; over the whole batch a row has one in each [k/B, (k+1)/B), up to rounding.
    """
    # float64 until the end: in float32 (k + u) / B may round up into the next stratum
    return (_strata(positions, batch_size) + u).div_(batch_size).float().clamp_(max=1 - 2**-24)


@lru_cache(maxsize=16)  # a run asks for the same ones at every step
def _strata(positions: range, batch_size: int) -> Tensor:
    """k(i) of these positions, float64."""
    stride = math.ceil(batch_size * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, batch_size) != 1:
        stride += 1
    return (torch.arange(positions.start, positions.stop) * stride % batch_size).double()


def shift_times(t: Tensor, shift: float) -> Tensor:
    """t <- t / (t + shift (1 - t)): the share of times near noise grows with the shift; 1 changes nothing."""
    return t / (t + shift * (1 - t))  # never above 1, not even by rounding


def uniform_grid(num_steps: int) -> Tensor:
    """The solver times 0, 1/N, ..., 1, shape (N + 1,), float64; flip them to go from data to noise."""
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)


def edm_grid(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's noise levels as flow times, shape (N + 1,), float64.

        t_i = 1 / (1 + sigma_i),    sigma_i^(1/rho) from sigma_max^(1/rho) to sigma_min^(1/rho) in N even points

    A sample at noise level sigma of EDM is x_1 + sigma x_0, which is x_t / t at sigma = (1 - t) / t. The first time is
    0 in place of 1 / 81, where a flow has to start, and 1 is added at the end. On another path than the linear one
    these are other noise levels. The first step does not shrink with N, so a solver that begins with a step of lower
    order, as ab2 does, keeps the error of that one.
    """
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    most, least = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = (most + ramp * (least - most)) ** rho
    grid = torch.cat([1 / (1 + sigma), torch.ones(1, dtype=torch.float64)])
    grid[0] = 0
    return grid


def diffusers_grid(num_steps: int) -> Tensor:
    """The default times of diffusers' scheduler, shape (N + 1,), float64.

    t_i = 1 - sigma_i,    sigma from 1 to 1/1000 in N even points, then 0

    Shifted by `shift_times`, it is the grid of FlowMatchEulerDiscreteScheduler() after `set_shift(shift)`. One built
    with `shift=shift`, as from a saved configuration, shifts the 1/1000 first and all times again after it.
    """
    sigma = torch.linspace(1, 1 / 1000, num_steps, dtype=torch.float64)
    return torch.cat([1 - sigma, torch.ones(1, dtype=torch.float64)])
