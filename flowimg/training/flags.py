"""What all processes agree on at every step: was it finite, and does anybody want to stop. No host waits for it.

    bad     = the largest over the processes of (loss or gradient norm is not finite)
    stop    = the largest over the processes of what each was asked for (0: nothing)

and from it, each for itself, in_row = bad (in_row + 1) and skipped = skipped + bad. With CUDA the two flags stay on the
device, where they hold the optimiser and the average back, and the host reads those of the step before, which is done
by then. Elsewhere they are the host's own: a CPU has nothing to wait for, and Metal's fused steps do not look at flags.
Every process reads the same.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.training.strategies import Strategy


class Reading(NamedTuple):
    """What the host knows: skipped steps in a row and in all, and the largest wish to stop."""

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
        """Go on counting where a checkpoint left off."""
        self.reading = Reading(in_row, skipped)

    def counted(self) -> dict[str, int]:
        """Skipped steps in a row and in all up to this one; waits for the device, and leaves alone what is read."""
        now = self._after(self.steps)
        return {"in_row": now.in_row, "skipped": now.skipped}

    @torch.no_grad()
    def share(self, number: Tensor, stop: int) -> Tensor | float:
        """Agree on a step.

        Args:
            number: Not finite if this process found the step not finite; shape ().
            stop: What this process was asked for; 0 for nothing.
        Returns:
            1.0 if the step must move nothing, on any process, else 0.0: with CUDA a tensor of shape () on the device,
            until the next step; elsewhere a number.
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
        """After every `share`: what the host can have without waiting for the newest step; the same everywhere."""
        upto = max(0, self.steps - self.late)
        self.reading, self.heard = self._after(upto), upto
        return self.reading

    def _after(self, steps: int) -> Reading:
        """The counts after so many steps, of which all but two are in `reading`."""
        in_row, skipped, stop = self.reading
        for step in range(self.heard, steps):
            if self.late:
                self.events[step % 2].synchronize()
            flags = self.copies[step % 2] if self.late else self.flags
            bad, stop = (int(value) for value in flags.numpy())
            in_row, skipped = bad * (in_row + 1), skipped + bad
        return Reading(in_row, skipped, stop)
