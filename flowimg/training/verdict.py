"""What all processes agree on at every step: was it finite, and does anybody want to stop. No host waits for it.

    bad     = the largest over the processes of (loss or gradient norm is not finite)
    in_row  = bad (in_row + 1),    skipped = skipped + bad
    stop    = the largest over the processes of what each was asked for (0: nothing)

All of it stays on the device, where it holds the optimiser and the average back. The host reads the numbers of this
step where memory is shared with the device, and on a GPU those of the step before, which is done by then: every
process reads the same.
"""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor


class Reading(NamedTuple):
    """What the host knows: skipped steps in a row and in all, and the largest wish to stop."""

    in_row: int = 0
    skipped: int = 0
    stop: int = 0


class Verdict:
    """The flags of a run's steps, shared by its processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        device = accelerator.device
        self.many = accelerator.num_processes > 1
        self.shared = torch.zeros(2, device=device)
        self.bad, self.stop = self.shared.unbind()
        self.counts = torch.zeros(2, device=device)
        self.in_row, self.skipped = self.counts.unbind()
        self.apart, self.late = device.type != "cpu", device.type == "cuda"
        self.copies = [torch.zeros(2, 2, pin_memory=self.late) for _ in range(2)]
        self.events = [torch.cuda.Event() for _ in range(2)] if self.late else []
        self.steps = 0

    def start_at(self, in_row: int, skipped: int) -> None:
        """Go on counting where a checkpoint left off."""
        self.in_row.fill_(in_row)
        self.skipped.fill_(skipped)

    def counted(self) -> dict[str, int]:
        """Skipped steps in a row and in all up to this one; waits for the device."""
        in_row, skipped = (int(count) for count in self.counts.tolist())
        return {"in_row": in_row, "skipped": skipped}

    @torch.no_grad()
    def share(self, number: Tensor, stop: int) -> Tensor:
        """Agree on a step.

        Args:
            number: Not finite if this process found the step not finite; shape ().
            stop: What this process was asked for; 0 for nothing.
        Returns:
            1.0 if the step must move nothing, on any process, else 0.0; shape (), on the device, until the next one.
        """
        # x - x is 0, and of what is not finite it is not a number: two small kernels, where isfinite is four
        torch.ne(number - number, 0, out=self.bad)
        self.stop.fill_(stop)
        if self.many:
            torch.distributed.all_reduce(self.shared, torch.distributed.ReduceOp.MAX)
        self.counts.add_(self.bad)
        self.in_row.mul_(self.bad)
        if self.apart:
            copy = self.copies[self.steps % 2]
            copy[0].copy_(self.counts, non_blocking=self.late)
            copy[1].copy_(self.shared, non_blocking=self.late)
        if self.late:
            self.events[self.steps % 2].record()
        self.steps += 1
        return self.bad

    def read(self) -> Reading:
        """The numbers of the last step that the host can have without waiting for the newest; the same everywhere."""
        if self.steps == 0 or (self.late and self.steps == 1):
            return Reading()
        which = (self.steps - 1 - self.late) % 2
        if self.late:
            self.events[which].synchronize()
        counts, shared = self.copies[which] if self.apart else (self.counts, self.shared)
        (in_row, skipped), (_, stop) = counts.numpy(), shared.numpy()
        return Reading(int(in_row), int(skipped), int(stop))
