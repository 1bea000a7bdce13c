"""What looking at a run may take of its time: on a slow machine, grids and figures would take longer than the steps."""

from dataclasses import dataclass

import torch

from flowimg.jobs.train.metrics import duration
from flowimg.settings.sampling import Grid, Solving
from flowimg.training.state import Training

SHARE, SECONDS = 0.1, 60.0
"""Share of the time of the steps that grids may take, or figures, and the seconds that they may take in any case."""
LEAST_STEPS = 5
"""Fewest solver steps of a grid that is worth drawing."""
FIGURE_SAMPLES = 100
"""About the number of samples in the figures of a run."""


def allowed(state: Training) -> float:
    """The seconds that grids may take, or figures."""
    return max(SECONDS, SHARE * state.seconds)


def sampling_seconds(state: Training, began: int, count: int, how: Solving) -> float:
    """Seconds that a solver step of `count` samples takes, by the time of the training steps since `began`.

    An evaluation is a third of what a training step does with a sample.
    """
    seen = max(state.step - began, 1) * state.objective.batch_size
    return how.evaluations * count * state.seconds / (3 * seen)


@dataclass
class Pace:
    """What the grids of a start took: seconds in all, and seconds per solver step of the last one."""

    seconds: float = 0.0
    each: float = 0.0

    def add(self, seconds: float, steps: int) -> None:
        """Another grid."""
        self.seconds, self.each = self.seconds + seconds, seconds / steps

    def affordable(self, state: Training, began: int, grid: Grid) -> Grid | None:
        """How the next grid is drawn: as the settings say, with fewer solver steps, or not at all."""
        strategy = state.strategy
        each = self.each or sampling_seconds(state, began, 2 * grid.count, grid)  # averaged and raw weights
        fits = min((allowed(state) - self.seconds) / max(each, 1e-9), grid.num_steps)
        steps = int(strategy.gather_rows(torch.tensor([fits], device=strategy.device)).min())
        if steps == grid.num_steps:
            return grid
        steps = 0 if grid.adaptive or steps < LEAST_STEPS else steps
        if strategy.is_first:
            how = f"drawn in {steps} solver steps" if steps else "not drawn"
            whole = f"{grid.num_steps} solver steps would take {duration(each * grid.num_steps)}"
            print(f"grid      {how}: {whole}; grids may take {100 * SHARE:.0f} % of the steps' time")
        return grid.model_copy(update={"num_steps": steps}) if steps else None
