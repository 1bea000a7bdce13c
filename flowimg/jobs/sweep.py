"""The sweeps of `flowimg evaluate`: distance over evaluations, and quality over guidance; each a figure and a table."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from flowimg.config import Evaluate, SettingsError
from flowimg.figures.quality import NEAR, guidance_figure, nfe_figure
from flowimg.flow.solvers import integrate
from flowimg.flow.times import uniform_grid
from flowimg.jobs import measure
from flowimg.jobs.build import SOLVERS
from flowimg.jobs.evaluate import COUNT, measure_points, yard_of
from flowimg.jobs.figures import Figure, add_figures
from flowimg.jobs.folder import Trained, weights_name, write_text
from flowimg.jobs.machine import autocast, leave_together
from flowimg.jobs.scores import describe, distance_in, finite, made_by, made_how, protocol

CONVERGED = {"solver": "dopri5", "tolerance": 1e-5}
"""How the flow is followed that the others are compared with."""


def sweep(settings: Evaluate, run: Trained, state: PartialState) -> dict[str, Any] | None:
    """Evaluate again and again, with the same seeds; draw what came of it into RUN/figures."""
    seeds = range(settings.seed, settings.seed + (settings.count or COUNT[run.config.data.kind]))
    points = run.config.data.kind == "points"
    ways = _ways(settings) if settings.sweep_nfe else []  # refuses before anything is trained or looked at
    yard = None if points else yard_of(settings, run, state)

    def scored(**change: Any) -> dict[str, Any] | None:
        how = settings.model_copy(update=change)
        inside = autocast(state.device, settings.precision)
        if yard is None:
            with inside:
                found = measure_points(run.field, run.config, run.facts, how, seeds, how.batch_size)
            return {**found, "score": found["sw2"]}
        # neighbourhoods take as long as the samples, and tell nothing of a solver
        alone = "guidance" not in change
        drawn = measure.draw_all(
            run.field,
            run.config,
            run.facts,
            how,
            seeds,
            yard.extractor,
            state,
            [inside],
            settings.batch_size,
            0 if alone else measure.KEPT,
        )
        if drawn is None:
            return None
        made = made_how(how, seeds, drawn.nfe)
        if alone:
            return {**measure.told(yard, drawn), **made, "score": measure.distance(drawn, yard)}
        scores, _ = measure.score(drawn, yard)
        return {**measure.told(yard, drawn), **made, **scores, "score": scores["frechet"]}

    told = _nfe(settings, run, scored, seeds, state, ways) if ways else _guidance(settings, run, scored, seeds, state)
    leave_together()
    return told


def _ways(settings: Evaluate) -> list[dict[str, Any]]:
    """Solvers, grids and steps that come to the evaluations asked for.

    Raises:
        SettingsError: If none does.
    """
    grids = [("uniform", shift) for shift in settings.sweep_shifts] if "uniform" in settings.sweep_times else []
    grids += [(times, 1.0) for times in settings.sweep_times if times != "uniform"]
    calls = 1 if settings.guidance == 1 else 2  # of the network, where it is guided
    ways = [
        {"solver": solver, "times": times, "shift": shift, "num_steps": num_steps}
        for solver in settings.sweep_solvers
        for times, shift in grids
        for num_steps in sorted({wanted // (calls * stages(solver)) for wanted in settings.sweep_nfe} - {0})
        if num_steps > 1 or times == "uniform"  # one step from 0 to 1 is the same on any grid
    ]
    if not ways:
        raise SettingsError(
            f"--sweep-nfe {' '.join(map(str, settings.sweep_nfe))} is too few evaluations for a step of "
            f"{', '.join(settings.sweep_solvers)} over {', '.join(settings.sweep_times)} times: give more"
        )
    return ways


def _nfe(
    settings: Evaluate,
    run: Trained,
    scored: Any,
    seeds: Sequence[int],
    state: PartialState,
    ways: Sequence[dict[str, Any]],
) -> dict[str, Any] | None:
    best = scored(**CONVERGED)
    rows = []
    for way in ways:
        found = scored(**way)
        if found is not None:
            solver, times, shift, num_steps = way.values()
            grid = times if shift == 1 else f"{times}, shift {shift:g}"
            rows.append({"solver": solver, "grid": grid, "num_steps": num_steps, **found})
            print(f"  {solver:<9} {grid:<20} {found['nfe']:>4} evaluations  {found['score']:.4g}", flush=True)
    if not state.is_main_process:
        return None
    name = distance_in(best) if "distance" in best else "sliced Wasserstein-2"
    print(_line(settings, run, best))
    converged = best["score"]
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault((row["solver"], row["grid"]), []).append((row["nfe"], row["score"]))
    print(f"converged ({best['nfe']} evaluations of dopri5 at 1e-5): {name} {converged:.4g}")
    enough = {f"{solver}, {grid}": least(points, converged) for (solver, grid), points in lines.items()}
    for which, n in enough.items():
        print(
            f"  {which:<32} {'more than were tried' if n is None else f'{n} evaluations'} to within {100 * NEAR:.0f} %"
        )
    made = (
        f"Step {run.step:,}, {len(seeds):,} samples of seeds from {seeds[0]}, {weights_name(settings.weights)} "
        f"weights, {settings.precision}."
    )
    figure = Figure("nfe.png", "How many evaluations it takes", "The same seeds, followed in many ways.", made)
    nfe_figure(lines, converged, name, run.folder.figures / figure.file)
    rows = [finite(row) for row in rows]
    return _kept(run, settings, figure, {"converged": finite(best), "rows": rows, "enough": enough})


def stages(solver: str) -> int:
    """Evaluations of a step, as they are counted in one."""
    return integrate(lambda x, t, cond: x, torch.zeros(1, 1), uniform_grid(1), SOLVERS[solver]).nfe


def least(points: Sequence[tuple[int, float]], converged: float) -> int | None:
    """The least evaluations from which on the distance stays within `NEAR` of the converged one; None if none do."""
    enough = None
    if not math.isfinite(converged):
        return None
    for nfe, distance in sorted(points, reverse=True):
        if not abs(distance - converged) <= NEAR * converged:  # one that is no number is not near
            break
        enough = nfe
    return enough


def _guidance(
    settings: Evaluate, run: Trained, scored: Any, seeds: Sequence[int], state: PartialState
) -> dict[str, Any] | None:
    rows = []
    for scale in sorted(settings.sweep_guidance):
        found = scored(guidance=scale)
        if found is not None:
            # few pictures have no neighbourhoods, and no coverage then; one class has no judge
            found = {**dict.fromkeys(("coverage", "precision", "agreement", "judge"), math.nan), **found}
            rows.append({"scale": scale, **found})
            said = f"agreement {found['agreement']:.3f}, coverage {found['coverage']:.3f}, {found['score']:.4g}"
            print(f"  guidance {scale:<6g} {found['nfe']:>4} evaluations  {said}", flush=True)
    if not state.is_main_process:
        return None
    low, high = settings.guidance_interval
    within = "" if (low, high) == (0, 1) else f", guided from t = {low:g} to {high:g}"
    made = (
        f"Step {run.step:,}, {weights_name(settings.weights)} weights, {len(seeds):,} samples a scale, seeds from "
        f"{seeds[0]}, {describe({**settings.model_dump(), 'guidance': 1.0})}{within}."
    )
    print(_line(settings, run, rows[0]))
    figure = Figure("guidance.png", "What guidance buys, and costs", "The same seeds at rising scale.", made)
    guidance_figure(rows, rows[0]["judge"], distance_in(rows[0]), run.folder.figures / figure.file)
    return _kept(run, settings, figure, {"rows": [finite(row) for row in rows]})


def _line(settings: Evaluate, run: Trained, found: dict[str, Any]) -> str:
    """The protocol line of one of a sweep, for what all of them share."""
    return protocol(settings.run, {**found, **made_by(settings, run)})


def _kept(run: Trained, settings: Evaluate, figure: Figure, found: dict[str, Any]) -> dict[str, Any]:
    """Note the figure for the report, and keep its numbers beside it."""
    add_figures(run.folder, [figure])
    path = run.folder.figures / figure.file
    how = settings.model_dump(mode="json", exclude={"run"})
    write_text(path.with_suffix(".json"), json.dumps({"step": run.step, "how": how, **found}, indent=1) + "\n")
    print(path)
    return {"run": settings.run, "step": run.step, "figure": str(path), **found}
