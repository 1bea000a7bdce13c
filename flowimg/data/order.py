"""The order of samples: a keyed permutation of the data set for each epoch, computed per index and never stored.

    p = step * batch_size + offset + position,   epoch = p // n
    index = permute(p mod n, n, key(seed, "order", epoch))

The permutation is a Feistel network on the smallest even number of bits that holds n, applied until the result is below
n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Its memory does not grow with n, a resumed run
needs only the step, and the order does not depend on the number of processes.

Streamed data cannot be read in arbitrary order, so `ShardOrder` shuffles in blocks. The shards of an epoch follow each
other in keyed order. This sequence of samples is cut into lanes of equal length, each for some positions of the batch.
In each lane one group of shards is open at a time, and their samples come in keyed order. A process reads only the
lanes of its positions.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowimg.data.listing import Ints
from flowimg.flow.randomness import key

ROUNDS = 8
RUN = 2**14
"""Indices that are permuted at once."""
BLOCK = 2**12
"""Most positions of a run whose samples are computed at once."""


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of 64-bit words in which every bit of the result depends on every bit of x (the splitmix64 finaliser)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def permute(index: NDArray[np.uint64], n: int, keyed: int) -> NDArray[np.uint64]:
    """Apply a keyed pseudo-random permutation of range(n) to each index.

    Args:
        index: Integers in [0, n), any shape.
        n: Size of the set, up to 2^62.
        keyed: The key; each key gives another permutation.

    Returns:
        Integers in [0, n), the shape of `index`.
    """
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    keys = _round_keys(keyed)
    index = np.asarray(index, np.uint64)
    found = np.empty(index.size, np.uint64)
    for start in range(0, index.size, RUN):  # as many as fit a core's cache
        x = index.ravel()[start : start + RUN]
        pending = np.arange(start, start + len(x))
        while len(pending):
            x = _network(x, half, keys)
            done = x < n
            found[pending[done]] = x[done]
            x, pending = x[~done], pending[~done]
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

    Batches continue across the end of an epoch; a set smaller than the batch wraps around.

    Args:
        seed: Seed of the run.
        step: Optimiser step, from 0.
        positions: Positions in the global batch.
        batch_size: Size of the global batch.
        n: Samples in the data set.
        offset: Samples seen beyond step * batch_size, if the batch size was different in earlier steps.

    Returns:
        Indices in [0, n), shape (len(positions),), int64; every epoch visits each sample once.
    """
    start = step * batch_size + offset + positions.start
    stop = start + len(positions)
    size = min(BLOCK, max(64, n))  # a long block of a tiny set would span many epochs
    blocks = range(start // size, -(-stop // size))
    rows = [_block(seed, n, size, b)[max(start - b * size, 0) : stop - b * size] for b in blocks]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows]))


@lru_cache(4)
def _block(seed: int, n: int, size: int, block: int) -> Ints:
    """The samples at `size` positions of a run; a batch is a slice of them, because numpy's calls are slow."""
    position = np.arange(block * size, (block + 1) * size, dtype=np.uint64)
    epoch, within = np.divmod(position, np.uint64(n))
    index = np.empty_like(within)
    for e in np.unique(epoch):
        index[epoch == e] = permute(within[epoch == e], n, key(seed, "order", int(e)))
    return index.astype(np.int64)


class ShardOrder:
    """The order of samples in shards of which only a few are open at a time.

    Of a batch of B positions and an epoch of N samples, lane l of L has the positions from l B / L to (l + 1) B / L and
    the samples from l N / L to (l + 1) N / L. So each epoch visits each sample once, and a sample is a function of
    (seed, step, position).

    Args:
        counts: Samples of each shard, shape (S,), none of them 0.
        open_shards: Shards that are open at a time, in total; more of them mix better and use more memory.
        seed: Seed of the run.
        batch_size: Size of the global batch.
    """

    def __init__(self, counts: Ints, open_shards: int, seed: int, batch_size: int) -> None:
        self.counts, self.seed, self.batch_size = counts, seed, batch_size
        self.total = int(counts.sum())
        most = min(open_shards, len(counts), batch_size)
        self.lanes = next(lanes for lanes in range(most, 0, -1) if batch_size % lanes == 0)
        self.group = max(1, open_shards // self.lanes)
        self._sequence = lru_cache(4)(self._make_sequence)
        self._edges = lru_cache(4 * self.lanes)(self._make_edges)

    def __call__(self, step: int, positions: range, offset: int = 0) -> tuple[Ints, Ints]:
        """The shards, and the rows in them, that a step sees at these positions.

        Args:
            step: Optimiser step, from 0.
            positions: Positions in the global batch.
            offset: Samples seen beyond step * batch_size, if the batch size was different in earlier steps.

        Returns:
            Shards and rows, each of shape (len(positions),).
        """
        width = self.batch_size // self.lanes
        seen = (step * self.batch_size + offset) // self.lanes
        parts: list[tuple[Ints, Ints]] = []
        for lane in self.lanes_of(positions):
            first, last = max(positions.start, lane * width), min(positions.stop, (lane + 1) * width)
            start, stop = self._span(lane)
            length = stop - start
            counter = seen + np.arange(first, last) - lane * width
            for epoch in range(int(counter[0]) // length, int(counter[-1]) // length + 1):
                within = counter[counter // length == epoch] % length
                parts += self._samples(epoch, lane, within)
        shards, rows = zip(*parts, strict=True)
        return np.concatenate(shards), np.concatenate(rows)

    def lanes_of(self, positions: range) -> range:
        """The lanes that have these positions of the batch."""
        width = self.batch_size // self.lanes
        return range(positions.start // width, -(-positions.stop // width))

    def _span(self, lane: int) -> tuple[int, int]:
        """Where a lane begins and ends in the sequence of an epoch's samples."""
        return lane * self.total // self.lanes, (lane + 1) * self.total // self.lanes

    def _samples(self, epoch: int, lane: int, within: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Shards and rows of some samples of a lane, one group of open shards after another."""
        order, ends = self._sequence(epoch)
        edges = self._edges(epoch, lane)
        position = edges[0] + within
        group = np.searchsorted(edges, position, side="right") - 1
        for number in np.unique(group).tolist():  # in order, as `within` rises
            low, high = int(edges[number]), int(edges[number + 1])
            keyed = key(self.seed, "open shards", epoch, lane, number)
            inside = (position[group == number] - low).astype(np.uint64)
            permuted = low + permute(inside, high - low, keyed).astype(np.int64)
            which = np.searchsorted(ends, permuted, side="right")
            shard = order[which]
            yield shard, permuted - (ends[which] - self.counts[shard])

    def _make_sequence(self, epoch: int) -> tuple[Ints, Ints]:
        """The shards in the order of an epoch, and where each ends in the sequence of its samples."""
        numbers = np.arange(len(self.counts), dtype=np.uint64)
        order = permute(numbers, len(self.counts), key(self.seed, "shards", epoch)).astype(np.int64)
        return order, np.cumsum(self.counts[order])

    def _make_edges(self, epoch: int, lane: int) -> Ints:
        """Where the groups of open shards of a lane begin in the sequence, and where the last one ends."""
        _, ends = self._sequence(epoch)
        start, stop = self._span(lane)
        inside = ends[(ends > start) & (ends < stop)]
        return np.array([start, *inside[self.group - 1 :: self.group], stop])
