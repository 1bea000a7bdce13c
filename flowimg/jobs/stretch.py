"""The steps of one start of a run, and what is due at which of them."""

from dataclasses import dataclass

from flowimg.training.loop import Training


@dataclass(frozen=True)
class Stretch:
    """From the step that a run goes on from (None: it is new) to the last one of this start."""

    began: int | None
    until: int

    def due(self, state: Training, every: int) -> bool:
        """Every N steps and at the end, also an early one; not at the step where a start begins."""
        return (state.step % every == 0 or self.is_last(state)) and state.step != (self.began or 0)

    def is_last(self, state: Training) -> bool:
        """Whether all processes end after this step."""
        return state.step == self.until or bool(state.seen.stop)
