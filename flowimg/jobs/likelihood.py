"""`flowimg likelihood`: the density that a run's field assigns to data it was not trained on."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.build.data import build_source, build_toy
from flowimg.build.facts import check_same
from flowimg.build.sampler import build_solver, build_times
from flowimg.data.toys import Toy
from flowimg.errors import SettingsError
from flowimg.evaluation.record import describe, finite, keep, made_how
from flowimg.figures.points import log_density_figure
from flowimg.figures.record import Figure, add_figures
from flowimg.flow.condition import Condition
from flowimg.flow.density import LogDensity, bits_per_dim, log_density
from flowimg.flow.randomness import generator
from flowimg.jobs.drawing import check_places, opened
from flowimg.machine.device import pick_device
from flowimg.machine.precision import autocast
from flowimg.machine.processes import one_process
from flowimg.names import one_line
from flowimg.runs.opening import OpenRun, made_by, weights_name
from flowimg.settings.verbs import Likelihood
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points
from flowimg.spaces.space import chosen

POINTS, PICTURES = 10_000, 100
"""The default numbers of samples."""
AT_ONCE: dict[type, int] = {Points: 10_000, Pixels: 50}
"""Samples at once: each takes more memory than in sampling."""
SIDE = 160
"""Grid points per side of the map of log-density."""
Measured = tuple[dict[str, Any], LogDensity, str, str]
"""Scores, the densities that they were computed from, what was measured, and how the divergence was computed."""


def likelihood(settings: Likelihood) -> dict[str, Any]:
    """Measure the density, print it with how it was measured, and add it to RUN/evaluations.jsonl."""
    one_process("likelihood")
    settings, run = opened(settings, pick_device())
    check_places(run.folder.evaluations)
    scores, density, of, divergence = chosen(MEASURES, run.space)(settings, run)
    seeds = range(settings.seed, settings.seed + len(density.log_p))
    of += " given their class" if run.facts.classes else ""
    record = {**made_how(settings.record, seeds, density.nfe), **scores, "of": of}
    record |= made_by(run, settings.weights, settings.precision)
    keep(run.folder.evaluations, record)
    how = f"{describe(settings.record)}, {density.nfe} evaluations, {divergence}, {settings.precision}"
    which = f"{settings.run}, step {run.step}, {weights_name(settings.weights)} weights"
    print(f"{which}: {len(seeds):,} {of}, {how}")
    for name in ("nats", "nats_error", "entropy", "bits_per_dim", "bits_error"):
        if record.get(name) is not None:
            print(f"  {name:<32} {record[name]:.4f}")
    return {"run": settings.run, **finite(record)}


def _log_density(settings: Likelihood, run: OpenRun, x_1: Tensor, cond: Condition, exact: bool) -> LogDensity:
    """Log-densities of all samples, batch by batch, with the exact divergence or with Hutchinson's probes."""
    device = next(run.field.parameters()).device
    size = settings.batch_size or chosen(AT_ONCE, run.space)
    times, solver = build_times(settings), build_solver(settings)
    parts: list[LogDensity] = []
    with autocast(device, settings.precision), tqdm(total=len(x_1), unit="sample", leave=False, disable=None) as bar:
        for rows in torch.arange(len(x_1)).split(size):
            x = x_1[rows].to(device)
            probes = None if exact else _probes(settings, rows, x.shape[1:]).to(device)
            given = cond.rows(rows).to(device)
            part = log_density(run.field, x, times, solver, given, probes)
            parts.append(part._replace(log_p=part.log_p.cpu(), x_0=part.x_0.cpu()))
            bar.update(len(rows))
    log_p, x_0, nfe = zip(*parts, strict=True)
    return LogDensity(torch.cat(log_p), torch.cat(x_0), max(nfe))


def _probes(settings: Likelihood, rows: Tensor, shape: torch.Size) -> Tensor:
    """Random signs for these rows, shape (K, B, *D); those of a row do not depend on its batch."""

    def signs(*key: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator("probe", settings.seed, *key)).float() * 2 - 1

    return torch.stack([torch.stack([signs(k, row) for row in rows.tolist()]) for k in range(settings.probes)])


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _points(settings: Likelihood, run: OpenRun) -> Measured:
    if settings.split or settings.probes != 1:
        raise SettingsError("--split and --probes are for runs on images: points are fresh, and their density is exact")
    check_places(run.folder.figures / "figures.json")
    toy, classes = build_toy(run.config), len(run.facts.classes)
    x_1 = toy.sample(torch.rand(settings.count or POINTS, 3, generator=generator("likelihood", settings.seed)))
    density = _log_density(settings, run, x_1, Condition(toy.part(x_1) if classes else None), exact=True)
    # classes are equally frequent and do not overlap, so H(x | class) = H(x) - ln classes
    entropy = toy.entropy if toy.entropy is None or not classes else toy.entropy - math.log(classes)
    if not classes or run.config.train.label_drop > 0:
        _map(settings, run, toy, -density.log_p, entropy)
    else:
        print("no map of log-density: with train.label_drop 0 the field did not learn all classes together")
    nats, error = _mean(-density.log_p)
    return {"nats": nats, "nats_error": error, "entropy": entropy}, density, "fresh points", "exact divergence"


def _map(settings: Likelihood, run: OpenRun, toy: Toy, nats: Tensor, entropy: float | None) -> None:
    """Draw the log-density of all classes together over the plane, for the report."""
    line = torch.linspace(-1, 1, SIDE) * 1.15 * toy.extent
    grid = torch.cartesian_prod(line, line)
    density = _log_density(settings, run, grid, Condition(), exact=True).log_p.reshape(SIDE, SIDE)
    inside = (toy.part(grid) >= 0).reshape(SIDE, SIDE)
    made = f"Step {run.step:,}, {describe(settings.record)}, {weights_name(settings.weights)} weights."
    caption = "From the change-of-variables formula: a map of the log-density, and its values at fresh data."
    figure = Figure("log_density.png", "Density of the flow", caption, made)
    path, title = run.folder.figures / figure.file, f"{run.config.data.source}, step {run.step:,}"
    log_density_figure(density, inside, nats, entropy, 1.15 * toy.extent, path, title)
    add_figures(run.folder.figures, [figure])
    print(path)


def _pictures(settings: Likelihood, run: OpenRun) -> Measured:
    space: Any = run.space
    config, count = run.config, settings.count or PICTURES
    batches: Any
    if settings.split is None:
        if not config.data.held_out:
            raise SettingsError(f"{settings.run} has no held-out pictures (data.held_out is 0): give another --split")
        batches = build_source(config).load(torch.device("cpu")).part(space.shape)
        x_1, cond = batches.held_out(min(count, config.data.held_out))
        of = "held-out pictures"
    else:
        changes = {"split": settings.split, "held_out": min(1, config.data.held_out), "first": None}
        config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
        source = build_source(config)
        check_same(config, run.facts, source.facts)
        batches = source.load(torch.device("cpu")).part(space.shape)
        pictures = batches.some(count)
        x_1, cond = space.encode(pictures.pixels), Condition(pictures.labels)
        of = f"pictures of {one_line(config.data.source)}, {settings.split}"
        if settings.split == getattr(run.config.data, "split", None):
            print(f"warning   the run was trained on {settings.split}: use another split to see how it generalises")
    if not len(x_1):
        height, width = space.shape[1:]
        raise SettingsError(f"no {of} have the shape {height} {width}: give another --shape, or a --split")
    if len(x_1) < (settings.count or 0):
        print(f"warning   --count asks for {settings.count}, but there are only {len(x_1)} {of}")
    # of floating-point numbers the density is that of x itself
    within = [torch.rand(x.shape, generator=generator("dequantise", settings.seed, row)) for row, x in enumerate(x_1)]
    x_1 = space.dequantise(x_1, torch.stack(within))
    density = _log_density(settings, run, x_1, cond if run.facts.classes else Condition(), exact=False)
    if space.levels is None:
        nats, error = _mean(-density.log_p)
        scores = {"nats": nats, "nats_error": error}
    else:
        bits, error = _mean(bits_per_dim(density.log_p, x_1[0].numel(), space.levels))
        scores = {"bits_per_dim": bits, "bits_error": error}
    scores["probes"] = settings.probes
    return scores, density, of, f"Hutchinson, {settings.probes} probe(s) each"


MEASURES: dict[type, Callable[[Likelihood, OpenRun], Measured]] = {Points: _points, Pixels: _pictures}
"""The measurement of each space."""
