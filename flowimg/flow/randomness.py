"""Every random number is a function of (seed, step, position in the global batch), never of who computes it.

The global batch of a step is cut into blocks of `BLOCK` positions. A block has one generator a purpose,

    generator(seed, purpose, step, block),

so a process computes the blocks that hold its own positions and cuts the slice it needs: one process, four
processes and gradient accumulation see the same batch, at a cost that does not grow with their number.
Of rows of few numbers, as times and points, blocks are larger: there it is the generators that cost.
All generators live on the CPU: CPU and GPU runs draw the same numbers.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK, LARGE_BLOCK = 64, 512
"""Positions of the global batch that share a generator; the latter for rows of at most `FEW` numbers."""
FEW = 4
STEPS, ROWS = 16, 8192
"""Steps whose points, noise and times are made together at most, and their rows at most: where a step has few rows the
calls would cost more than the numbers. Every step still has its own generators."""
SEEDS = 2**32
"""Seeds that a CPU generator tells apart: it keeps 32 bits, so 5 and 5 + 2^32 would draw the same."""
LOTS = 64
"""Lots to cache at most: a run needs one of each kind for each of its micro-batches."""


def key(*parts: int | str) -> int:
    """A 63-bit hash of the parts, for seeding.

    A CPU generator keeps only the lower 32 bits of its seed, so nearby or structured keys must be spread over
    all bits before they are used; a cryptographic hash does that (sums and products of the parts do not).

    Args:
        parts: Whole numbers and names; ("noise", 12) and ("noise1", 2) differ.
    Returns:
        A whole number in [0, 2^63).
    """
    text = "\x1f".join(repr(part) if isinstance(part, str) else str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator seeded by `key(*parts)`."""
    return torch.Generator().manual_seed(key(*parts))


def lot_of(step: int, rows: int) -> range:
    """The steps whose numbers are made together with this one's, of `rows` rows each; just itself for many rows."""
    many = max(1, min(STEPS, ROWS // max(1, rows)))
    return range(step // many * many, (step // many + 1) * many)


def block_of(shape: tuple[int, ...]) -> int:
    """Number of positions that share a generator, for rows of this shape."""
    return LARGE_BLOCK if math.prod(shape) <= FEW else BLOCK


def draw_blocks(
    seed: int,
    purpose: str,
    step: int,
    positions: range,
    draw: Callable[[int, torch.Generator], Tensor],
    block: int = BLOCK,
) -> Tensor:
    """The rows of the global batch at `positions`, drawn block by block.

    Args:
        seed: Seed of the run.
        purpose: What the numbers are for; other purposes get other numbers.
        step: Optimiser step, from 0.
        positions: Consecutive positions in the global batch.
        draw: `(count, generator) -> rows`, shape (count, *D); always asked for whole blocks.
        block: Number of positions that share a generator.
    Returns:
        Rows, shape (len(positions), *D), the same for any way of cutting the batch.
    """
    first, last = positions.start // block, -(-positions.stop // block)
    rows = [draw(block, generator(seed, purpose, step, number)) for number in range(first, last)]
    whole = rows[0] if len(rows) == 1 else torch.cat(rows)
    return whole[positions.start - first * block : positions.stop - first * block]


def normal(seed: int, purpose: str, step: int, positions: range, shape: tuple[int, ...]) -> Tensor:
    """Standard normal rows, shape (len(positions), *shape); see `draw_blocks`."""
    block = block_of(shape)
    return draw_blocks(seed, purpose, step, positions, lambda n, g: torch.randn(n, *shape, generator=g), block)


def uniform(seed: int, purpose: str, step: int, positions: range, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1), shape (len(positions), *shape); see `draw_blocks`."""
    return draw_blocks(seed, purpose, step, positions, lambda n, g: torch.rand(n, *shape, generator=g), block_of(shape))
