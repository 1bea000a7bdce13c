"""Couplings: which noise is paired with which data.

Independent:  x_0 and x_1 as they were drawn.
Minibatch OT: within each block of the batch, the permutation p of the noise with the least transport cost

    p = argmin sum_i |x_0[p(i)] - x_1[i]|^2 = argmax sum_i <x_0[p(i)], x_1[i]>

(the squared norms do not depend on p). The paths then cross less and need fewer solver steps. With labels the noise
is exchanged only within a class: paired across classes it would no longer be N(0, I) given the class, and a class is
sampled from N(0, I).
A coupling declares its `block`: pairs never leave a block of that many consecutive positions of the global batch, so a
process computes only the blocks that hold its own positions.
Source: Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024, arXiv:2302.00482; for labels
Cheng & Schwing 2025, arXiv:2503.10636.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Coupling(Protocol):
    """What a coupling is: a block size, and noise rearranged to go with the data.

    `independent` says that noise tells nothing of the data it is paired with.
    """

    independent: ClassVar[bool]

    @property
    def block(self) -> int:
        """Positions that may exchange noise."""
        ...

    def __call__(self, x_0: Tensor, x_1: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise rearranged so that row i goes with x_1[i]; both (B, *D), labels (B,), starting at a block's edge."""
        ...


def whole_blocks(positions: range, block: int, batch_size: int) -> range:
    """The positions of all blocks that `positions` touches; the last block of a batch may be shorter."""
    return range(positions.start // block * block, min(-(-positions.stop // block) * block, batch_size))


@dataclass(frozen=True)
class Independent:
    """x_0 and x_1 as they were drawn."""

    block: int = 1
    independent: ClassVar[bool] = True

    def __call__(self, x_0: Tensor, x_1: Tensor, labels: Tensor | None = None) -> Tensor:
        return x_0


@dataclass(frozen=True)
class OptimalTransport:
    """The exact optimal assignment within each block, and there within each class (O(block^3) on the CPU)."""

    block: int = 256
    independent: ClassVar[bool] = False

    def __call__(self, x_0: Tensor, x_1: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise rearranged within each block, of each class by itself.

        The products are taken in float64: a tie broken by rounding would make the pairing depend on the machine.

        Args:
            x_0: Noise, shape (B, *D), starting at a block's edge.
            x_1: Data, shape (B, *D).
            labels: Classes of the data, shape (B,), or None.
        Returns:
            A permutation of x_0 within each block and class, shape (B, *D).
        """
        from scipy.optimize import linear_sum_assignment  # half a second that other couplings need not wait for

        noise, data = x_0.flatten(1).cpu().double(), x_1.flatten(1).cpu().double()
        classes = torch.zeros(len(x_1), dtype=torch.long) if labels is None else labels.cpu()
        order = torch.arange(len(x_1))
        for block in torch.arange(len(x_1)).split(self.block):
            for label in classes[block].unique():
                rows = block[classes[block] == label]
                _, match = linear_sum_assignment((data[rows] @ noise[rows].T).numpy(), maximize=True)
                order[rows] = rows[torch.from_numpy(match)]
        return x_0[order.to(x_0.device)]
