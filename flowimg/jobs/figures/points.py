"""The figures of the flow of a run on points."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowimg.conditions.labels import turns
from flowimg.figures.record import Figure
from flowimg.runs.opening import Run
from flowimg.sampling.sampler import Sampler, noise
from flowimg.settings.sampling import Solving

PARTICLES, FRAMES = 1500, 91
"""Particles in the animation, and its frames."""
CROWD = 100_000
"""Points whose density is shown."""


def point_figures(
    run: Run, sampler: Sampler, how: Solving, seed: int
) -> Iterator[tuple[Figure, Callable[[Path], object]]]:
    """Each figure with what draws it: the flow as an animation, densities on the way, how straight the paths are."""
    from flowimg.figures.motion import density_figure, flow_animation, straightness_figure

    space: Any = run.space
    data, extent = space.examples(CROWD), space.extent

    def follow(count: int, times: list[float]) -> Tensor:
        seeds = range(seed, seed + count)
        return sampler.follow(noise(seeds, space.shape), turns(seeds, run.facts.classes), times).states

    name = f"{run.config.data.source}, step {run.step:,}"
    frames = torch.linspace(0, 1, FRAMES).tolist()
    moving = follow(PARTICLES, frames)

    def arrows(x: Tensor, t: float) -> Tensor:
        device = next(run.field.parameters()).device
        with torch.no_grad():
            return run.field(x.to(device), torch.full((len(x),), t, device=device)).float().cpu()

    yield (
        Figure("flow.webp", "The flow", "Particles start as noise and follow the learned velocity to the data."),
        lambda path: flow_animation(moving, frames, arrows, data, extent, path, name),
    )

    def density(path: Path) -> None:
        times = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        crowd = follow(CROWD, times)
        density_figure(list(crowd), times, data, extent, path, f"How noise becomes data: {name}")

    yield (
        Figure("density.png", "How noise becomes data", f"The density of {CROWD:,} particles on their way."),
        density,
    )
    yield (
        Figure(
            "straightness.png",
            "How straight the paths are",
            "Straighter paths need fewer solver steps; minibatch OT (coupling.kind: ot) straightens them.",
        ),
        lambda path: straightness_figure(moving, extent, path, name),
    )
