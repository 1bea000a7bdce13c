"""Augmentation that does not leak: pictures are transformed, and the field is conditioned on how.

    x_1 <- x_1 o M^-1,    M = T A R S Y X

    X  mirrored left to right, half of the time        Y  top to bottom, half of the time
    S  scaled by 2^(0.2 n)                             R  turned by an angle, uniform
    A  stretched by 2^(0.2 n) in some direction, and by 2^(-0.2 n) across it
    T  moved by 0.125 n of the width and 0.125 n of the height

with n a standard normal number each; Y, S, R, A and T are each applied with probability p. The condition holds

    a = (mirrored, upside down, n of S, cos - 1 and sin of the angle of R,
         n of A times cos and sin of twice its direction, both n of T),

from which M follows. a = 0 is the picture as it is: with it, a field draws pictures that are not transformed, having
learned from many more than there are. The direction is doubled, as a stretch along a direction and along its opposite
are the same.

A picture that is moved is resampled once, by torch's cubic convolution (a = -3/4), with reflection beyond the edge: it
loses the finest detail (shifted by half a pixel, waves of two pixels vanish), rings a little at edges, and aliases a
little where it shrinks. One that is only mirrored, or not changed, keeps every bit; so samples drawn with a = 0 were
learned from pictures that were not resampled.
Source: Karras et al. 2022, arXiv:2206.00364, appendix F.2, after Karras et al. 2020, arXiv:2006.06676.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from flowimg.conditions.augmentation import NUMBERS
from flowimg.flow import randomness

SCALE, SHIFT = 0.2, 0.125
"""Standard deviations: of the binary logarithm of a scale, and of a move in widths or heights."""


def augmented(x: Tensor, seed: int, step: int, positions: range, p: float) -> tuple[Tensor, Tensor]:
    """Randomly transformed pictures: functions of (seed, step, position) only.

    Args:
        x: Pictures in [-1, 1], shape (B, C, H, W).
        seed: Seed of the run.
        step: Optimiser step.
        positions: Their positions in the global batch.
        p: Probability of each transformation, in [0, 1].
    Returns:
        Pictures in [-1, 1], shape (B, C, H, W), and the numbers a, shape (B, 9); on the device of x.
    """
    numbers, maps = draw_numbers(seed, step, positions, p)
    return transformed(x, numbers, maps), numbers.to(x.device, non_blocking=True)


def draw_numbers(seed: int, step: int, positions: range, p: float) -> tuple[Tensor, Tensor]:
    """Numbers a, shape (len(positions), 9), and the maps that follow, shape (len(positions), 2, 3); float32."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        tried = torch.rand(count, 5, generator=generator, dtype=torch.float64) < p
        mirrored = torch.rand(count, 2, generator=generator) < 0.5
        turn, twice = (torch.rand(2, count, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
        n = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        scale, stretch, *shift = n.unbind(1)
        stretches = stretch * twice.cos(), stretch * twice.sin()
        others = torch.stack([scale, turn.cos() - 1, turn.sin(), *stretches, *shift], dim=1)
        mirrors = torch.stack([mirrored[:, 0], mirrored[:, 1] & tried[:, 0]], dim=1)
        numbers = torch.cat([mirrors, others * tried[:, [1, 2, 2, 3, 3, 4, 4]]], dim=1)
        # with the maps, in whole blocks: a cosine of the last few of a tensor may be rounded otherwise
        return torch.cat([numbers, map_of(numbers).flatten(1)], dim=1)

    rows = randomness.draw_blocks(seed, "augment", step, positions, draw).float()
    return rows[:, :NUMBERS], rows[:, NUMBERS:].unflatten(1, (2, 3))


def map_of(numbers: Tensor) -> Tensor:
    """Where a point of the picture goes.

        M = [L | T],    L = A R S Y X,    S A = 2^(0.2 a_2) exp(0.2 ln 2 [[a_5, a_6], [a_6, -a_5]])

    Args:
        numbers: a, shape (B, 9).
    Returns:
        M, shape (B, 2, 3): x to the right and y down, in pixels from the middle; the move in widths and heights.
    """
    a = numbers.unbind(1)
    log = SCALE * math.log(2)
    n = torch.hypot(a[5], a[6])
    along, across = torch.cosh(log * n), torch.sinh(log * n) / n.clamp(min=1e-30)
    stretch = _matrix(along + across * a[5], across * a[6], across * a[6], along - across * a[5])
    turn = _matrix(1 + a[3], -a[4], a[4], 1 + a[3])
    mirror = _matrix(1 - 2 * a[0], torch.zeros_like(n), torch.zeros_like(n), 1 - 2 * a[1])
    linear = torch.exp(log * a[2])[:, None, None] * stretch @ turn @ mirror
    return torch.cat([linear, SHIFT * numbers[:, 7:, None]], dim=2)


def _matrix(xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    return torch.stack([torch.stack([xx, xy], 1), torch.stack([yx, yy], 1)], 1)


def transformed(x: Tensor, numbers: Tensor, maps: Tensor) -> Tensor:
    """Pictures carried by their maps.

    Args:
        x: Pictures in [-1, 1], shape (B, C, H, W).
        numbers: a, shape (B, 9), on the CPU: which rows are resampled must be known without waiting for a device.
        maps: M, shape (B, 2, 3), on the CPU.
    Returns:
        Pictures in [-1, 1], shape (B, C, H, W).
    """
    across, down = (numbers[:, :2] != 0).to(x.device, non_blocking=True)[:, :, None, None, None].unbind(1)
    x = torch.where(across, x.flip(-1), x)
    x = torch.where(down, x.flip(-2), x)
    moved = (numbers[:, 2:] != 0).any(1).nonzero()[:, 0]
    if not len(moved):
        return x
    # mirrored already, exactly
    back = inverse(maps[moved] * torch.cat([1 - 2 * numbers[moved, :2], torch.ones(len(moved), 1)], 1)[:, None])
    rows = moved.to(x.device, non_blocking=True)
    return x.index_copy(0, rows, resampled(x.index_select(0, rows), back.to(x.device, non_blocking=True)))


def inverse(maps: Tensor) -> Tensor:
    """Where a point came from, linear part and move as in `map_of`, but moved first: p = L^-1 (q - T)."""
    (xx, xy), (yx, yy) = (row.unbind(1) for row in maps[:, :, :2].unbind(1))
    linear = _matrix(yy, -xy, -yx, xx) / (xx * yy - xy * yx)[:, None, None]
    return torch.cat([linear, -maps[:, :, 2:]], dim=2)


def resampled(x: Tensor, back: Tensor) -> Tensor:
    """Pictures looked up where each pixel came from: shapes (B, C, H, W) and (B, 2, 3), as `inverse` gives it."""
    height, width = x.shape[-2:]
    # in pixels from the middle; products and sums only: a matrix product would round by the size of the batch
    across = (torch.arange(width, device=x.device) + 0.5 - width / 2) + width * back[:, 0, 2, None]
    down = (torch.arange(height, device=x.device) + 0.5 - height / 2) + height * back[:, 1, 2, None]
    across, down = across[:, None, :], down[:, :, None]
    (xx, xy), (yx, yy) = (row[..., None, None].unbind(1) for row in back[:, :, :2].unbind(1))
    grid = torch.stack([(xx * across + xy * down) * (2 / width), (yx * across + yy * down) * (2 / height)], dim=-1)
    return grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
