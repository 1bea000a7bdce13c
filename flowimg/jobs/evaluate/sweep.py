"""The sweeps of `flowimg evaluate`: distance over evaluations, and quality over guidance; each a figure and a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowimg.build.sampler import SOLVERS
from flowimg.errors import SettingsError
from flowimg.evaluation.record import describe, distance_in, finite, protocol
from flowimg.figures.quality import NEAR, guidance_figure, nfe_figure
from flowimg.figures.record import Figure, add_figures
from flowimg.files import write_json
from flowimg.flow.solvers import integrate
from flowimg.flow.times import uniform_grid
from flowimg.jobs.drawing import sampler_of
from flowimg.jobs.evaluate.engine import Engine, Scored
from flowimg.runs.opening import OpenRun, made_by, weights_name
from flowimg.settings.evaluate import Evaluate

CONVERGED = {"solver": "dopri5", "tolerance": 1e-5}
"""The solver that gives the converged distance."""


@dataclass
class Sweep:
    """Evaluations of the same seeds with different settings; the results are written into RUN/figures.

    Args:
        settings: The settings of the verb.
        run: The run.
        field: Its field, compiled or not.
        engine: Scores the samples.
        seeds: One per sample.
    """

    settings: Evaluate
    run: OpenRun
    field: nn.Module
    engine: Engine
    seeds: range

    def _scored(self, score: Callable[..., Scored], **change: Any) -> Scored:
        """The scores with changed settings; `score` is one of the engine's ways to score."""
        how = self.settings.model_copy(update=change)
        return score(sampler_of(self.run, how, self.field, how.batch_size), how, self.seeds)

    def over_nfe(self, tried: Sequence[dict[str, Any]]) -> Scored:
        """Plot the distance over evaluations, for these settings; the results are returned on the first process."""
        best = self._scored(self.engine.quick, **CONVERGED)
        rows: list[dict[str, Any]] = []
        lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for change in tried:
            found = self._scored(self.engine.quick, **change)
            if found is not None:
                solver, times, shift, num_steps = change.values()
                grid = times if shift == 1 else f"{times}, shift {shift:g}"
                rows.append(finite({"solver": solver, "grid": grid, "num_steps": num_steps, **found}))
                lines.setdefault((solver, grid), []).append((found["nfe"], found["score"]))
                print(f"  {solver:<9} {grid:<20} {found['nfe']:>4} evaluations  {found['score']:.4g}", flush=True)
        if best is None:
            return None
        name = distance_in(best) if "distance" in best else "sliced Wasserstein-2"
        converged = best["score"]
        print(self._line(best))
        print(f"converged ({best['nfe']} evaluations of dopri5 at 1e-5): {name} {converged:.4g}")
        enough = {f"{solver}, {grid}": least(points, converged) for (solver, grid), points in lines.items()}
        for which, n in enough.items():
            needed = "more evaluations than were tried" if n is None else f"{n} evaluations"
            print(f"  {which:<32} {needed} to get within {100 * NEAR:.0f} %")
        made = f"{self._made_by()}, {len(self.seeds):,} samples, seeds from {self.seeds[0]}, {self.settings.precision}."
        figure = Figure("nfe.png", "Distance over evaluations", "The same seeds with different solvers.", made)
        nfe_figure(lines, converged, name, self.run.folder.figures / figure.file)
        return self._kept(figure, {"converged": finite(best), "rows": rows, "enough": enough})

    def over_guidance(self) -> dict[str, Any] | None:
        """Plot quality and diversity over the guidance scale; the results are returned on the first process."""
        rows = []
        for scale in sorted(self.settings.sweep_guidance):
            found = self._scored(self.engine, guidance=scale)
            if found is not None:
                # few pictures have no neighbourhoods and so no coverage; with one class there is no classifier
                missing = dict.fromkeys(("coverage", "precision", "agreement", "judge"), math.nan)
                found = {"scale": scale, **missing, **found, "score": found[self.engine.main]}
                rows.append(found)
                scores = f"agreement {found['agreement']:.3f}, coverage {found['coverage']:.3f}, {found['score']:.4g}"
                print(f"  guidance {scale:<6g} {found['nfe']:>4} evaluations  {scores}", flush=True)
        if not rows:
            return None
        low, high = self.settings.guidance_interval
        within = "" if (low, high) == (0, 1) else f", guided from t = {low:g} to {high:g}"
        how = describe({**self.settings.record, "guidance": 1.0})
        made = f"{self._made_by()}, {len(self.seeds):,} samples per scale, seeds from {self.seeds[0]}, {how}{within}."
        print(self._line(rows[0]))
        figure = Figure("guidance.png", "Effects of guidance", "The same seeds at rising guidance scale.", made)
        guidance_figure(rows, rows[0]["judge"], distance_in(rows[0]), self.run.folder.figures / figure.file)
        return self._kept(figure, {"rows": [finite(row) for row in rows]})

    def _made_by(self) -> str:
        return f"Step {self.run.step:,}, {weights_name(self.settings.weights)} weights"

    def _line(self, scores: dict[str, Any]) -> str:
        """The protocol line of one evaluation of the sweep."""
        return protocol(self.settings.run, scores | made_by(self.run, self.settings.weights, self.settings.precision))

    def _kept(self, figure: Figure, results: dict[str, Any]) -> dict[str, Any]:
        """Add the figure to the list of figures, and write the results beside it."""
        settings, run = self.settings, self.run
        add_figures(run.folder.figures, [figure])
        path = run.folder.figures / figure.file
        how = settings.model_dump(mode="json", exclude={"run"})
        write_json(path.with_suffix(".json"), {"step": run.step, "how": how, **results})
        print(path)
        return {"run": settings.run, "step": run.step, "figure": str(path), **results}


def settings_to_try(settings: Evaluate) -> list[dict[str, Any]]:
    """Solvers, grids of times and numbers of steps with the requested numbers of evaluations.

    Raises:
        SettingsError: If there are none.
    """
    grids = [("uniform", shift) for shift in settings.sweep_shifts] if "uniform" in settings.sweep_times else []
    grids += [(times, 1.0) for times in settings.sweep_times if times != "uniform"]
    tried = [
        {"solver": solver, "times": times, "shift": shift, "num_steps": num_steps}
        for solver in settings.sweep_solvers
        for times, shift in grids
        for num_steps in sorted(
            {wanted // (settings.evaluations * stages(solver)) for wanted in settings.sweep_nfe} - {0}
        )
        if num_steps > 1 or times == "uniform"  # a single step from 0 to 1 is the same on any grid
    ]
    if not tried:
        raise SettingsError(
            f"--sweep-nfe {' '.join(map(str, settings.sweep_nfe))} is too few evaluations for a step of "
            f"{', '.join(settings.sweep_solvers)} over {', '.join(settings.sweep_times)} times: give more"
        )
    return tried


def stages(solver: str) -> int:
    """Evaluations per step of a solver, counted in one step."""
    still = torch.zeros(1, 1)
    step = integrate(lambda x, t, cond: x, still, uniform_grid(1), SOLVERS[solver], noise=lambda number, x: still)
    return step.nfe


def least(points: Sequence[tuple[int, float]], converged: float) -> int | None:
    """The least evaluations from which on the distance stays within `NEAR` of the converged one; None if none do."""
    enough = None
    for nfe, distance in sorted(points, reverse=True):
        # `not <=`, since a distance may be nan
        if not math.isfinite(converged) or not abs(distance - converged) <= NEAR * converged:
            break
        enough = nfe
    return enough
