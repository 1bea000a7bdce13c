"""Work in parts that fit in memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Part = TypeVar("Part")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the host is out of memory."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    says_so = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return says_so or isinstance(error, MemoryError | torch.OutOfMemoryError)


def in_parts(work: Callable[[slice], Part], count: int, size: int, least: int = 1) -> Iterator[Part]:
    """The results of `work` on 0 .. count - 1, in order, a part at a time.

    A part that does not fit in memory is halved, and so are those after it.

    Args:
        work: Given a part, within range(count).
        count: Number of items.
        size: Items in a part at most.
        least: A size that certainly fits: the error of a part of at most this size is raised.
    """
    done = 0
    while done < count:
        part = slice(done, min(done + size, count))
        many = part.stop - part.start
        try:
            made = work(part)
        except (MemoryError, RuntimeError) as error:
            if many <= least or not is_out_of_memory(error):
                raise
            size = many // 2
            continue
        done = part.stop
        yield made
