"""Two flags that all processes agree on at every step: was it finite, and is a stop requested. No host waits for them.

    bad     = the largest over the processes of (loss or gradient norm is not finite)
    stop    = the strongest stop request over the processes (0: none)

from which each process computes in_row = bad (in_row + 1) and skipped = skipped + bad. With CUDA the flags stay on the
device, where they make the optimiser and the averages skip the step, and the host reads those of the step before, which
is done by then. Elsewhere they are on the host: a CPU has nothing to wait for, and Metal's fused steps ignore flags.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.training.strategies import Strategy


class Reading(NamedTuple):
    """What the host has read: skipped steps in a row and in all, and the strongest stop request."""

    in_row: int = 0
    skipped: int = 0
    stop: int = 0


class StepFlags:
    """The flags of a run's steps, shared by its processes."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.late = strategy.device.type == "cuda"
        self.flags = torch.zeros(2, device=strategy.device if self.late else "cpu")
        self.bad, self.stop = self.flags.unbind()
        self.copies = [torch.zeros(2, pin_memory=self.late) for _ in range(2)]
        self.events = [torch.cuda.Event() for _ in range(2)] if self.late else []
        self.steps = self.heard = 0
        self.reading = Reading()

    def start_at(self, in_row: int, skipped: int) -> None:
        """Continue the counts of a checkpoint."""
        self.reading = Reading(in_row, skipped)

    def counted(self) -> dict[str, int]:
        """Skipped steps in a row and in all up to this one; waits for the device, and does not change `reading`."""
        now = self._after(self.steps)
        return {"in_row": now.in_row, "skipped": now.skipped}

    @torch.no_grad()
    def share(self, number: Tensor, stop: int) -> Tensor | float:
        """Agree on a step.

        Args:
            number: Not finite if this process found the step not finite; shape ().
            stop: The stop request of this process; 0 for none.
        Returns:
            1.0 if all processes must skip the step, else 0.0: with CUDA a tensor of shape () on the device, valid until
            the next step; elsewhere a number.
        """
        if self.late:
            # x - x is 0, and of what is not finite it is not a number: two small kernels, where isfinite is four
            torch.ne(number - number, 0, out=self.bad)
            self.stop.fill_(stop)
        else:
            self.flags.numpy()[:] = not math.isfinite(number.cpu().numpy()), stop
        self.strategy.largest(self.flags)
        if self.late:
            self.copies[self.steps % 2].copy_(self.flags, non_blocking=True)
            self.events[self.steps % 2].record()
        self.steps += 1
        return self.bad if self.late else float(self.bad.numpy())

    def read(self) -> Reading:
        """After every `share`: what the host can read without waiting for the newest step; the same everywhere."""
        upto = max(0, self.steps - self.late)
        self.reading, self.heard = self._after(upto), upto
        return self.reading

    def _after(self, steps: int) -> Reading:
        """The counts after this many steps, of which all but the last two are in `reading`."""
        in_row, skipped, stop = self.reading
        for step in range(self.heard, steps):
            if self.late:
                self.events[step % 2].synchronize()
            flags = self.copies[step % 2] if self.late else self.flags
            bad, stop = (int(value) for value in flags.numpy())
            in_row, skipped = bad * (in_row + 1), skipped + bad
        return Reading(in_row, skipped, stop)
