"""`flowimg likelihood`: the density that a run's field gives to data it did not learn from."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flowimg.build.data import build_source, build_toy, check_same
from flowimg.build.sampler import build_solver, build_times, settle
from flowimg.data.toys import Toy
from flowimg.errors import SettingsError
from flowimg.evaluation.record import describe, finite, keep, made_how
from flowimg.figures.density import log_density_figure
from flowimg.figures.record import Figure, add_figures
from flowimg.flow.condition import Condition
from flowimg.flow.density import LogDensity, bits_per_dim, log_density
from flowimg.flow.randomness import generator
from flowimg.machine.device import pick_device
from flowimg.machine.precision import autocast
from flowimg.machine.processes import alone
from flowimg.runs.opening import Run, made_by, open_run, weights_name
from flowimg.settings.verbs import Likelihood
from flowimg.spaces.pixels import Pixels
from flowimg.spaces.points import Points

POINTS, PICTURES = 10_000, 100
"""Samples, if nothing is said."""
AT_ONCE = {Points: 10_000, Pixels: 50}
"""Samples at once: each takes more memory than to draw it."""
SIDE = 160
"""Places a side of the map of log-density."""


def likelihood(settings: Likelihood) -> dict[str, Any]:
    """Measure it, print it with how it was measured, and keep it in RUN/evaluations.jsonl."""
    alone("likelihood")
    device = pick_device()
    run = open_run(settings.run, settings.weights, settings.step, device)
    settings = settle(settings, run.config)
    found, probed = MEASURES[type(run.space)](settings, run)
    record = {**found, **made_by(run, settings.weights, settings.precision)}
    keep(run.folder.evaluations, record)
    print(
        f"{settings.run}, step {run.step}, {weights_name(settings.weights)} weights: {found['count']:,} {found['of']}, "
        f"{describe(settings.record)}, {found['nfe']} evaluations, {probed}, {settings.precision}"
    )
    for name in ("nats", "nats_error", "entropy", "bits_per_dim", "bits_error"):
        if found.get(name) is not None:
            print(f"  {name:<32} {found[name]:.4f}")
    return {"run": settings.run, **finite(record)}


def _follow(settings: Likelihood, run: Run, x_1: Tensor, cond: Condition, exact: bool) -> LogDensity:
    """Log-densities of all of them, a batch at a time; by the exact divergence, or by probes."""
    device = next(run.field.parameters()).device
    size = settings.batch_size or AT_ONCE[type(run.space)]
    parts: list[LogDensity] = []
    with autocast(device, settings.precision), tqdm(total=len(x_1), unit="sample", leave=False, disable=None) as bar:
        for rows in torch.arange(len(x_1)).split(size):
            x = x_1[rows].to(device)
            probes = None if exact else torch.stack(list(_signs(settings, rows, x.shape[1:]))).to(device)
            given = cond.rows(rows).to(device)
            found = log_density(run.field, x, build_times(settings), build_solver(settings), given, probes)
            parts.append(found._replace(log_p=found.log_p.cpu(), x_0=found.x_0.cpu()))
            bar.update(len(rows))
    log_p, x_0 = (torch.cat([part[place] for part in parts]) for place in (0, 1))  # type: ignore[misc]
    return LogDensity(log_p, x_0, max(part.nfe for part in parts))


def _signs(settings: Likelihood, rows: Tensor, shape: torch.Size) -> Iterator[Tensor]:
    """Hutchinson's probes of these rows, one after another; those of a row do not depend on its batch."""
    for probe in range(settings.probes):
        drawn = [
            torch.randint(0, 2, shape, generator=generator("probe", settings.seed, probe, int(row))) for row in rows
        ]
        yield torch.stack(drawn).float() * 2 - 1


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _points(settings: Likelihood, run: Run) -> tuple[dict[str, Any], str]:
    if settings.split or settings.probes != 1:
        raise SettingsError("--split and --probes are for runs on images: points are drawn afresh, and exact")
    toy = build_toy(run.config)
    count = settings.count or POINTS
    x_1 = toy.sample(torch.rand(count, 3, generator=generator("likelihood", settings.seed)))
    classes = len(run.facts.classes)
    found = _follow(settings, run, x_1, Condition(toy.part(x_1) if classes else None), exact=True)
    nats, error = _mean(-found.log_p)
    # all classes are as frequent, and a point has one alone: H(x | class) = H(x) - ln classes
    entropy = toy.entropy if toy.entropy is None or not classes else toy.entropy - math.log(classes)
    if not classes or run.config.train.label_drop > 0:
        _map(settings, run, toy, -found.log_p, entropy)
    else:
        print("no map of log-density: with train.label_drop 0 the field never learned what all classes are together")
    made = made_how(settings.record, range(settings.seed, settings.seed + count), found.nfe)
    of = "fresh points" + (" given their class" if classes else "")
    return {**made, "nats": nats, "nats_error": error, "entropy": entropy, "of": of}, "exact divergence"


def _map(settings: Likelihood, run: Run, toy: Toy, nats: Tensor, entropy: float | None) -> None:
    """Draw the log-density over the plane, of all classes together, for the report."""
    along = torch.linspace(-1, 1, SIDE) * 1.15 * toy.extent
    places = torch.cartesian_prod(along, along)
    density = _follow(settings, run, places, Condition(), exact=True).log_p.reshape(SIDE, SIDE)
    inside = (toy.part(places) >= 0).reshape(SIDE, SIDE)
    made = f"Step {run.step:,}, {describe(settings.record)}, {weights_name(settings.weights)} weights."
    figure = Figure(
        "log_density.png",
        "The density that the flow gives",
        "By the change of variables: the map of log-density, and what it is at fresh data.",
        made,
    )
    name = f"{run.config.data.source}, step {run.step:,}"
    log_density_figure(density, inside, nats, entropy, 1.15 * toy.extent, run.folder.figures / figure.file, name)
    add_figures(run.folder.figures, [figure])
    print(run.folder.figures / figure.file)


def _pictures(settings: Likelihood, run: Run) -> tuple[dict[str, Any], str]:
    space: Any = run.space
    config, count = run.config, settings.count or PICTURES
    if settings.split is None:
        batches: Any = build_source(config).load(torch.device("cpu"))
        x_1, cond = batches.held_out(min(count, config.data.held_out))
        of = "pictures held out"
    else:
        asked = {"split": settings.split, "held_out": 1, "first": None}
        data = config.data.model_copy(update=asked)
        config = config.model_copy(update={"data": data})
        source = build_source(config)
        check_same(config, run.facts, source.facts)
        batches = source.load(torch.device("cpu"))
        some = batches.some(count)
        x_1, cond = space.encode(some.pixels), Condition(some.labels)
        of = f"pictures of {config.data.source}, {settings.split}"
        if settings.split == getattr(run.config.data, "split", None):
            print(f"warning   {settings.split} is what the run learned from: only other pictures tell what it is worth")
    if len(x_1) < (settings.count or 0):
        print(f"warning   there are {len(x_1)} {of}, fewer than --count {settings.count}")
    within = [torch.rand(x.shape, generator=generator("dequantise", settings.seed, row)) for row, x in enumerate(x_1)]
    x_1 = space.dequantise(x_1, torch.stack(within))
    found = _follow(settings, run, x_1, cond if run.facts.classes else Condition(), exact=False)
    bits, error = _mean(bits_per_dim(found.log_p, x_1[0].numel(), space.levels))
    made = made_how(settings.record, range(settings.seed, settings.seed + len(x_1)), found.nfe)
    of += " given their class" if run.facts.classes else ""
    return {**made, "bits_per_dim": bits, "bits_error": error, "probes": settings.probes, "of": of}, (
        f"Hutchinson, {settings.probes} probe(s) each"
    )


MEASURES: dict[type, Callable[[Likelihood, Run], tuple[dict[str, Any], str]]] = {Points: _points, Pixels: _pictures}
"""What is measured in each space: the record, and how the divergence was found."""
