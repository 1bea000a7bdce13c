"""Following a flow from given pictures: drawing a part of them anew, and pictures like them.

Inpainting keeps what is known on its path and lets the flow draw the rest: after every step, where x is known,

    x_t <- alpha_t x_1 + sigma_t x_0,    x_0 the noise of the sample

In rounds, every few steps go back by fresh noise and are made again, so that both parts agree better (RePaint).
Pictures like one follow its path from time 1 - strength, or from the noise that the flow carries it back to, turned
towards another noise by the angle strength * pi / 2.
Sources: Lugmayr et al. 2022, arXiv:2201.09865 (rounds); Meng et al. 2022, arXiv:2108.01073 (noise, then the flow).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowimg.fields.guidance import unguided
from flowimg.flow.condition import Condition
from flowimg.flow.stochastic import returning
from flowimg.sampling.sampler import Followed, Sampler, noise


def inpaint(
    sampler: Sampler, x_1: Tensor, drawn: Tensor, seeds: Sequence[int], cond: Condition | None = None, rounds: int = 1,
    length: int = 5,
) -> Followed:  # fmt: skip
    """Draw a part of pictures, and keep the rest.

    Args:
        sampler: Its solver takes the steps that it is given, and keeps nothing of the step before.
        x_1: The pictures, shape (B, *D).
        drawn: True where they are drawn, a shape that broadcasts with (B, *D).
        seeds: One a picture.
        cond: What the field is given, a row a picture.
        rounds: How often each stretch of steps is made.
        length: Steps of a stretch.
    Returns:
        The noise and the pictures; where they are known they are `x_1` itself.
    """
    noises = noise(seeds, sampler.shape)
    x_0, known, drawn = (value.to(sampler.device) for value in (noises, x_1, drawn.expand_as(x_1)))

    def keep(rows: slice, x: Tensor, t: float) -> Tensor:
        at = torch.full((len(x),), t, device=x.device)
        on_path = known[rows] if t == 1 else sampler.path.sample(x_0[rows], known[rows], at).x_t
        return torch.where(drawn[rows], x, on_path)

    solver = returning(sampler.solver) if rounds > 1 else sampler.solver
    steered = replace(sampler, solver=solver, times=in_rounds(sampler.times, rounds, length))
    return steered.follow(noises, cond, seeds=seeds, hook=keep)


def in_rounds(times: Tensor, rounds: int, length: int) -> Tensor:
    """The times of a solver that makes every stretch of `length` steps `rounds` times, from its start again.

    The first one is made once: at t = 0 there is nothing but noise, so that going back there keeps nothing.
    """
    visited = [times[:1]]
    for start in range(0, len(times) - 1, length):
        stretch = times[start : start + length + 1]
        visited += [stretch[1:], *[stretch] * (rounds - 1 if start else 0)]
    return torch.cat(visited)


def from_noised(
    sampler: Sampler, x_1: Tensor, seeds: Sequence[int], strength: float, cond: Condition | None = None
) -> Followed:
    """Pictures like others: their path at time 1 - strength, with the noise of the seeds, followed to its end.

    Args:
        sampler: Of its times those after 1 - strength are visited.
        x_1: The pictures, shape (B, *D).
        seeds: One a picture.
        strength: In [0, 1]: 0 gives the picture back, 1 keeps nothing of the picture.
        cond: What the field is given, a row a picture.
    """
    began = 1 - strength
    later = sampler.times[sampler.times > began + 1e-6]
    if not len(later):  # nothing is left to follow
        return Followed(torch.stack([x_1, x_1]), 0)
    x_t = sampler.path.sample(noise(seeds, sampler.shape), x_1, torch.full((len(x_1),), began)).x_t
    return replace(sampler, times=torch.cat([torch.tensor([began]).to(later), later])).follow(x_t, cond, seeds=seeds)


def from_inverted(
    sampler: Sampler, x_1: Tensor, seeds: Sequence[int], strength: float, cond: Condition | None = None
) -> Followed:
    """Pictures like others: the noise that the flow carries them back to, turned towards the noise of the seeds.

        x_0 <- cos(a) x_0 + sin(a) noise,    a = strength pi / 2,

    which is normal as both are. The way back is without class and guidance.

    Args:
        sampler: Its solver draws no noise.
        x_1: The pictures, shape (B, *D).
        seeds: One a picture.
        strength: In [0, 1]: 0 gives the picture back where `cond` is null and nothing guides, 1 keeps nothing of it.
        cond: What the field is given on the way to the pictures, a row a picture.
    """
    angle = strength * math.pi / 2
    plain = replace(sampler, velocity=unguided(sampler.velocity))
    (_, x_0), there = plain.follow(x_1, cond.null() if cond else None, back=True)
    x_0 = math.cos(angle) * x_0 + math.sin(angle) * noise(seeds, sampler.shape)
    states, nfe = sampler.follow(x_0, cond)
    return Followed(states, there + nfe)
