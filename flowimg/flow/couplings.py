"""Couplings: which noise is paired with which data.

Independent:  x_0 and x_1 as they were drawn.
Minibatch OT: within each block of the batch, the permutation p of the noise with the least transport cost

    p = argmin sum_i |x_0[p(i)] - x_1[i]|^2 = argmax sum_i <x_0[p(i)], x_1[i]>

(the squared norms do not depend on p). The paths then cross less and need fewer solver steps.
A coupling declares its `block`: pairs never leave a block of that many consecutive places of the global batch,
so a process computes the blocks that hold its own places and nobody needs the whole batch.
Source: Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024, arXiv:2302.00482.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Coupling(Protocol):
    """What a coupling is: a block size, and noise rearranged to go with the data."""

    @property
    def block(self) -> int:
        """Places that may exchange noise."""
        ...

    def __call__(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        """Noise rearranged so that row i goes with x_1[i]; both (B, *D), starting at a block's edge."""
        ...


def whole_blocks(places: range, block: int, batch_size: int) -> range:
    """The places of all blocks that `places` touches; the last block of a batch may be shorter."""
    return range(places.start // block * block, min(-(-places.stop // block) * block, batch_size))


@dataclass(frozen=True)
class Independent:
    """x_0 and x_1 as they were drawn."""

    block: int = 1

    def __call__(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        return x_0


@dataclass(frozen=True)
class OptimalTransport:
    """The exact optimal assignment within each block (O(block^3) on the CPU)."""

    block: int = 256

    def __call__(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        """Noise rearranged within each block.

        The products are taken in float64: a tie broken by rounding would make the pairing depend on the machine.

        Args:
            x_0: Noise, shape (B, *D), starting at a block's edge.
            x_1: Data, shape (B, *D).
        Returns:
            A permutation of x_0 within each block, shape (B, *D).
        """
        from scipy.optimize import linear_sum_assignment  # half a second that other couplings need not wait for

        order = []
        for start in range(0, len(x_1), self.block):
            noise = x_0[start : start + self.block].flatten(1).cpu().double()
            data = x_1[start : start + self.block].flatten(1).cpu().double()
            _, match = linear_sum_assignment((data @ noise.T).numpy(), maximize=True)
            order.append(torch.from_numpy(match) + start)
        return x_0[torch.cat(order).to(x_0.device)]
