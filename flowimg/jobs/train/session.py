"""What everything shares that happens during one start of a run."""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn

from flowimg.build.facts import DataFacts
from flowimg.build.sampler import build_sampler
from flowimg.data.batches import Batches
from flowimg.runs.folder import RunFolder
from flowimg.runs.guides import early_snapshot
from flowimg.runs.opening import open_run
from flowimg.runs.signals import StopRequests
from flowimg.runs.status import Status
from flowimg.sampling.sampler import Sampler
from flowimg.settings.run import Config
from flowimg.settings.sampling import EARLY, Solving
from flowimg.spaces.space import Space
from flowimg.training.state import Training
from flowimg.training.strategies import Strategy


@dataclass(frozen=True)
class Span:
    """The steps of one start: from the one that it continues from (None: a new run) to its last."""

    began: int | None
    until: int

    def due(self, state: Training, every: int) -> bool:
        """Every N steps and at the end, also an early one; not at the step where a start begins."""
        return (state.step % every == 0 or self.is_last(state)) and state.step != (self.began or 0)

    def is_last(self, state: Training) -> bool:
        """Whether all processes end after this step."""
        return state.step == self.until or bool(state.seen.stop)


@dataclass
class Session:
    """One start of a run, for its callbacks.

    `thread` runs beside the loop and writes averages and checkpoints in their order; `last` is the newest line of
    metrics. `guide` is another run's network, which autoguidance of the grids goes away from.
    """

    config: Config
    folder: RunFolder
    facts: DataFacts
    space: Space
    batches: Batches
    strategy: Strategy
    span: Span
    requests: StopRequests
    status: Status
    thread: Executor
    guide: nn.Module | None = None
    last: dict[str, Any] = field(default_factory=dict)

    def sampler(self, field: nn.Module, step: int, how: Solving | None = None) -> Sampler:
        """A sampler through this field of this step, that draws as the grids are drawn unless `how` says otherwise."""
        asked = self.config.grid.guide
        guide = early_guide(self.folder, step, self.strategy) if asked == EARLY else self.guide
        drawn = how or self.config.grid
        return build_sampler(field, self.config, self.space, drawn, self.strategy.autocast, guide=guide)


def early_guide(folder: RunFolder, step: int, strategy: Strategy) -> nn.Module | None:
    """The run's own network from early in its training; None where it keeps none yet.

    Of its snapshots, as checkpoints may be deleted meanwhile; one process looks for all.
    """
    found: list[Any] = [early_snapshot(folder, step) if strategy.is_first else None]
    broadcast_object_list(found)
    if found[0] is None:
        return None
    return open_run(str(folder.path), found[0].weights, found[0].step, strategy.device).field
