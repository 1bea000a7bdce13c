"""What happens every N steps of a run: metrics, grids, evaluations, checkpoints, the report."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import torch
from accelerate import PartialState
from torch import Tensor, nn

from flowimg.build.data import build_condition, portions
from flowimg.errors import ExtractorError, Stopped
from flowimg.evaluation.record import distance_in, keep, scores_of
from flowimg.figures.samples import Samples, draw_portions
from flowimg.flow.condition import Condition
from flowimg.jobs.evaluate.comparison import ComparisonOptions
from flowimg.jobs.evaluate.engine import ENGINES
from flowimg.jobs.figures.run import draw_curves
from flowimg.jobs.report import write_report
from flowimg.jobs.train.metrics import write_metrics
from flowimg.jobs.train.pace import Pace
from flowimg.jobs.train.saving import keep_averages, keep_checkpoints
from flowimg.jobs.train.session import Session
from flowimg.jobs.train.trackers import track_numbers, track_picture
from flowimg.runs.opening import made_away_from
from flowimg.runs.signals import StopRequests
from flowimg.sampling.sampler import Sampler
from flowimg.spaces.space import chosen
from flowimg.training.loop import Callback
from flowimg.training.state import Training

REPORT_SECONDS = 15.0
"""Seconds between two reports of a run at least."""


def callbacks(session: Session) -> list[Callback]:
    """Everything a run does between its steps."""
    config = session.config

    def tell(state: Training) -> None:
        session.status.stepped(state.step)

    return [
        tell,
        write_metrics(session),
        _grids(session),
        *([_evaluations(session)] if config.train.evaluate_every else []),
        *([keep_averages(session)] if config.train.snapshots else []),
        keep_checkpoints(session),
        *([_report(session)] if config.figures and session.strategy.is_first else []),
    ]


def _grids(session: Session) -> Callback:
    """Draw the same noise through the average and through the raw weights every `sample_every` steps."""
    config, strategy = session.config, session.strategy
    seeds = range(min(config.grid.count, session.space.fits_a_figure))
    if len(seeds) < config.grid.count and strategy.is_first:
        print(
            f"warning   grids show the first {len(seeds):,} of {config.grid.count:,} samples: no more fit in a figure"
        )
    cond, pace = build_condition(config, session.facts, seeds), Pace()
    shares = portions(config, session.facts, seeds)

    def callback(state: Training) -> None:
        # a run that was asked to end draws no more
        if state.seen.stop or not session.span.due(state, config.train.sample_every):
            return
        grid = pace.affordable(state, session.span.began or 0, config.grid)
        if grid is None:
            return
        session.status.at("drawing samples")
        began, guide = time.perf_counter(), session.guide(state.step)
        unguided = ", no guide yet" if config.grid.guide and guide is None else ""
        for weights, module in (("ema", state.ema), ("raw", state.field)):
            drawn: list[Samples] = []
            with strategy.whole(module) as field:
                for space, rows in shares:
                    sampler = replace(session.sampler(field, grid, guide), shape=space.shape)
                    x_1 = _draw_together(session, sampler, field, [seeds[row] for row in rows], cond.rows(rows))
                    if x_1 is None:
                        break
                    drawn.append(Samples(space, x_1, cond.rows(rows)))
            if strategy.is_first and len(drawn) == len(shares):
                path = session.folder.grid(state.step, weights)
                try:
                    draw_portions(drawn, path, f"{weights} at step {state.step}{unguided}")
                    track_picture(strategy.accelerator, f"samples/{weights}", path, state.step)
                except OSError as error:
                    print(f"warning   no grid at step {state.step} ({error})")
        strategy.wait()
        pace.add(time.perf_counter() - began, grid.num_steps)
        session.status.at("training")

    return callback


def _draw_together(
    session: Session, sampler: Sampler, field: nn.Module, seeds: Sequence[int], cond: Condition
) -> Tensor | None:
    """Samples of these seeds, each process drawing its share; None if one of them was asked to end meanwhile."""
    strategy = session.strategy
    each = math.ceil(len(seeds) / strategy.processes)
    # equal shares, which is what can be gathered: the last sample again where there are too few
    mine = [min(strategy.process * each + row, len(seeds) - 1) for row in range(each)]
    drawn = None
    with _interruptible(field, session.requests):
        drawn = sampler.draw([seeds[row] for row in mine], cond.rows(mine))
    whole = strategy.gather_rows(torch.tensor([drawn is not None], device=strategy.device))
    if drawn is None or not bool(whole.all()):
        return None
    return strategy.gather_rows(drawn.x_1.to(strategy.device))[: len(seeds)].cpu()


@contextmanager
def _interruptible(field: nn.Module, requests: StopRequests) -> Iterator[None]:
    """Abandon what is inside at the next evaluation of the field, once this process is asked to end."""
    hook = field.register_forward_pre_hook(lambda *_: requests.check())
    try:
        with suppress(Stopped):  # the loop ends the run, with a checkpoint
            yield
    finally:
        hook.remove()


def _evaluations(session: Session) -> Callback:
    """Evaluate the averaged field every `evaluate_every` steps into RUN/evaluations.jsonl, drawn like the grid."""
    config, strategy = session.config, session.strategy
    every, seeds = config.train.evaluate_every or 1, range(config.train.evaluate_count)
    try:  # before the first step: network or data may be unavailable, or not there any more later
        options = ComparisonOptions(config.train.evaluate_features)
        engine = chosen(ENGINES, session.space)(config, session.facts, options, PartialState())
    except ExtractorError as error:
        how = "what flowimg evaluate fetched once is found here"
        raise ExtractorError(f"train.evaluate_features {config.train.evaluate_features}: {error} ({how})") from None

    def callback(state: Training) -> None:
        if state.seen.stop or not session.span.due(state, every):
            return
        session.status.at("evaluating")
        guide = session.guide(state.step)
        drawn = config.grid if guide else config.grid.model_copy(update={"guide": None})
        with strategy.whole(state.ema) as field:
            sampler, inside = session.sampler(field, drawn, guide), partial(_interruptible, field, session.requests)
            found = engine(sampler, drawn, seeds, inside)
        if found is not None:
            how = {"step": state.step, "weights": "ema", "arithmetic": config.train.precision, "during": True}
            how |= made_away_from(guide)
            try:
                keep(session.folder.evaluations, {**found, **how})
            except OSError as error:  # of a run that continues
                print(f"warning   the evaluation of step {state.step} was not written ({error})", flush=True)
            name, words = ("frechet", distance_in(found)) if "frechet" in found else ("off", "off")
            print(f"evaluated step {state.step}: {words} {found[name]:.4g}", flush=True)
            numbers = {f"evaluation/{k}": v for k, v in scores_of(found).items()}
            track_numbers(strategy.accelerator, {"step": state.step, **numbers})
        strategy.wait()
        session.status.at("training")

    return callback


def _report(session: Session) -> Callback:
    """Rewrite RUN/report.html with the grids of a run, but not all the time; its end writes the last one."""
    span, folder = session.span, session.folder
    last = -math.inf

    def callback(state: Training) -> None:
        nonlocal last
        now = time.monotonic()
        first = state.step == (span.began or 0) + 1  # one that can be opened early, but no step waits for
        due = first or span.due(state, session.config.train.sample_every)
        if span.is_last(state) or not due or now - last < REPORT_SECONDS:
            return
        try:
            with session.status.during("writing the report"):
                if not first:  # at its start a run has no curves
                    draw_curves(folder, session.config, session.batches)
                write_report(folder, running=True)
        except Exception as error:  # a page is no reason to stop training
            print(f"warning   no report at step {state.step} ({type(error).__name__}: {error})")
        last = time.monotonic()

    return callback
