"""A run beside other processes: it says so, and its threads spin for less meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from flowimg.machine.cores import Neighbours, shared_sentence
from flowimg.training.loop import Callback
from flowimg.training.state import Training


@contextmanager
def watch_cores(device: torch.device, barriers: bool, say: Callable[[str], None]) -> Iterator[Callback]:
    """A callback of the loop: on a CPU, say once if other processes use cores that this run needs."""
    neighbours, said = Neighbours(barriers), False

    def callback(_: Training) -> None:
        nonlocal said
        threads = torch.get_num_threads()
        others = neighbours.look(threads)
        if others is not None and not said:
            say(f"machine   {shared_sentence(others, threads)}")
            said = True

    try:
        yield callback if device.type == "cpu" else lambda _: None
    finally:
        neighbours.close()
