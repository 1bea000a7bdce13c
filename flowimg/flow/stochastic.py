"""Solvers that draw noise on the way: the marginals of a path as those of a stochastic differential equation.

    dx = [v + (g^2 / 2) score] dt + g dw,   score = -E[x_0 | x_t] / sigma,   any strength g(t) >= 0

has the same density at every time as dx = v dt. Noise forgets earlier errors and costs smaller steps.

    sde     x + h a + n                        Euler-Maruyama: weak order 1, 1 evaluation
    sde2    x + h/2 (a + a') + n,  a' = a(x + h a + n, s)      Heun's: weak order 2, 2
    churn   back along the path to a noise level (1 + gamma) times as high, then a step of heun    order 2, 2

where h = s - t, a is the drift [...] above, and n is normal of variance |h| (g^2(t) + g^2(s)) / 2. On the way back to
noise the sign of the score's term is the other one. At strength 0 they are euler and heun, to the bit.

At the end t = 1 sigma is 0, and the score need not exist. Every g keeps the marginals, so g^2 of a step is at most
sigma^2 / h: sde and sde2 then go into that end by a step without noise, and settle however narrow the data are.
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


class _Push(NamedTuple):
    """g^2 of an equation at both ends of a step, and the deviation of the step's noise."""

    begin: float
    end: float
    shake: float


def _push(v: Slope, t: float, s: float, strength: Strength) -> _Push:
    """What a step of an equation adds to the flow.

    Where the data hardly vary, the score is about -(x - mean) / sigma^2, and a step from t to s takes x by the share
    h g^2 / (2 sigma^2) towards the mean: beyond 2 it would swing ever wider. So g^2 is at most sigma^2 / h, with the
    smaller sigma of both ends.
    """
    low = min(sigma_at(v.path, t), sigma_at(v.path, s))
    most = low**2 / abs(s - t) if low > SINGULAR else 0.0
    begin, end = (min(strength.at(v.path, at), most) for at in (t, s))
    return _Push(begin, end, math.sqrt(abs(s - t) * (begin + end) / 2))


def _drift(v: Slope, x: Tensor, t: float, forth: bool, squared: float) -> Tensor:
    """v + (g^2 / 2) score on the way to the data, v - (g^2 / 2) score on the way back."""
    slope = v(x, t)
    if squared == 0:
        return slope
    lean = squared / (2 * sigma_at(v.path, t))
    x_0 = v.path.ends(x, slope, torch.full((len(x),), t, dtype=x.dtype, device=x.device)).x_0
    return slope - (lean if forth else -lean) * x_0


def sde(strength: Strength) -> Solver:
    """Euler-Maruyama."""

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        push = _push(v, t, s, strength)
        x = x + (s - t) * _drift(v, x, t, s > t, push.begin)
        return x + push.shake * v.noise(x) if push.shake else x

    return Solver(step, order=1, stochastic=True)


def sde2(strength: Strength) -> Solver:
    """Heun's method with the same noise in both halves."""

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        push = _push(v, t, s, strength)
        if not push.shake:
            return HEUN.step(v, x, t, s)
        shake = push.shake * v.noise(x)
        k1 = _drift(v, x, t, s > t, push.begin)
        k2 = _drift(v, x + (s - t) * k1 + shake, s, s > t, push.end)
        return x + (s - t) / 2 * (k1 + k2) + shake

    return Solver(step, order=2, stochastic=True)


def churn(total: float, num_steps: int, interval: tuple[float, float] = (0.0, 1.0), base: Solver = HEUN) -> Solver:
    """EDM's churn: before a step of `base`, its time goes back to a noise level 1 + gamma times as high.

        gamma = min(total / num_steps, sqrt(2) - 1),   noise level = sigma / alpha

    Args:
        total: EDM's S_churn.
        num_steps: Steps from noise to data; those that a flow makes again, or not at all, do not change gamma.
        interval: The flow times whose steps are churned, for EDM's S_tmax and S_tmin.
        base: The solver of the steps.
    """

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        gamma, alpha = min(total / num_steps, MOST_CHURN), alpha_at(v.path, t)
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


SDE, SDE2, CHURN = sde(Strength()), sde2(Strength()), churn(20.0, 50)
