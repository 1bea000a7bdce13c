"""Points in the plane from distributions that are known exactly.

Each toy turns uniform numbers into exact samples, and determines in which of its parts a point lies, or that it lies
off the support. So the errors of a trained field can be counted. All parts of a toy have the same mass.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

OFF = -1
"""The part of a point that lies off the support."""
EDGE = 1e-5
"""How far rounding may move a point at the edge of a part."""


class Toy(ABC):
    """A distribution of points with equal mass in each of its parts: u -> x with u uniform in [0, 1)^3."""

    parts: int
    """Number of parts: cells, modes, arcs, arms or rings."""
    extent: float
    """Half the side of a square around the origin that contains the support."""
    entropy: float | None = None
    """Differential entropy in nats, if known: the mean of -log p for a perfect field."""

    @abstractmethod
    def sample(self, u: Tensor) -> Tensor:
        """Exact samples from uniform numbers in [0, 1): u (N, 3) -> (N, 2). u[:, 0] picks the part."""

    @abstractmethod
    def part(self, x: Tensor) -> Tensor:
        """The part each point lies in, 0 .. parts - 1, or `OFF`; x (N, 2) -> (N,), int64."""


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _first(inside: Tensor) -> Tensor:
    """The first True of each row, `OFF` where there is none; (N, parts) -> (N,)."""
    return torch.where(inside.any(1), inside.int().argmax(1), OFF)


class Checkerboard(Toy):
    """Uniform on every other square of a board, those where column + row is even.

    The board has the size of facebookresearch/flow_matching's 2D notebook, (-2, 2)^2 / 0.45, for any number of cells.

    Args:
        cells: Squares per side.
    """

    extent = 2 / 0.45

    def __init__(self, cells: int = 4) -> None:
        self.cells, self.side = cells, 2 * self.extent / cells
        filled = [(column, row) for row in range(cells) for column in range(cells) if (column + row) % 2 == 0]
        self.corners = torch.tensor(filled) * self.side - self.extent  # the lower left ones, row by row
        self.parts = len(filled)
        self.entropy = math.log(self.parts * self.side**2)  # of the filled area

    def sample(self, u: Tensor) -> Tensor:
        corner = self.corners.index_select(0, (u[:, 0] * self.parts).long())
        # keep off the edges of the cell, or rounding might move the point to the next cell
        return torch.add(corner, u[:, 1:].clamp(EDGE, 1 - EDGE), alpha=self.side)

    def part(self, x: Tensor) -> Tensor:
        cell = ((x + self.extent) / self.side).floor().long()
        column, row = cell.unbind(1)
        filled = ((cell >= 0) & (cell < self.cells)).all(1) & ((column + row) % 2 == 0)
        return torch.where(filled, (row * self.cells + column) // 2, OFF)


class Moons(Toy):
    """Two interleaving half rings of radius 2 and width 2 `WIDTH`; uniform in angle and in radius."""

    WIDTH = 0.3
    parts = 2
    extent = 3.5
    RADIUS = 2.0

    def sample(self, u: Tensor) -> Tensor:
        lower = (u[:, 0] * 2).long()
        angle = math.pi * u[:, 1]
        radius = self.RADIUS + _between(u[:, 2], -self.WIDTH, self.WIDTH)
        upper = _polar(radius, angle) + torch.tensor([-1.0, -0.5])
        return torch.where(lower[:, None] == 1, -upper, upper)

    def part(self, x: Tensor) -> Tensor:
        inside = []
        for sign in (1, -1):
            from_centre = sign * x - torch.tensor([-1.0, -0.5], device=x.device)
            off_arc = (from_centre.norm(dim=1) - self.RADIUS).abs()
            inside.append((off_arc <= self.WIDTH + EDGE) & (from_centre[:, 1] >= -EDGE))
        return _first(torch.stack(inside, dim=1))


class EightGaussians(Toy):
    """Eight Gaussians on a circle of radius 3, of standard deviation `STD`, cut off at three standard deviations."""

    STD = 0.3
    parts = 8
    extent = 4.5
    RADIUS = 3.0
    CUT = 3.0

    def _centres(self) -> Tensor:
        return _polar(torch.full((8,), self.RADIUS), torch.arange(8) * (math.pi / 4))

    def sample(self, u: Tensor) -> Tensor:
        centre = self._centres()[(u[:, 0] * 8).long()]
        # the radius of a plane Gaussian by its inverse distribution function, cut at CUT standard deviations
        radius = self.STD * (-2 * torch.log1p(-u[:, 2] * (1 - math.exp(-(self.CUT**2) / 2)))).sqrt()
        return centre + _polar(radius, 2 * math.pi * u[:, 1])

    def part(self, x: Tensor) -> Tensor:
        distance = (x[:, None] - self._centres().to(x.device)).norm(dim=2)
        return _first(distance <= self.CUT * self.STD + EDGE)


class Spirals(Toy):
    """Two arms r = 4 theta / (3 pi), theta in [pi / 2, 3 pi], half a turn apart; uniform in theta and across."""

    WIDTH = 0.2
    parts = 2
    extent = 4.5
    PITCH = 4 / (3 * math.pi)
    START = math.pi / 2
    END = 3 * math.pi

    def sample(self, u: Tensor) -> Tensor:
        arm = (u[:, 0] * 2).long()
        theta = _between(u[:, 1], self.START, self.END)
        radius = self.PITCH * theta + _between(u[:, 2], -self.WIDTH, self.WIDTH)
        return _polar(radius, theta + math.pi * arm)

    def part(self, x: Tensor) -> Tensor:
        radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
        inside = []
        for arm in (0, 1):
            on_arm = torch.zeros_like(radius, dtype=torch.bool)
            for turn in range(-1, 3):  # every angle that has this direction
                theta = angle - math.pi * arm + 2 * math.pi * turn
                near = (radius - self.PITCH * theta).abs() <= self.WIDTH + EDGE
                on_arm |= near & (theta >= self.START - EDGE) & (theta <= self.END + EDGE)
            inside.append(on_arm)
        return _first(torch.stack(inside, dim=1))


class Rings(Toy):
    """Four concentric rings of radius 1, 2, 3, 4 and width 2 `WIDTH`; uniform in angle and in radius."""

    WIDTH = 0.15
    parts = 4
    extent = 4.5

    def sample(self, u: Tensor) -> Tensor:
        radius = 1 + (u[:, 0] * 4).long() + _between(u[:, 2], -self.WIDTH, self.WIDTH)
        return _polar(radius, 2 * math.pi * u[:, 1])

    def part(self, x: Tensor) -> Tensor:
        radii = torch.arange(1, 5, device=x.device)
        return _first((x.norm(dim=1, keepdim=True) - radii).abs() <= self.WIDTH + EDGE)
