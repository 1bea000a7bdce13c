"""Which sample comes when: a keyed permutation of the data set for each epoch, computed per index, never stored.

    epoch = p // n,   index = permute(p mod n, n, key(seed, "order", epoch)),   p = step * batch_size + offset + place

The permutation is a Feistel network on the smallest even number of bits that holds n, walked until it lands below n
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Its memory does not grow with n; a resumed run
needs nothing but the step; any number of processes agree.

What does not fit a disk cannot be read in any order: `ShardOrder` shuffles by blocks. The shards of an epoch follow
each other in keyed order; that row of samples is cut into lanes of one length, a lane for some positions of the batch;
in a lane a group of shards is open at a time, and their samples come in keyed order. A process reads the lanes of its
positions and nothing else.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowimg.flow.randomness import key

ROUNDS = 8
RUN = 2**14
"""Indices that are permuted at a time."""
BLOCK = 2**12
"""Positions of a run that are looked up at a time at most."""


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64-bit words in which every bit of the result depends on every bit of x (the splitmix64 finaliser)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


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
    keys = _round_keys(keyed)
    index = np.asarray(index, np.uint64)
    found = np.empty(index.size, np.uint64)
    for start in range(0, index.size, RUN):  # as many as a core's cache holds
        x = index.ravel()[start : start + RUN]
        walking = np.arange(start, start + len(x))
        while len(walking):
            x = _network(x, half, keys)
            well = x < n
            found[walking[well]] = x[well]
            x, walking = x[~well], walking[~well]
    return found.reshape(index.shape)


@lru_cache(1024)
def _round_keys(keyed: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(key("round", keyed, i)) for i in range(ROUNDS))


def _network(x: NDArray[np.uint64], half: np.uint64, keys: tuple[np.uint64, ...]) -> NDArray[np.uint64]:
    """The Feistel network on 2 half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for k in keys:
        left, right = right, left ^ (_mix(right ^ k) & mask)
    return left << half | right


def sample_indices(seed: int, step: int, positions: range, batch_size: int, n: int, offset: int = 0) -> Tensor:
    """The samples of the data set that a step sees at these positions of its batch.

    Batches run on across the end of an epoch; a set smaller than the batch wraps round.

    Args:
        seed: Seed of the run.
        step: Optimiser step, from 0.
        positions: Places in the global batch.
        batch_size: Size of the global batch.
        n: Samples in the data set.
        offset: Samples seen other than step * batch_size, where the batch was another one before.
    Returns:
        Indices in [0, n), shape (len(positions),), int64; every epoch visits each sample once.
    """
    start = step * batch_size + offset + positions.start
    stop = start + len(positions)
    size = min(BLOCK, max(64, n))  # of a tiny set a long block would hold many epochs
    rows = [
        _block(seed, n, size, block)[max(start - block * size, 0) : stop - block * size]
        for block in range(start // size, -(-stop // size))
    ]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows]))


@lru_cache(4)
def _block(seed: int, n: int, size: int, block: int) -> NDArray[np.int64]:
    """The samples at `size` positions of a run; a batch is a slice of them, as numpy's calls cost more than it."""
    position = np.arange(block * size, (block + 1) * size, dtype=np.uint64)
    epoch, within = np.divmod(position, np.uint64(n))
    index = np.empty_like(within)
    for e in np.unique(epoch):
        index[epoch == e] = permute(within[epoch == e], n, key(seed, "order", int(e)))
    return index.astype(np.int64)


class Lane(NamedTuple):
    """A part of an epoch's row of shards: where in the row its groups of open shards begin and end."""

    start: int
    stop: int
    edges: NDArray[np.int64]


class ShardOrder:
    """Which sample of which shard comes when, for shards that are read a few at a time.

    Lane l of L has the positions of the batch from l B / L on, and of the row of N samples those from l N / L to
    (l + 1) N / L: each epoch visits each sample once, and a sample is a function of (seed, step, place).

    Args:
        counts: Samples of each shard, shape (S,), none of them 0.
        open_shards: Shards read from at a time, over the whole batch; more mix better and take more memory.
        seed: Seed of the run.
        batch_size: Size of the global batch.
    """

    def __init__(self, counts: NDArray[np.int64], open_shards: int, seed: int, batch_size: int) -> None:
        self.counts, self.seed, self.batch_size = counts, seed, batch_size
        self.total = int(counts.sum())
        most = min(open_shards, len(counts), batch_size)
        self.lanes = next(lanes for lanes in range(most, 0, -1) if batch_size % lanes == 0)
        self.group = max(1, open_shards // self.lanes)
        self._row = lru_cache(4)(self._make_row)
        self._lane = lru_cache(4 * self.lanes)(self._make_lane)

    def __call__(self, step: int, positions: range, offset: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards, and the rows in them, that a step sees at these positions.

        Args:
            step: Optimiser step, from 0.
            positions: Places in the global batch.
            offset: Samples seen other than step * batch_size, where the batch was another one before.
        Returns:
            Shards and rows, each of shape (len(positions),).
        """
        width = self.batch_size // self.lanes
        seen = (step * self.batch_size + offset) // self.lanes
        shards, rows = [], []
        for lane in self.lanes_of(positions):
            first, last = max(positions.start, lane * width), min(positions.stop, (lane + 1) * width)
            length = (lane + 1) * self.total // self.lanes - lane * self.total // self.lanes
            counter = seen + np.arange(first, last) - lane * width
            for epoch in range(int(counter[0]) // length, int(counter[-1]) // length + 1):
                within = counter[counter // length == epoch] % length
                for shard, row in self._places(epoch, lane, within):
                    shards.append(shard)
                    rows.append(row)
        return np.concatenate(shards), np.concatenate(rows)

    def lanes_of(self, positions: range) -> range:
        """The lanes that have these positions of the batch."""
        width = self.batch_size // self.lanes
        return range(positions.start // width, -(-positions.stop // width))

    def _places(
        self, epoch: int, lane: int, within: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        order, ends = self._row(epoch)
        start, _, edges = self._lane(epoch, lane)
        group = np.searchsorted(edges, start + within, side="right") - 1
        for number in np.unique(group).tolist():  # in order, as `within` rises
            low, high = int(edges[number]), int(edges[number + 1])
            inside = (start + within[group == number] - low).astype(np.uint64)
            keyed = key(self.seed, "open shards", epoch, lane, number)
            place = low + permute(inside, high - low, keyed).astype(np.int64)
            which = np.searchsorted(ends, place, side="right")
            shard = order[which]
            yield shard, place - (ends[which] - self.counts[shard])

    def _make_row(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in the order of an epoch, and where each ends in their row."""
        numbers = np.arange(len(self.counts), dtype=np.uint64)
        order = permute(numbers, len(self.counts), key(self.seed, "shards", epoch)).astype(np.int64)
        return order, np.cumsum(self.counts[order])

    def _make_lane(self, epoch: int, lane: int) -> Lane:
        _, ends = self._row(epoch)
        start, stop = lane * self.total // self.lanes, (lane + 1) * self.total // self.lanes
        inside = ends[(ends > start) & (ends < stop)]
        return Lane(start, stop, np.array([start, *inside[self.group - 1 :: self.group], stop]))
