"""Draws made ahead of the steps, in a thread beside the loop."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Generic, TypeVar

import torch


def beside(name: str) -> ThreadPoolExecutor:
    """A thread beside the loop, for work with tensors.

    It uses one thread of torch: with a second pool of them in the process, those of the loop sleep and wake at every
    operation. (The same holds for threads started later; one that has used torch before keeps its number.)
    """
    return ThreadPoolExecutor(1, name, torch.set_num_threads, (1,))


keep_last = lru_cache(maxsize=1)
"""Data with a cache of the last batch: micro-batches may share a block of a coupling."""

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Draws made in a thread while earlier steps are computed; equal to draws made on demand.

    Args:
        make: Makes the draw of a step at some positions.
        positions: The positions that a step requests, in that order, all different.
        depth: Number of micro-batches to have ready at most.
    """

    def __init__(self, make: Callable[[int, range], T], positions: list[range], depth: int = 2) -> None:
        self.make, self.positions, self.depth = make, positions, depth
        self.thread = beside("data")
        self.ready: deque[tuple[tuple[int, range], Future[T]]] = deque()

    def __call__(self, step: int, positions: range) -> T:
        """The draw that was made ahead, or else one made now."""
        if positions not in self.positions:
            return self.thread.submit(self.make, step, positions).result()
        while self.ready and self.ready[0][0] != (step, positions):
            self.ready.popleft()[1].cancel()
        while len(self.ready) <= self.depth:
            now = self._next(*self.ready[-1][0]) if self.ready else (step, positions)
            self.ready.append((now, self.thread.submit(self.make, *now)))
        return self.ready.popleft()[1].result()

    def _next(self, step: int, positions: range) -> tuple[int, range]:
        number = self.positions.index(positions) + 1
        return (step, self.positions[number]) if number < len(self.positions) else (step + 1, self.positions[0])

    def close(self) -> None:
        """Wait for the draw that is being made, and make no more."""
        self.thread.shutdown(cancel_futures=True)
