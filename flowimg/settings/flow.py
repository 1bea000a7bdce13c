"""The flow-matching problem: path, coupling, training times and weighting."""

from typing import Annotated, Literal

from pydantic import Field

from flowimg.settings.base import Settings


class LinearPath(Settings):
    """Straight lines: x_t = (1 - t) x_0 + t x_1."""

    kind: Literal["linear"] = "linear"


class CosinePath(Settings):
    """The variance-preserving arc: x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1."""

    kind: Literal["cosine"] = "cosine"


Path = LinearPath | CosinePath


class IndependentCoupling(Settings):
    """Independent noise and data."""

    kind: Literal["independent"] = "independent"


class OTCoupling(Settings):
    """Minibatch optimal transport within blocks of the batch."""

    kind: Literal["ot"] = "ot"
    block: Annotated[int, Field(ge=2, le=512)] = 256
    """Noise is exchanged only within blocks of this many consecutive positions in the global batch."""


Coupling = IndependentCoupling | OTCoupling


class TimesBase(Settings):
    """What every distribution of training times has."""

    stratified: bool = True
    """Spread the times evenly over the whole batch."""
    shift: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 moves times towards noise, below 1 towards data."""


class UniformTimes(TimesBase):
    """Uniform flow times."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalTimes(TimesBase):
    """Flow times whose logit is normal."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Mean of logit(t); above 0 favours times near the data."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of logit(t)."""


class SkewedTimes(TimesBase):
    """Meta's CIFAR-10 recipe: logit(t) ~ N(1.2, 1.2^2), with t at least 1e-4."""

    kind: Literal["skewed"] = "skewed"


Times = UniformTimes | LogitNormalTimes | SkewedTimes


class NoWeighting(Settings):
    """The same weight for every flow time."""

    kind: Literal["none"] = "none"


class CosmapWeighting(Settings):
    """w(t) = 2 / (pi (1 - 2t + 2t^2)): the middle weighs twice as much as the ends."""

    kind: Literal["cosmap"] = "cosmap"


class PowerWeighting(Settings):
    """w(t) ~ t^a (1 - t)^b, with mean 1; a = 0, b = 2 weighs errors of predicted data evenly, a = 2, b = 0 of noise."""

    kind: Literal["power"] = "power"
    a: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Power of t."""
    b: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Power of 1 - t."""


Weighting = NoWeighting | CosmapWeighting | PowerWeighting
