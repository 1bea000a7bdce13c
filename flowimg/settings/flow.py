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


class IndependentCoupling(Settings):
    """Noise and data as they were drawn."""

    kind: Literal["independent"] = "independent"


class OTCoupling(Settings):
    """Minibatch optimal transport within blocks of the batch."""

    kind: Literal["ot"] = "ot"
    block: Annotated[int, Field(ge=2, le=512)] = 256
    """Places of the global batch that may exchange noise."""


class TimesBase(Settings):
    """What every distribution of training times has."""

    stratified: bool = True
    """Spread the times evenly over the whole batch."""
    shift: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 moves times towards noise, below 1 towards data."""


class UniformTimes(TimesBase):
    """Every flow time alike."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalTimes(TimesBase):
    """logit(t) is normal."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Mean of logit(t); above 0 favours times near the data."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of logit(t)."""


class SkewedTimes(TimesBase):
    """logit(t) ~ N(1.2, 1.2^2), not below 1e-4: Meta's CIFAR-10 recipe."""

    kind: Literal["skewed"] = "skewed"


class NoWeighting(Settings):
    """Every flow time counts alike."""

    kind: Literal["none"] = "none"


class CosmapWeighting(Settings):
    """2 / (pi (1 - 2t + 2t^2)): the middle counts twice as much as the ends."""

    kind: Literal["cosmap"] = "cosmap"


class PowerWeighting(Settings):
    """t^a (1 - t)^b, of mean 1: a 0 and b 2 weigh errors of the data alike, a 2 and b 0 those of the noise."""

    kind: Literal["power"] = "power"
    a: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Power of t."""
    b: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Power of 1 - t."""
