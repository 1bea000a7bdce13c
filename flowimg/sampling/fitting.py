"""Work in parts that memory has room for."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Part = TypeVar("Part")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at an end, on a GPU or on a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def in_parts(work: Callable[[slice], Part], count: int, size: int, least: int = 1) -> Iterator[Part]:
    """What `work` makes of 0 .. count - 1, in order, a part at a time.

    A part that memory has no room for is halved, and so are those after it.

    Args:
        work: Given a part, within range(count).
        count: How many in all.
        size: Of a part, at most.
        least: What fits for certain: the error of a part of so many or fewer is raised.
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
