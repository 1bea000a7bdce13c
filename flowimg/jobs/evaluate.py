"""`flowimg evaluate`: a run's samples against its data, in figures; with limits, a gate."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from flowimg.config import Evaluate, SettingsError
from flowimg.data.batches import PointBatches
from flowimg.evaluation.points import PointScores, failures, score_points
from flowimg.flow.randomness import generator
from flowimg.jobs.build import build_source, build_toy
from flowimg.jobs.draw import draw, turns
from flowimg.jobs.folder import Trained, check_guidance, open_run
from flowimg.jobs.machine import alone, autocast, pick_device
from flowimg.sampling.generate import to_uint8

MOST_NUMBERS = 2**28
"""Numbers of the training pictures that samples are held against, for memory's sake: 60,000 pictures of 38 pixels."""


class GateError(Exception):
    """The samples are worse than a limit allows; the message says by how much."""

    exit_status = 1


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Score a run's samples, print the scores with how they were made, and keep them in RUN/evaluations.jsonl."""
    alone("evaluate")
    device = pick_device()
    run = open_run(settings.run, settings.weights, settings.step, device)
    points = run.config.data.kind == "points"
    limits = (settings.max_off, settings.max_sw2, settings.max_mass_ratio)
    if not points and any(limit is not None for limit in limits):
        raise SettingsError("--max-off, --max-sw2 and --max-mass-ratio are for runs on points")
    if not points and not run.facts.classes:
        raise SettingsError(f"{settings.run} is unconditional: for now only labelled images and points are scored")
    check_guidance(settings.guidance, run.facts, run.config)
    seeds = range(settings.seed, settings.seed + (settings.count or (20_000 if points else 1000)))
    labels = turns(seeds, run.facts.classes)
    with autocast(device, settings.precision):
        samples, nfe = draw(run.field, run.config, run.facts, settings, seeds, labels)

    scores = _points(run, samples) if points else _images(run, samples, labels)
    how = {
        "step": run.step,
        "weights": settings.weights,
        "count": len(seeds),
        "seeds": [seeds[0], seeds[-1]],
        "solver": settings.solver,
        "num_steps": settings.num_steps,
        "nfe": nfe,
        "guidance": settings.guidance,
        "precision": settings.precision,
    }
    found = {**_finite(scores), **how}
    with run.folder.evaluations.open("a") as file:
        file.write(json.dumps(found, allow_nan=False) + "\n")
    print(
        f"{settings.run}, step {run.step}, {settings.weights} weights: {len(seeds):,} samples of seeds {seeds[0]} to "
        f"{seeds[-1]}, {settings.solver}, {settings.num_steps} steps, {nfe} evaluations, "
        f"guidance {settings.guidance:g}, {settings.precision}"
    )
    for name, value in scores.items():
        print(f"  {name:<32} {_text(value)}")
    if points:
        broken = failures(PointScores(*scores.values()), *limits)
        if broken:
            raise GateError(f"{settings.run} fails: {'; '.join(broken)}")
        if any(limit is not None for limit in limits):
            print("  within all limits")
    return {"run": settings.run, **found}


def _finite(scores: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity: such a score is null there."""
    return {name: value if isinstance(value, list) or math.isfinite(value) else None for name, value in scores.items()}


def _points(run: Trained, samples: Tensor) -> dict[str, Any]:
    toy = build_toy(run.config)
    fresh = toy.sample(torch.rand(len(samples), 3, generator=generator("evaluation")))
    return score_points(samples, fresh, toy.part(samples), toy.parts)._asdict()


def _images(run: Trained, samples: Tensor, labels: Tensor | None) -> dict[str, Any]:
    assert labels is not None
    from flowimg.data.store import to_unit
    from flowimg.evaluation.images import score_images

    batches = build_source(run.config).load(torch.device("cpu"))
    assert not isinstance(batches, PointBatches)
    learned = batches.some(max(1, MOST_NUMBERS // samples[0].numel()))
    apart, apart_labels = batches.held_out(run.config.data.held_out)
    assert learned.labels is not None
    assert apart_labels is not None
    # as they would be written: whole grey levels
    seen = to_unit(to_uint8(samples))
    return score_images(seen, labels, to_unit(learned.pixels), learned.labels, apart, apart_labels)._asdict()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{share:.3f}" for share in value)
    return f"{value:.4f}"
