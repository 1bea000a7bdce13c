"""Settings to a sampler: solvers, time grids, guidance, precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

from flowimg.build.flow import build_path
from flowimg.fields.guidance import Guide, guided
from flowimg.flow.paths import Path
from flowimg.flow.solvers import AB2, DOPRI5, EULER, HEUN, MIDPOINT, RK4, Solver, dopri5
from flowimg.flow.stochastic import CHURN, SDE, SDE2, Strength, churn, constant, middle, of_sigma, sde, sde2
from flowimg.flow.times import diffusers_grid, edm_grid, shift_times, uniform_grid
from flowimg.machine.precision import settle_precision
from flowimg.sampling.sampler import Sampler
from flowimg.settings.run import Config
from flowimg.settings.sampling import Solving
from flowimg.settings.verbs import Drawing
from flowimg.spaces.space import Space

DrawingT = TypeVar("DrawingT", bound=Drawing)

SOLVERS = {
    "euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4, "ab2": AB2, "dopri5": DOPRI5,
    "sde": SDE, "sde2": SDE2, "churn": CHURN,
}  # fmt: skip
"""The solvers, as they are without further settings."""
TUNED: dict[str, Callable[[Solving], Solver]] = {
    "dopri5": lambda how: dopri5(how.tolerance),
    "sde": lambda how: sde(_strength(how)),
    "sde2": lambda how: sde2(_strength(how)),
    "churn": lambda how: churn(how.noise_strength, how.num_steps, how.noise_interval),
}
"""Solvers that have settings of their own."""
NOISE_SHAPES: dict[str, Callable[[Path, float], float]] = {"sigma": of_sigma, "constant": constant, "middle": middle}

TIME_GRIDS = {"uniform": uniform_grid, "edm": edm_grid, "diffusers": diffusers_grid}


def build_solver(how: Solving) -> Solver:
    """The solver of these settings, with their tolerance or noise."""
    return TUNED[how.solver](how) if how.solver in TUNED else SOLVERS[how.solver]


def _strength(how: Solving) -> Strength:
    return Strength(how.noise_strength, NOISE_SHAPES[how.shape_of_noise], how.noise_interval)


def build_times(how: Solving) -> Tensor:
    """The times that the solver visits, from 0 (noise) to 1 (data)."""
    if SOLVERS[how.solver].adaptive:
        return uniform_grid(1)
    return shift_times(TIME_GRIDS[how.times](how.num_steps), how.shift)


def build_sampler(
    field: nn.Module,
    config: Config,
    space: Space,
    how: Solving,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    batch_size: int | None = None,
    guide: nn.Module | None = None,
) -> Sampler:
    """A sampler with the solver, times and guidance of `how`.

    Args:
        field: The network, on its device.
        config: The run.
        space: The space of its samples.
        how: The solver settings.
        precision: Gives a context to evaluate the network in.
        batch_size: Samples per batch; by default the usual number of the space.
        guide: The network of autoguidance, on the same device.
    """
    away = Guide(guide, how.autoguidance, how.guide_interval) if guide else None
    velocity, device = guided(field, how.guidance, how.guidance_interval, away), next(field.parameters()).device
    solver, times, path = build_solver(how), build_times(how), build_path(config)
    return Sampler(velocity, space.shape, solver, times, device, batch_size or space.at_once, precision, path)


def settle(settings: DrawingT, config: Config) -> DrawingT:
    """The same settings of a verb that draws, with precision `auto` settled for this device."""
    precision = settle_precision(settings.precision, config.field.fast_in_bf16)
    return settings.model_copy(update={"precision": precision})
