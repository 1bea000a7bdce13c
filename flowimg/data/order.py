"""Which sample comes when: a keyed permutation of the data set for each epoch, computed per index, never stored.

    epoch = p // n,   index = permute(p mod n, n, key(seed, "order", epoch)),   p = step * batch_size + offset + place

The permutation is a Feistel network on the smallest even number of bits that holds n, walked until it lands below n
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Its memory does not grow with n; a resumed run
needs nothing but the step; any number of processes agree.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowimg.flow.randomness import key

ROUNDS = 8


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64-bit words in which every bit of the result depends on every bit of x (the splitmix64 finaliser)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: NDArray[np.uint64], n: int, keyed: int) -> NDArray[np.uint64]:
    """Where a keyed pseudo-random permutation of range(n) sends each index.

    Args:
        index: Whole numbers in [0, n), any shape.
        n: Size of the set, up to 2^62.
        keyed: The key; other keys give other permutations.
    Returns:
        Whole numbers in [0, n), the shape of `index`.
    """
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64(key("round", keyed, i)) for i in range(ROUNDS)]
    x = index
    walking = np.ones(x.shape, dtype=bool)
    while walking.any():
        left, right = x >> half, x & mask
        for k in keys:
            left, right = right, left ^ (_mix(right ^ k) & mask)
        x = np.where(walking, left << half | right, x)
        walking = x >= n
    return x


def sample_indices(seed: int, step: int, places: range, batch_size: int, n: int, offset: int = 0) -> Tensor:
    """The samples of the data set that a step sees at these places of its batch.

    Batches run on across the end of an epoch; a set smaller than the batch wraps round.

    Args:
        seed: Seed of the run.
        step: Optimiser step, from 0.
        places: Places in the global batch.
        batch_size: Size of the global batch.
        n: Samples in the data set.
        offset: Samples seen other than step * batch_size, where the batch was another one before.
    Returns:
        Indices in [0, n), shape (len(places),), int64; every epoch visits each sample once.
    """
    position = np.arange(places.start, places.stop, dtype=np.uint64) + np.uint64(step * batch_size + offset)
    epoch, within = np.divmod(position, np.uint64(n))
    index = np.empty_like(within)
    for e in np.unique(epoch):
        index[epoch == e] = permute(within[epoch == e], n, key(seed, "order", int(e)))
    return torch.from_numpy(index.astype(np.int64))
