"""The exact marginal velocity of the linear path for data uniform on squares: what a perfect field would answer.

With x_0 ~ N(0, I), x_1 uniform on a union of equal squares and x_t = (1 - t) x_0 + t x_1, the density of x_1 given x_t
is that of N(x_t / t, ((1 - t) / t)^2 I), cut to the squares. So E[x_1 | x_t] is a mixture over the squares of means of
truncated Gaussians, one an axis, each square weighted by the Gaussian mass in it, and

    v(x_t, t) = E[x_1 - x_0 | x_t] = (E[x_1 | x_t] - x_t) / (1 - t).

Nothing here is taken from flowimg: squares, weights and means are worked out from the definition above, in float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import log_ndtr

LATEST = 0.999
"""At t = 1 the velocity of points off the squares is infinite: later times are answered as this one."""


def log_phi(z: Tensor) -> Tensor:
    """Logarithm of the standard normal density."""
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def truncated(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the mass between two standardised limits, and the mean of the standard normal cut to them."""
    # far in the upper tail both masses round to 1: look at the mirrored interval in the lower tail instead
    flip = low + high > 0
    a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_mass = log_ndtr(b) + torch.log(-torch.expm1(log_ndtr(a) - log_ndtr(b)))
    mean = (log_phi(a) - log_mass).exp() - (log_phi(b) - log_mass).exp()
    return log_mass, torch.where(flip, -mean, mean)


@dataclass(frozen=True)
class Squares:
    """A velocity `(x, t, cond) -> v`, exact for data uniform on squares.

    Args:
        columns: Column of each square on a board, shape (P,).
        rows: Row of each square, shape (P,).
        cells: Squares a side of the board.
        half: Half the side of the board, which is centred at the origin.
    """

    columns: Tensor
    rows: Tensor
    cells: int
    half: float

    def mean_x_1(self, x: Tensor, t: float) -> Tensor:
        """E[x_1 | x_t = x], shape of x, float64; t in [0, 1)."""
        side = 2 * self.half / self.cells
        edges = torch.arange(self.cells, dtype=torch.float64) * side - self.half
        if t == 0:  # x_0 says nothing about x_1
            centre = torch.stack([edges[self.columns].mean(), edges[self.rows].mean()]) + side / 2
            return centre.expand(x.shape)
        std, centre = (1 - t) / t, x.double()[:, :, None] / t
        log_mass, standard = truncated((edges - centre) / std, (edges + side - centre) / std)
        mean = centre + std * standard  # (N, 2, cells): the mean in each column, in each row
        across, up = self.columns, self.rows
        weight = torch.softmax(log_mass[:, 0, across] + log_mass[:, 1, up], dim=1)
        return torch.stack([(weight * mean[:, 0, across]).sum(1), (weight * mean[:, 1, up]).sum(1)], dim=1)

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        """Velocity at x, shape (N, 2), where all of t, shape (N,), is one time."""
        time = min(float(t[0]), LATEST)
        return ((self.mean_x_1(x, time) - x) / (1 - time)).to(x.dtype)


def checkerboard(cells: int = 4, half: float = 2 / 0.45) -> Squares:
    """Every other square of a board, those with an even sum of column and row."""
    columns, rows = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    filled = (columns + rows) % 2 == 0
    return Squares(columns[filled], rows[filled], cells, half)
