"""Settings to the flow-matching problem: paths, couplings, training times, weightings, schedules."""

from collections.abc import Callable
from typing import Any

from flowimg.flow.couplings import Coupling, Independent, OptimalTransport
from flowimg.flow.objectives import FlowMatching
from flowimg.flow.paths import Cosine, Linear, Path
from flowimg.flow.times import LogitNormal, TimeDistribution, Uniform, skewed
from flowimg.flow.weightings import Power, Weighting, cosmap
from flowimg.settings.run import Config
from flowimg.training.schedules import Schedule, constant, cosine, linear

PATHS: dict[str, Callable[[Any], Path]] = {"linear": lambda s: Linear(), "cosine": lambda s: Cosine()}

COUPLINGS: dict[str, Callable[[Any], Coupling]] = {
    "independent": lambda s: Independent(),
    "ot": lambda s: OptimalTransport(s.block),
}

TIMES: dict[str, Callable[[Any], TimeDistribution]] = {
    "uniform": lambda s: Uniform(),
    "logit_normal": lambda s: LogitNormal(s.mean, s.std),
    "skewed": lambda s: skewed(),
}

WEIGHTINGS: dict[str, Callable[[Any], Weighting | None]] = {
    "none": lambda s: None,
    "cosmap": lambda s: cosmap,
    "power": lambda s: Power(s.a, s.b),
}

SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine, "linear": linear}


def build_path(config: Config) -> Path:
    """The path of a run."""
    return PATHS[config.path.kind](config.path)


def build_objective(config: Config) -> FlowMatching:
    """The objective of a run."""
    return FlowMatching(
        path=build_path(config),
        coupling=COUPLINGS[config.coupling.kind](config.coupling),
        times=TIMES[config.times.kind](config.times),
        stratified=config.times.stratified,
        shift=config.times.shift,
        drops=config.drops,
        batch_size=config.train.batch_size,
        seed=config.seed,
        weighting=WEIGHTINGS[config.weighting.kind](config.weighting),
    )
