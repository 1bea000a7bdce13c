"""What everything shares that happens during one start of a run."""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from flowimg.build.facts import DataFacts
from flowimg.build.sampler import build_sampler
from flowimg.data.batches import Batches
from flowimg.errors import CheckpointError, SettingsError
from flowimg.runs.folder import RunFolder
from flowimg.runs.guides import early_snapshot, open_snapshot
from flowimg.runs.opening import OpenRun
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
    metrics. `other` is another run that autoguidance of the grids goes away from; `early` is this one, as it was.
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
    other: OpenRun | None = None
    last: dict[str, Any] = field(default_factory=dict)
    early: OpenRun | None = None

    def guide(self, step: int) -> OpenRun | None:
        """What autoguidance of the grids goes away from at a step; None where there is none, or none yet."""
        if self.config.grid.guide != EARLY:
            return self.other
        found: list[Any] = [early_snapshot(self.folder, step) if self.strategy.is_first else None]
        broadcast_object_list(found)  # one looks for all, as snapshots are written meanwhile
        if found[0] is None or (self.early and self.early.step == found[0].step):
            return None if found[0] is None else self.early
        opened, device = None, self.strategy.device
        try:
            opened = open_snapshot(self.folder, found[0], self.config, self.facts, device)
        except (OSError, SettingsError, CheckpointError) as error:
            print(f"warning   no guide at step {step} ({error})")
        there = self.strategy.gather_rows(torch.tensor([opened is not None], device=device))
        self.early = opened if bool(there.all()) else None
        return self.early

    def sampler(self, field: nn.Module, how: Solving, guide: OpenRun | None) -> Sampler:
        """A sampler through this field."""
        away = guide.field if guide else None
        return build_sampler(field, self.config, self.space, how, self.strategy.autocast, guide=away)
