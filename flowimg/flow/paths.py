"""Affine probability paths from noise (t = 0) to data (t = 1).

    x_t = alpha_t x_1 + sigma_t x_0,        alpha_0 = sigma_1 = 0,  alpha_1 = sigma_0 = 1
    u_t = alpha'_t x_1 + sigma'_t x_0       the conditional velocity d x_t / dt

x_0 is standard Gaussian noise, x_1 is data. diffusers counts the other way: its sigma is 1 - t here.
Source: Lipman et al. 2023, arXiv:2210.02747; Albergo et al. 2023, arXiv:2303.08797.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class PathSample(NamedTuple):
    """A point on the path and the velocity to learn there, each of shape (B, *D)."""

    x_t: Tensor
    u_t: Tensor


class Ends(NamedTuple):
    """What a velocity expects at the ends of the path that leads through a state: data and noise, each (B, *D)."""

    x_1: Tensor
    x_0: Tensor


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """`t`, shape (B,), as (B, 1, ..., 1) with the dimensions of `x`, to multiply a batch."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


class Path(ABC):
    """A path is its two coefficients and their derivatives, each a function of t, shape kept."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise."""

    @abstractmethod
    def alpha_prime(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_prime(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
        """The point of the path at t and the conditional velocity there.

            x_t = alpha_t x_1 + sigma_t x_0,   u_t = alpha'_t x_1 + sigma'_t x_0

        Args:
            x_0: Source noise, shape (B, *D).
            x_1: Data, shape (B, *D).
            t: Flow times in [0, 1], shape (B,); 0 is noise, 1 is data.
        Returns:
            x_t in data units and u_t in data units per unit of t, each of shape (B, *D).
        Raises:
            ValueError: If the shapes do not belong together; the message shows them.
        """
        if x_0.shape != x_1.shape or t.shape != x_1.shape[:1]:
            raise ValueError(
                f"x_0 {tuple(x_0.shape)}, x_1 {tuple(x_1.shape)} and t {tuple(t.shape)} do not belong together: "
                "give x_0 and x_1 the same shape (B, *D) and t the shape (B,)"
            )
        t = expand_like(t, x_1)
        return PathSample(self.alpha(t) * x_1 + self.sigma(t) * x_0, self.velocity(x_0, x_1, t))

    def ends(self, x_t: Tensor, v: Tensor, t: Tensor) -> Ends:
        """The data and the noise that a velocity means; of a learned one, their means given x_t.

            E[x_1 | x_t] = (sigma v - sigma' x_t) / w,   E[x_0 | x_t] = (alpha' x_t - alpha v) / w,
            w = alpha' sigma - alpha sigma'

        The score follows: grad log p_t(x_t) = -E[x_0 | x_t] / sigma. It has no limit at t = 1, where sigma is 0 and
        the density of the data need not be smooth; solvers therefore use x_0 and a noise that ends with sigma.

        Args:
            x_t: A state, shape (B, *D).
            v: The velocity there, shape of x_t.
            t: Flow times, shape (B,).
        """
        t = expand_like(t, x_t)
        alpha, sigma, rise, fall = self.alpha(t), self.sigma(t), self.alpha_prime(t), self.sigma_prime(t)
        w = rise * sigma - alpha * fall
        return Ends((sigma * v - fall * x_t) / w, (rise * x_t - alpha * v) / w)

    def time_of(self, level: float) -> float:
        """The flow time at which sigma / alpha, the noise level of x_t / alpha_t, is this; infinite at t = 0."""
        from scipy.optimize import brentq  # which takes time to import, and only churn asks

        def above(t: float) -> float:
            at = torch.tensor(t, dtype=torch.float64)
            return (self.sigma(at) - level * self.alpha(at)).item()

        return 0.0 if math.isinf(level) else float(brentq(above, 0.0, 1.0, xtol=1e-15, rtol=1e-15))

    def velocity(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """u_t; t of shape (B, 1, ..., 1)."""
        return self.alpha_prime(t) * x_1 + self.sigma_prime(t) * x_0


class Linear(Path):
    """Straight lines at constant speed: x_t = (1 - t) x_0 + t x_1, u_t = x_1 - x_0."""

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_prime(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def velocity(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        return x_1 - x_0  # the same, to the bit


class Cosine(Path):
    """The variance-preserving arc: alpha_t = sin(pi t / 2), sigma_t = cos(pi t / 2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def alpha_prime(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.cos(t * (math.pi / 2))

    def sigma_prime(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(t * (math.pi / 2))
