"""The density that a flow gives its samples.

Along dx/dt = v(x, t) the log-density changes by minus the divergence of v, so with x_0 where x_1 comes from,

    log p_1(x_1) = log N(x_0; 0, I) - integral_0^1 div v(x_t, t) dt.

The divergence is the sum of D derivatives: exact, by one vector-Jacobian product each (points); or estimated by
Hutchinson's probes e of independent signs, div v = E <e, (dv/dx)^T e>, one product a probe (pictures), drawn once
for a whole flow.
Source: Chen et al. 2018, arXiv:1806.07366, theorem 1; Grathwohl et al. 2019, arXiv:1810.01367, section 3.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowimg.flow.condition import Condition, Velocity
from flowimg.flow.solvers import Solver, integrate


class LogDensity(NamedTuple):
    """Log-density of each sample in nats, (B,), float64; its noise x_0, (B, *D); evaluations of the network."""

    log_p: Tensor
    x_0: Tensor
    nfe: int


def log_density(
    velocity: Velocity,
    x_1: Tensor,
    times: Tensor,
    solver: Solver,
    cond: Condition | None = None,
    probes: Tensor | None = None,
) -> LogDensity:
    """Follow samples back to noise, and their density with them.

    The velocity sees x in the type of `x_1`; state and density are carried in float64, where the device has it. Where
    `x_1` requires a gradient, the result has one: that of the solver's steps, also in the parameters of the velocity.
    It keeps the graph of all steps in memory; otherwise nothing is kept.

    Args:
        velocity: A field, of which row b of v depends only on row b of x.
        x_1: Samples, shape (B, *D).
        times: From 0 to 1, as to draw samples, shape (N + 1,).
        solver: The step function; the divergence is integrated by the same.
        cond: Passed on to the velocity.
        probes: Signs, shape (K, B, *D), for Hutchinson's estimate; None for the exact divergence.

    Raises:
        ValueError: In torch.inference_mode, where there are no derivatives.
    """
    graph = x_1.requires_grad and torch.is_grad_enabled()
    exact = torch.float32 if x_1.device.type == "mps" else torch.float64

    def both(state: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        x = state[:, :-1].reshape(x_1.shape).to(x_1.dtype)
        v, divergence = velocity_and_divergence(velocity, x, t.to(x_1.dtype), cond, probes, graph)
        return torch.cat([v.flatten(1).to(exact), divergence[:, None].to(exact)], dim=1)

    state = torch.cat([x_1.flatten(1).to(exact), torch.zeros(len(x_1), 1, dtype=exact, device=x_1.device)], dim=1)
    flow = integrate(both, state, times.flip(0), solver, cond)
    x_0, gained = flow.x[:, :-1], flow.x[:, -1]
    base = -(x_0.square().sum(1) + x_0.shape[1] * math.log(2 * math.pi)) / 2
    # from 1 to 0: `gained` is minus the integral of the divergence from 0 to 1
    return LogDensity(base + gained, x_0.reshape(x_1.shape), flow.nfe)


def velocity_and_divergence(
    velocity: Velocity, x: Tensor, t: Tensor, cond: Condition | None, probes: Tensor | None, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """v, shape (B, *D), and its divergence, shape (B,), exact or by probes of shape (K, B, *D).

    With `graph` both can be differentiated in `x`, which requires a gradient; without, nothing is kept.

    Raises:
        ValueError: In torch.inference_mode, where the divergence would be 0.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("a density needs derivatives, which torch.inference_mode has none of: use torch.no_grad")
    with torch.enable_grad():
        x = x if graph else x.detach().requires_grad_(True)
        v = velocity(x, t, cond)
        if probes is None:
            flat = v.flatten(1)
            parts = [_slope(flat[:, d].sum(), x, graph).flatten(1)[:, d] for d in range(flat.shape[1])]
            divergence = torch.stack(parts).sum(0)
        else:
            products = [(_slope((v * probe).sum(), x, graph) * probe).flatten(1).sum(1) for probe in probes.to(v.dtype)]
            divergence = torch.stack(products).mean(0)
    return (v, divergence) if graph else (v.detach(), divergence.detach())


def _slope(value: Tensor, x: Tensor, graph: bool) -> Tensor:
    """d value / d x, where value may not depend on x at all; with `graph` it can be differentiated again."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(
        value, x, retain_graph=True, create_graph=graph, materialize_grads=True, allow_unused=True
    )
    return slope


def bits_per_dim(log_p: Tensor, dims: int, levels: int = 256) -> Tensor:
    """Bits a dimension of pictures of L grey levels, of which log_p is the log-density of dequantised ones.

    A grey level k of 0 .. L - 1 is x = (k + u - 1/2) / h - 1 with h = (L - 1) / 2 and u uniform in [0, 1), so a step of
    k is 1 / h:

        bits = -(log p(x) - D ln h) / (D ln 2),

    on average no less than those of the levels themselves (Theis et al. 2016, arXiv:1511.01844, section 3.1).

    Args:
        log_p: Nats, shape (B,).
        dims: Numbers D of a picture.
        levels: Grey levels L.
    """
    return -(log_p - dims * math.log((levels - 1) / 2)) / (dims * math.log(2))
