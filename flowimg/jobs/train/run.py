"""`flowimg train`: from settings to a trained field, its checkpoints, metrics and pictures in the run's folder."""

import json
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import nn

from flowimg.build.data import build_space
from flowimg.build.facts import DataFacts
from flowimg.build.field import blocks_of
from flowimg.build.sampler import build_sampler
from flowimg.build.strategy import strategy_of
from flowimg.data.batches import Batches
from flowimg.data.find import FEW
from flowimg.data.prefetch import beside
from flowimg.errors import MachineError, NotFiniteError, SettingsError, Stopped
from flowimg.files import write_json, write_text
from flowimg.jobs.data import draw_preview, few
from flowimg.jobs.figures.run import draw_curves, draw_figures
from flowimg.jobs.report import write_report
from flowimg.jobs.train.beginning import Beginning, Resolved
from flowimg.jobs.train.callbacks import callbacks
from flowimg.jobs.train.launch import launcher_differs, open_accelerator, options_of, settled, slow_precision
from flowimg.jobs.train.metrics import duration
from flowimg.jobs.train.pace import FIGURE_SAMPLES, allowed, sampling_seconds
from flowimg.jobs.train.profile import profile_steps
from flowimg.jobs.train.saving import keep_model
from flowimg.jobs.train.session import Session, Span
from flowimg.jobs.train.sharing import watch_cores
from flowimg.jobs.train.trackers import start_tracker
from flowimg.jobs.train.words import banner, farewell, not_finite, result_of, start_event, warn_of_not_finite
from flowimg.machine.compiling import how_compiled
from flowimg.machine.environment import environment
from flowimg.machine.processes import leave_together, lost_others
from flowimg.names import word
from flowimg.runs.folder import RunFolder
from flowimg.runs.guides import early_snapshot, with_guide
from flowimg.runs.metrics import append
from flowimg.runs.opening import OpenRun
from flowimg.runs.others import AGAIN
from flowimg.runs.places import begun, begun_here, located
from flowimg.runs.resume import check_folder, table
from flowimg.runs.signals import EXIT_STATUS, GIVEN_UP, INTERRUPTED, StopRequests
from flowimg.runs.status import Status, hold
from flowimg.sampling.fitting import is_out_of_memory
from flowimg.settings.reading import dump
from flowimg.settings.run import Config, Start
from flowimg.settings.sampling import EARLY
from flowimg.training.loop import Callback, warm_up
from flowimg.training.loop import train as run_loop
from flowimg.training.snapshots import drop_later
from flowimg.training.state import Training

PREVIEWED = 64
"""Pictures in the grid of the data, which a run draws first."""


def train(config: Config, how: Start | None = None) -> dict[str, Any] | None:
    """Train, or continue, the run that these settings describe; on the first process, return its results.

    However it ends, RUN/status.json says so.

    Raises:
        Stopped: If a signal ended it; it was saved as far as there was anything to save.
    """
    assert config.run is not None
    how = how or Start()
    folder = RunFolder(Path(config.run))
    config = settled(config)
    changes = check_folder(folder, config, how)
    requests = StopRequests()
    status = Status(folder, config.train.steps, requests)
    with _held(folder, status.process == 0), requests.listen(), status.alive(), ExitStack() as stack:
        requests.leave = status.leave
        try:
            strategy = strategy_of(open_accelerator(config), config.train.shard)
            found = located(config, folder)
            options = options_of(found, strategy.processes)
            result = _Start(found, how, folder, changes, strategy, options, stack, requests, status, config).run()
        except BaseException as error:
            with requests.at_the_end_of_a_step():  # a launcher ends the others of one that died, while they write why
                ended = _ended(error, folder, status)
            raise ended from (error if isinstance(error, Stopped) else None)
        early = status.step < config.train.steps
        status.end("done", f"ended at step {status.step} as train.stop_at asks" if early else None, 0)
        return result


def _held(folder: RunFolder, first: bool) -> Any:
    """The run's folder, for one run at a time; the first process holds it for all."""
    if first:
        return hold(folder)
    while not folder.path.exists():  # on another machine it may be seen a little later
        time.sleep(0.1)
    return nullcontext()


def _ended(error: BaseException, folder: RunFolder, status: Status) -> BaseException:
    """Write to status.json how a run ended; the error to raise, a different one if another process died."""
    if is_out_of_memory(error):
        error = MachineError(
            f"out of memory at step {status.step} while {status.stage} ({str(error).splitlines()[0][:120]}): give "
            "--train.micro-batch auto, or a smaller one than now; the batch and the run stay the same"
        )
    if dead := status.dead(patience=0.0 if isinstance(error, SettingsError) else 2.0):
        error = MachineError(f"{dead}; {AGAIN}")
    elif lost_others(error):
        said = shorten(str(error), 200, placeholder=" ...")
        error = MachineError(f"another process ended, which says why, or the network failed ({said}); {AGAIN}")
    if isinstance(error, KeyboardInterrupt):
        error = Stopped(EXIT_STATUS[INTERRUPTED], "stopped by Ctrl-C")
    if isinstance(error, Stopped) and error.exit_status != 4:
        status.end("preempted", error.message, error.exit_status)
        return error
    why = str(error).splitlines() or [type(error).__name__]
    status.end("failed", why[0], getattr(error, "exit_status", 70))
    return error


@dataclass(frozen=True)
class _Start(Beginning):
    """One start of a run, from its settings to its end, in the order of its methods.

    `given` are the settings with their paths as they were given, which the folder keeps.
    """

    requests: StopRequests
    status: Status
    given: Config

    def run(self) -> dict[str, Any] | None:
        """Everything; the results, on the first process."""
        config, folder, status, strategy = self.config, self.folder, self.status, self.strategy
        status.at("preparing data")
        look = self.stack.enter_context(watch_cores(strategy.device, config.field.has_barriers, self.say))
        found = self.find()
        guide = self.guide(found)
        state, batches = self.begin(found)
        began = status.step = state.step
        status.saved = began if found.checkpoint else None
        span = Span(began if found.checkpoint else None, self.until)
        more = [look]
        if self.how.profile:
            more.append(status.during("profiling")(profile_steps(folder, span, self.stack)))
        self._record(found, state, batches, span)
        look(state)
        if began >= self.until:
            self._nothing_to_do(state, found.facts)
        else:
            self._train(state, batches, found.facts, span, more, guide)
        status.step = state.step
        for tracker in strategy.accelerator.trackers:
            tracker.finish()
        if state.seen.stop and state.step < self.until:
            self._leave(state)
        status.at("drawing figures")
        if config.figures:
            with strategy.whole(state.ema) as ema:  # which all gather, and the first draws
                if strategy.is_first and (state.step > began or not folder.report.exists()):
                    self._show(found.facts, batches, state, ema, began)
        farewell(self.say, folder, config, state)
        leave_together()
        return result_of(folder, config, state) if strategy.is_first else None

    def _record(self, found: Resolved, state: Training, batches: Batches, span: Span) -> None:
        """Write what this start is into the run's folder, and say it."""
        config, folder, strategy = self.config, self.folder, self.strategy
        if self.changes:
            self.say(f"warning   these differ from what the run was trained with so far:\n{table(self.changes)}")
        compiled = how_compiled(self.options)
        blocks = blocks_of(config, strategy.device) if self.options is None else None
        if strategy.is_first:
            warn_of_not_finite(folder, self.say)
            # where its paths were found elsewhere, the run was begun there
            place = begun_here(folder) if config is self.given else begun(folder)
            write_text(folder.config, dump(self.given), synced=True)
            machine = environment(strategy.device, strategy.processes)
            machine |= {"blocks": blocks, "compiled": compiled, "data": found.source.story, **place}
            machine["parameters"] = sum(p.numel() for p in strategy.template.parameters())
            write_json(folder.environment, machine)
            folder.cut_metrics(-1 if span.began is None else span.began)
            drop_later(folder.snapshots, state.step)
            append(folder, json.dumps(start_event(config, state, machine, self.changes, found.passed)) + "\n")
        if batches.size:
            if strategy.is_first:
                _show_data(batches, config, folder)
            if batches.size < FEW:
                self.say(f"warning   {few(batches.size)}")
        for line in (*found.source.doubts(), *launcher_differs(config), *slow_precision(config)):
            self.say(f"warning   {line}")
        self.status.at("first passes")
        if state.step < self.until:
            warm_up(state)
        how = [config.train.precision, *([compiled] if self.options is not None else [])]
        if blocks:
            how.append("blocks in C" if blocks == "C" else "blocks not in C, which a C compiler (cc) would make faster")
        banner(self.say, config, found.source, batches, state, self.until, how)

    def _nothing_to_do(self, state: Training, facts: DataFacts) -> None:
        longer = "--train.stop-at" if self.until < self.config.train.steps else "--train.steps"
        self.say(f"already trained to step {state.step}: nothing to do (for more, give a larger {longer})")
        with self.strategy.whole(state.ema) as ema:
            if self.strategy.is_first:  # the last start may have ended between the checkpoint and this
                keep_model(self.config, self.folder, facts, ema, state.step)

    def _train(
        self, state: Training, batches: Batches, facts: DataFacts, span: Span, more: list[Callback],
        guide: OpenRun | None,
    ) -> None:  # fmt: skip
        """All steps of this start."""
        config, requests = self.config, self.requests
        start_tracker(self.strategy.accelerator, config, state.step)
        if not batches.ready:
            state.draw = self.status.during("waiting for data")(state.draw)
        shared = config, self.folder, facts, build_space(config, facts), batches, self.strategy
        try:
            # left after what is being written is written
            with beside("checkpoint") as thread, requests.at_the_end_of_a_step():
                self.status.at("training")  # from now on a signal waits for the end of a step
                session = Session(*shared, span, requests, self.status, thread, guide)
                try:
                    run_loop(state, self.until, [*callbacks(session), *more], requests.wanted)
                finally:
                    self.status.leaving = True
        except NotFiniteError as error:
            raise not_finite(error, state, batches, self.folder) from None

    def _leave(self, state: Training) -> None:
        """End before the end, as all processes agreed: saved.

        Raises:
            Stopped: Always; or MachineError, where it was given up.
        """
        requests = self.requests
        if dead := self.status.dead(patience=1.0):  # the launcher ends the others of its own accord
            raise MachineError(dead)
        leave_together()
        by = f"stopped by {requests.by}" if requests.newest else "stopped, as another process was asked to"
        if state.seen.stop == GIVEN_UP:
            why = f"{by}; the last one, of step {state.step}, was: make room, and the same command continues"
            raise MachineError(why)
        why = f"{by} after step {state.step}, which is saved; the same command continues from there"
        raise Stopped(EXIT_STATUS[state.seen.stop], why)

    def _show(self, facts: DataFacts, batches: Batches, state: Training, ema: nn.Module, began: int) -> None:
        """The run's figures, by the averaged weights, and its report; the other processes wait at the end."""
        folder, config = self.folder, self.config
        run = OpenRun(folder, config, facts, build_space(config, facts), ema, state.step, "")
        takes = config.grid.num_steps * sampling_seconds(state, began, FIGURE_SAMPLES, config.grid)
        try:
            if takes > allowed(state):  # a trial on a slow machine
                self.say(
                    f"figures   not drawn, about {duration(takes)}: flowimg figures {word(folder.path)} draws them"
                )
                draw_curves(folder, config, batches)
            else:
                none_yet = config.grid.guide == EARLY and early_snapshot(folder, state.step) is None
                grid = config.grid.model_copy(update={"guide": None}) if none_yet else config.grid
                run, autocast = with_guide(run, grid.guide), self.strategy.autocast
                guide = run.guide.field if run.guide else None
                sampler = build_sampler(run.field, config, run.space, grid, autocast, guide=guide)
                draw_figures(run, grid, 0, batches, sampler)
            write_report(folder, running=False)
        except Exception as error:  # the run is trained and saved: a missing figure is not a failure
            again = f"flowimg figures {word(folder.path)} tries again"
            print(f"warning   no figures ({type(error).__name__}: {error}); {again}")


def _show_data(batches: Any, config: Config, folder: RunFolder) -> None:
    """Draw a grid of what the field will see, and list the pictures it will not see."""
    if not folder.preview.exists():
        count = min(PREVIEWED, config.train.batch_size, batches.space.fits_a_figure)
        draw_preview(batches, count, config.train.batch_size, folder.preview)
    if bad := batches.left_out:
        write_text(folder.left_out, "".join(f"{name}: {reason}\n" for name, reason in bad))
        first = f"{bad[0][0]}: {bad[0][1]}"
        print(f"warning   {len(bad):,} unusable pictures skipped, such as {first}; all are in {folder.left_out}")
