"""Checking what a visitor of the page sent, and following the flow with it."""

import time
from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor

from flowimg.conditions import labels
from flowimg.errors import PageError
from flowimg.flow.randomness import SEEDS
from flowimg.jobs.drawing import sampler_of
from flowimg.runs.opening import OpenRun
from flowimg.settings.sampling import Solver, Stochastic
from flowimg.settings.verbs import Drawing

STEPS, GUIDANCE, SEED = 200, 10.0, SEEDS - 1
"""The largest values that the page may send."""


def solving(run: OpenRun, steps: Any, solver: Any, guidance: Any, precision: Any = "fp32", away: Any = None) -> Drawing:
    """The settings that a visitor chose, with the precision of the page.

    Raises:
        PageError: If they are out of bounds.
    """
    solvers = get_args(Solver)
    if solver not in solvers:
        raise PageError(f"the solver is one of {', '.join(solvers)}")
    number = whole(steps, "steps", 1, STEPS)
    if number == 1 and solver in get_args(Stochastic):
        raise PageError(f"steps: {solver} draws its noise between steps, so give 2 or more")
    scale = 1.0 if guidance is None else guidance
    if not is_number(scale) or not 0 <= scale <= GUIDANCE:
        raise PageError(f"guidance is a number from 0 to {GUIDANCE:g}, not {_short(guidance)}")
    if scale != 1 and not guidable(run):
        raise PageError("this run has no classes to guide towards: leave guidance at 1")
    chosen: dict[str, Any] = {"solver": solver, "num_steps": number, "guidance": float(scale), "precision": precision}
    if away is not None and (not is_number(away) or not 0 <= away <= GUIDANCE):
        raise PageError(f"autoguidance is a number from 0 to {GUIDANCE:g}, not {_short(away)}")
    if away not in (None, 1):
        if getattr(run, "guide", None) is None:
            raise PageError("this page has no guide: leave autoguidance at 1, or start it with --guide early")
        chosen |= {"guide": "the page's", "guide_scale": float(away)}
    return Drawing(run=str(run.folder.path), tolerance=1e-4, **chosen)


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number within bounds.

    Raises:
        PageError: If it is anything else.
    """
    if not is_number(value) or not low <= value <= high or value != int(value):
        raise PageError(f"{name}: give a whole number from {low} to {high}, not {_short(value)}")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether a value of the page is a number; it may be infinite or nan."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def class_number(run: OpenRun, label: Any) -> int | None:
    """The class a visitor chose by name; None in a run without classes.

    Raises:
        PageError: If there is no such class.
    """
    classes = run.facts.classes
    if not classes:
        return None
    number = labels.class_number(label, classes)
    if number is None:
        raise PageError(f"there is no class {_short(label)}: {labels.there_are(classes, label)}")
    return number


def guidable(run: OpenRun) -> bool:
    """Whether the run was trained with and without its classes."""
    return bool(run.facts.classes) and run.config.train.label_drop > 0


def travel(
    run: OpenRun, how: Drawing, x_0: Tensor, label: int | None, times: Sequence[float],
    seeds: Sequence[int] | None = None,
) -> tuple[Tensor, str]:  # fmt: skip
    """The states at these times, shape (T, B, *D), on the CPU, and how they were made.

    Raises:
        PageError: If they are not finite.
    """
    began = time.perf_counter()
    cond = labels.labelled(label, len(x_0), run.facts.classes)
    states, nfe = sampler_of(run, how, batch_size=len(x_0)).follow(x_0, cond, times, seeds=seeds)
    if not bool(states.isfinite().all()):
        raise PageError("the result is not finite: use more steps or less guidance")
    return states, f"{told_of(how, nfe)}, {time.perf_counter() - began:.1f} s"


def told_of(how: Drawing, nfe: int) -> str:
    """How pictures were made, as the page says it."""
    guidance = f", guidance {how.guidance:g}" if how.guidance != 1 else ""
    guidance += f", autoguidance {how.autoguidance:g}" if how.guide else ""
    steps = "" if how.adaptive else f" in {how.num_steps} steps"
    return f"{how.solver}{steps}{guidance}: {nfe} evaluations of the network"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else text[:30] + "..."
