"""The sweeps of `flowimg evaluate`: distance over evaluations, and quality over guidance; each a figure and a table."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowimg.build.sampler import SOLVERS, build_sampler
from flowimg.errors import SettingsError
from flowimg.evaluation.record import describe, distance_in, finite, protocol
from flowimg.figures.quality import NEAR, guidance_figure, nfe_figure
from flowimg.figures.record import Figure, add_figures
from flowimg.files import write_text
from flowimg.flow.solvers import integrate
from flowimg.flow.times import uniform_grid
from flowimg.jobs.evaluate.engine import Engine
from flowimg.runs.opening import Run, made_by, weights_name
from flowimg.settings.evaluate import Evaluate

CONVERGED = {"solver": "dopri5", "tolerance": 1e-5}
"""How the flow is followed that the others are compared with."""


@dataclass
class Sweep:
    """Evaluate again and again, with the same seeds; the results go into RUN/figures.

    Args:
        settings: Of the verb.
        of: The run.
        field: Its field, compiled or not.
        engine: Scores them.
        seeds: One a sample.
        precision: Gives a context to evaluate the field in.
        is_first: Whether this is the first process, which has the scores.
    """

    settings: Evaluate
    of: Run
    field: nn.Module
    engine: Engine
    seeds: range
    precision: Callable[[], AbstractContextManager[Any]]
    is_first: bool

    def run(self, ways: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """All of it; what was found, on the first process."""
        return self._nfe(ways) if ways else self._guidance()

    def _scored(self, quick: bool, **change: Any) -> dict[str, Any] | None:
        """The scores with other settings, the main one as `score` too."""
        how = self.settings.model_copy(update=change)
        run = self.of
        sampler = build_sampler(self.field, run.config, run.space, how, self.precision, how.batch_size)
        if quick:
            return self.engine.quick(sampler, how, self.seeds)
        found = self.engine(sampler, how, self.seeds)
        return None if found is None else {**found, "score": found[self.engine.main]}

    def _nfe(self, ways: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        settings, run, seeds = self.settings, self.of, self.seeds
        best = self._scored(True, **CONVERGED)
        rows = []
        for way in ways:
            found = self._scored(True, **way)
            if found is not None:
                solver, times, shift, num_steps = way.values()
                grid = times if shift == 1 else f"{times}, shift {shift:g}"
                rows.append({"solver": solver, "grid": grid, "num_steps": num_steps, **found})
                print(f"  {solver:<9} {grid:<20} {found['nfe']:>4} evaluations  {found['score']:.4g}", flush=True)
        if best is None:
            return None
        name = distance_in(best) if "distance" in best else "sliced Wasserstein-2"
        print(self._line(best))
        converged = best["score"]
        lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in rows:
            lines.setdefault((row["solver"], row["grid"]), []).append((row["nfe"], row["score"]))
        print(f"converged ({best['nfe']} evaluations of dopri5 at 1e-5): {name} {converged:.4g}")
        enough = {f"{solver}, {grid}": least(points, converged) for (solver, grid), points in lines.items()}
        for which, n in enough.items():
            needed = "more than were tried" if n is None else f"{n} evaluations"
            print(f"  {which:<32} {needed} to within {100 * NEAR:.0f} %")
        made = (
            f"Step {run.step:,}, {len(seeds):,} samples of seeds from {seeds[0]}, {weights_name(settings.weights)} "
            f"weights, {settings.precision}."
        )
        figure = Figure("nfe.png", "How many evaluations it takes", "The same seeds, followed in many ways.", made)
        nfe_figure(lines, converged, name, run.folder.figures / figure.file)
        rows = [finite(row) for row in rows]
        return self._kept(figure, {"converged": finite(best), "rows": rows, "enough": enough})

    def _guidance(self) -> dict[str, Any] | None:
        settings, run, seeds = self.settings, self.of, self.seeds
        rows = []
        for scale in sorted(settings.sweep_guidance):
            found = self._scored(False, guidance=scale)
            if found is not None:
                # few pictures have no neighbourhoods, and no coverage then; one class has no judge
                found = {**dict.fromkeys(("coverage", "precision", "agreement", "judge"), math.nan), **found}
                rows.append({"scale": scale, **found})
                said = f"agreement {found['agreement']:.3f}, coverage {found['coverage']:.3f}, {found['score']:.4g}"
                print(f"  guidance {scale:<6g} {found['nfe']:>4} evaluations  {said}", flush=True)
        if not self.is_first:
            return None
        low, high = settings.guidance_interval
        within = "" if (low, high) == (0, 1) else f", guided from t = {low:g} to {high:g}"
        made = (
            f"Step {run.step:,}, {weights_name(settings.weights)} weights, {len(seeds):,} samples a scale, seeds from "
            f"{seeds[0]}, {describe({**settings.record, 'guidance': 1.0})}{within}."
        )
        print(self._line(rows[0]))
        figure = Figure("guidance.png", "What guidance buys, and costs", "The same seeds at rising scale.", made)
        guidance_figure(rows, rows[0]["judge"], distance_in(rows[0]), run.folder.figures / figure.file)
        return self._kept(figure, {"rows": [finite(row) for row in rows]})

    def _line(self, found: dict[str, Any]) -> str:
        """The protocol line of one of a sweep, for what all of them share."""
        made = made_by(self.of, self.settings.weights, self.settings.precision)
        return protocol(self.settings.run, {**found, **made})

    def _kept(self, figure: Figure, found: dict[str, Any]) -> dict[str, Any]:
        """Note the figure for the report, and keep its numbers beside it."""
        settings, run = self.settings, self.of
        add_figures(run.folder.figures, [figure])
        path = run.folder.figures / figure.file
        how = settings.model_dump(mode="json", exclude={"run"})
        write_text(path.with_suffix(".json"), json.dumps({"step": run.step, "how": how, **found}, indent=1) + "\n")
        print(path)
        return {"run": settings.run, "step": run.step, "figure": str(path), **found}


def ways_of(settings: Evaluate) -> list[dict[str, Any]]:
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
