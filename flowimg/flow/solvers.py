"""Solvers of dx/dt = v(x, t): one step function each, one loop over the times.

A step goes from time t to time s and may evaluate v anywhere between; h = s - t, negative on the way back:

    euler     x + h v(x, t)                                          order 1, 1 evaluation
    midpoint  x + h v(x + h/2 v(x, t), t + h/2)                      order 2, 2
    heun      x + h/2 (k1 + k2),  k2 = v(x + h k1, s)                order 2, 2
    rk4       x + h/6 (k1 + 2 k2 + 2 k3 + k4)                        order 4, 4
    ab2       x + h ((1 + h / 2g) v - (h / 2g) v'),  v' one step (of length g) before    order 2, 1
    dopri5    as many steps as its error estimate asks for               order 5, 6 each and 2 at the start

Those that draw noise on the way are in `stochastic`.

t = 0 is noise and t = 1 is data; a falling grid of times carries data back to noise.
Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, chapter II (dopri5: II.5) and III.5 (ab2, by
Adams and Bashforth, for steps of any length); dopri5 by torchdiffeq, github.com/rtqichen/torchdiffeq.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.errors import FlowError
from flowimg.flow.condition import Condition, Velocity
from flowimg.flow.paths import Linear, Path


class Slope:
    """(x, t) -> dx/dt with one time for the whole batch: what a step function sees of a velocity.

    `last` is the newest evaluation, its time and its result, or None before the first: multistep methods use it.
    Stochastic ones use the `path`, and `noise(x)`: standard normal, new at every step, a function of seed and step.
    `number` is that of the solver step, and `nfe` counts the evaluations of the network as they happen.
    """

    def __init__(
        self, velocity: Velocity, cond: Condition | None, path: Path, noise: Callable[[int, Tensor], Tensor] | None
    ) -> None:
        self.velocity, self.cond, self.path, self._noise = velocity, cond, path, noise
        self.evaluations = getattr(velocity, "evaluations", lambda t: 1)
        self.nfe = self.number = 0
        self.last: tuple[float, Tensor] | None = None

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.nfe += self.evaluations(t)
        v = self.velocity(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device), self.cond)
        self.last = t, v
        return v

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise for this solver step, shape of x."""
        if self._noise is None:
            raise ValueError("a stochastic solver needs noise: pass noise, (solver step, x) -> standard normal")
        return self._noise(self.number, x)


class Solver(NamedTuple):
    """A step function `(slope, x, t, s) -> x at s`, and its order: the error of a flow is O(h^order).

    An adaptive one chooses its own steps between t and s: give it two times. A stochastic one draws noise, once a step
    at most. A multistep one uses the step before, so its times cannot turn back.
    """

    step: Callable[[Slope, Tensor, float, float], Tensor]
    order: int
    adaptive: bool = False
    stochastic: bool = False
    multistep: bool = False


class Flow(NamedTuple):
    """Where the flow ended, (B, *D); evaluations of the network a sample; all states (N + 1, B, *D) if asked."""

    x: Tensor
    nfe: int
    trajectory: Tensor | None


def euler_step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """Go along the tangent."""
    return x + (s - t) * v(x, t)


def midpoint_step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """Go along the slope at the midpoint."""
    middle = (t + s) / 2
    return x + (s - t) * v(x + (middle - t) * v(x, t), middle)


def heun_step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """Go along the mean of the slopes at both ends."""
    k1 = v(x, t)
    k2 = v(x + (s - t) * k1, s)
    return x + (s - t) / 2 * (k1 + k2)


def rk4_step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """The classical Runge-Kutta step."""
    h, middle = s - t, (t + s) / 2
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, middle)
    k3 = v(x + h / 2 * k2, middle)
    k4 = v(x + h * k3, s)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def ab2_step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
    """Go along the line through this slope and the previous one; the first step, which has none, is Euler's."""
    last, slope = v.last, v(x, t)
    if last is None:
        return x + (s - t) * slope
    lean = (s - t) / (2 * (t - last[0]))
    return x + (s - t) * ((1 + lean) * slope - lean * last[1])


def dopri5(tolerance: float) -> Solver:
    """Dormand and Prince's method of order 5, which chooses its steps by an estimate of their error.

    One step length serves the whole batch, so a sample depends on the others in its batch, to the tolerance.

    Args:
        tolerance: Largest error of a step, relative to 1 + |x|.
    """

    def step(v: Slope, x: Tensor, t: float, s: float) -> Tensor:
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        ends = torch.tensor([t, s], dtype=exact, device=x.device)
        low, high = min(t, s), max(t, s)
        # its first guess and its last step would look beyond the ends, where no field was trained
        options = {"step_t": ends[1:]}
        slope = lambda at, x: v(x, min(max(float(at.detach()), low), high))  # noqa: E731
        try:
            from torchdiffeq import odeint  # and scipy with it, which no other solver needs to wait for

            return odeint(slope, x, ends, method="dopri5", rtol=tolerance, atol=tolerance, options=options)[-1]
        except AssertionError:  # its steps became too short for the clock
            raise FlowError(
                f"dopri5 finds no step short enough for the tolerance {tolerance:g}: the field may not be finite, or "
                "too rough for it; use a larger tolerance or another solver"
            ) from None

    return Solver(step, order=5, adaptive=True)


EULER = Solver(euler_step, order=1)
MIDPOINT = Solver(midpoint_step, order=2)
HEUN = Solver(heun_step, order=2)
RK4 = Solver(rk4_step, order=4)
AB2 = Solver(ab2_step, order=2, multistep=True)
DOPRI5 = dopri5(1e-5)
LINEAR = Linear()


def integrate(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    solver: Solver = EULER,
    cond: Condition | None = None,
    trajectory: bool = False,
    *,
    path: Path = LINEAR,
    noise: Callable[[int, Tensor], Tensor] | None = None,
    hook: Callable[[Tensor, float], Tensor] | None = None,
    turns: bool = False,
) -> Flow:
    """Follow the velocity through the given times.

    Args:
        velocity: (x, t, cond) -> v; one that evaluates a network more than once a call says how often by a method
            `evaluations(t) -> int` (guidance does).
        x: State at times[0], shape (B, *D).
        times: Strictly rising or strictly falling, shape (N + 1,); 0 is noise, 1 is data.
        solver: The step function to use.
        cond: Passed on to the velocity.
        trajectory: Keep the state at every time.
        path: The path that the velocity belongs to; stochastic solvers ask for it.
        noise: (solver step, x) -> standard normal noise, shape of x; stochastic solvers need it.
        hook: (x, t) -> x, called after every step: it may replace the state.
        turns: The times may turn back, where the solver keeps nothing of the step before.

    Returns:
        The state at times[-1], the evaluations counted as they happened, and the trajectory or None.

    Raises:
        ValueError: If the times do not run strictly one way.
    """
    steps = times.flatten().diff()
    one_way = bool((steps > 0).all()) or bool((steps < 0).all())
    may_turn = turns and not solver.multistep and bool((steps.abs() > 0).all())
    if times.ndim != 1 or len(steps) == 0 or not (one_way or may_turn):
        raise ValueError(f"solver times must strictly rise or strictly fall and be at least two, not {times.tolist()}")
    slope = Slope(velocity, cond, path, noise)
    states = [x]
    for number, (t, s) in enumerate(pairwise(times.tolist())):
        slope.number = number
        x = solver.step(slope, x, t, s)
        if hook is not None:
            x = hook(x, s)
        if trajectory:
            states.append(x)
    return Flow(x, slope.nfe, torch.stack(states) if trajectory else None)
