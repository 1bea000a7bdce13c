"""The figures of the flow of a run on points."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowimg.build.data import build_condition
from flowimg.figures.record import Drawable, Figure
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import Sampler, noise

PARTICLES, FRAMES = 1500, 91
"""The numbers of particles and of frames in the animation."""
CROWD = 100_000
"""The number of points whose density is drawn."""


def point_figures(run: OpenRun, sampler: Sampler, how: str, seed: int) -> Iterator[Drawable]:
    """The flow as an animation; densities over flow time; the straightness of paths."""
    from flowimg.figures.motion import density_figure, flow_animation, straightness_figure

    space: Any = run.space
    data, extent = space.examples(CROWD), space.extent
    name = f"{run.config.data.source}, step {run.step:,}"
    frames = torch.linspace(0, 1, FRAMES).tolist()

    def follow(count: int, times: list[float]) -> Tensor:
        seeds = range(seed, seed + count)
        cond = build_condition(run.config, run.facts, seeds)
        return sampler.follow(noise(seeds, space.shape), cond, times, seeds=seeds).states

    def velocity(x: Tensor, t: float) -> Tensor:
        device = next(run.field.parameters()).device
        with torch.no_grad():
            return run.field(x.to(device), torch.full((len(x),), t, device=device)).float().cpu()

    def density(path: Path) -> None:
        times = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        density_figure(list(follow(CROWD, times)), times, data, extent, path, f"Density over flow time: {name}")

    states = follow(PARTICLES, frames)
    caption = "Particles start as noise and follow the learned velocity to the data."
    animation = Figure("flow.webp", "Flow from noise to data", caption)
    yield animation, lambda path: flow_animation(states, frames, velocity, data, extent, path, name)
    yield Figure("density.png", "Density over flow time", f"The density of {CROWD:,} particles."), density
    caption = "Straighter paths need fewer solver steps; minibatch OT (coupling.kind: ot) straightens them."
    straightness = Figure("straightness.png", "Straightness of the paths", caption)
    yield straightness, lambda path: straightness_figure(states, extent, path, name)
