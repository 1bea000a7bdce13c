"""Solvers that draw noise on the way: the marginals of a path as those of a stochastic differential equation.

    dx = [v + (g^2 / 2) score] dt + g dw,   score = -E[x_0 | x_t] / sigma,   any strength g(t) >= 0

has the same density at every time as dx = v dt. Noise forgets earlier errors and costs smaller steps.

    sde     x + h a + n                        Euler-Maruyama: weak order 1, 1 evaluation
    sde2    x + h/2 (a + a') + n,  a' = a(x + h a + n, s)      Heun's: weak order 2, 2
    churn   back along the path to a noise level (1 + gamma) times as high, then a step of heun    order 2, 2

where h = s - t, a is the drift [...] above, and n is normal of variance |h| (g^2(t) + g^2(s)) / 2. On the way back to
noise the sign of the score's term is the other one. At strength 0 they are euler and heun, to the bit.

The end t = 1, where sigma is 0 and the score need not exist, takes no noise: a step from or to it is one of euler or
heun, which keeps the marginals as well.
Sources: Ma et al. 2024, arXiv:2401.08740 (the equation, and strengths compared); Kloeden and Platen, Numerical Solution
of Stochastic Differential Equations, chapter 14 (weak orders); Karras et al. 2022, arXiv:2206.00364, algorithm 2
(churn); Lugmayr et al. 2022, arXiv:2201.09865 (returning).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.paths import Path
from flowimg.flow.solvers import HEUN, Slope, Solver
from flowimg.flow.times import within

SINGULAR = 1e-6
"""A coefficient of the path below this is 0."""
MOST_CHURN = math.sqrt(2) - 1
"""Largest gamma of a step: the noise that is added has at most the variance of that which is there."""


def of_sigma(path: Path, t: float) -> float:
    """g^2 as sigma: much noise far from the data, none at them."""
    return sigma_at(path, t)


def constant(path: Path, t: float) -> float:
    """The same g^2 at all times."""
    return 1.0


def middle(path: Path, t: float) -> float:
    """g^2 largest half way, none at both ends: sin^2(pi t)."""
    return math.sin(math.pi * t) ** 2


class Strength(NamedTuple):
    """g^2 of an equation, in 1 / flow time: `scale` times a function of path and time, 0 outside an interval."""

    scale: float = 1.0
    shape: Callable[[Path, float], float] = of_sigma
    interval: tuple[float, float] = (0.0, 1.0)

    def at(self, path: Path, t: float) -> float:
        """g^2 at t."""
        return self.scale * self.shape(path, t) if within(t, self.interval) else 0.0


def alpha_at(path: Path, t: float) -> float:
    """The coefficient of the data at t, in float64."""
    return path.alpha(torch.tensor(t, dtype=torch.float64)).item()


def sigma_at(path: Path, t: float) -> float:
    """The coefficient of the noise at t, in float64."""
    return path.sigma(torch.tensor(t, dtype=torch.float64)).item()


def noised(path: Path, x: Tensor, t: float, s: float, noise: Tensor) -> Tensor:
    """A state at t carried back to the noisier time s by fresh noise: x_t and x_s lie on one path.

        x_s = k x_t + sqrt(sigma_s^2 - (k sigma_t)^2) noise,   k = alpha_s / alpha_t

    Args:
        path: The path.
        x: State at t, shape (B, *D); t above 0.
        t: Flow time of x.
        s: Flow time below t.
        noise: Standard normal, shape of x.
    """
    k = alpha_at(path, s) / alpha_at(path, t)
    return k * x + math.sqrt(max(0.0, sigma_at(path, s) ** 2 - (k * sigma_at(path, t)) ** 2)) * noise


def _variance(v: Slope, t: float, s: float, strength: Strength) -> float:
    """Variance of the noise of a step; 0 at the singular end."""
    if min(sigma_at(v.path, t), sigma_at(v.path, s)) < SINGULAR:
        return 0.0
    return abs(s - t) * (strength.at(v.path, t) + strength.at(v.path, s)) / 2


def _drift(v: Slope, x: Tensor, t: float, forth: bool, strength: Strength) -> Tensor:
    """v + (g^2 / 2) score on the way to the data, v - (g^2 / 2) score on the way back."""
    slope, squared = v(x, t), strength.at(v.path, t)
    if squared == 0:
        return slope
    lean = squared / (2 * sigma_at(v.path, t))
    x_0 = v.path.ends(x, slope, torch.full((len(x),), t, dtype=x.dtype, device=x.device)).x_0
    return slope - (lean if forth else -lean) * x_0


def sde(strength: Strength) -> Solver:
    """Euler-Maruyama."""

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        variance = _variance(v, t, s, strength)
        if variance == 0:
            return x + (s - t) * v(x, t)
        return x + (s - t) * _drift(v, x, t, s > t, strength) + math.sqrt(variance) * v.noise(x)

    return Solver(step, order=1, stochastic=True)


def sde2(strength: Strength) -> Solver:
    """Heun's method with the same noise in both halves."""

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        variance = _variance(v, t, s, strength)
        if variance == 0:
            return HEUN.step(v, x, t, s)
        shake = math.sqrt(variance) * v.noise(x)
        k1 = _drift(v, x, t, s > t, strength)
        k2 = _drift(v, x + (s - t) * k1 + shake, s, s > t, strength)
        return x + (s - t) / 2 * (k1 + k2) + shake

    return Solver(step, order=2, stochastic=True)


def churn(total: float, interval: tuple[float, float] = (0.0, 1.0), base: Solver = HEUN) -> Solver:
    """EDM's churn: before a step of `base`, its time goes back to a noise level 1 + gamma times as high.

        gamma = min(total / number of steps, sqrt(2) - 1),   noise level = sigma / alpha

    Args:
        total: EDM's S_churn.
        interval: The flow times whose steps are churned, for EDM's S_tmax and S_tmin.
        base: The solver of the steps.
    """

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        gamma, alpha = min(total / v.count, MOST_CHURN), alpha_at(v.path, t)
        if s > t and gamma > 0 and alpha > SINGULAR and within(t, interval):  # at t = 0 there is nothing but noise
            back = v.path.time_of((1 + gamma) * sigma_at(v.path, t) / alpha)
            x, t = noised(v.path, x, t, back, v.noise(x)), back
        return base.step(v, x, t, s)

    return base._replace(step=step, stochastic=True)


def returning(base: Solver) -> Solver:
    """The same solver, where a step back in time adds the path's noise in place of following the flow back."""

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        return base.step(v, x, t, s) if s > t else noised(v.path, x, t, s, v.noise(x))

    return base._replace(step=step, stochastic=True)


SDE, SDE2, CHURN = sde(Strength()), sde2(Strength()), churn(20.0)
