"""What is saved of a run as it trains: checkpoints, averages for later, and the folder that diffusers reads.

All of it is written by one thread beside the loop, in order, of copies of the state.
"""

import copy
from concurrent.futures import Future
from typing import Any

from torch import Tensor, nn

from flowimg.build.data import DataFacts, build_space
from flowimg.build.field import architecture_of
from flowimg.errors import CheckpointError, MachineError
from flowimg.jobs.export import grid_for, write_model
from flowimg.jobs.train.session import Session
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import OpenRun
from flowimg.runs.signals import GIVEN_UP
from flowimg.settings.run import Config
from flowimg.training.averages import snapshot_steps
from flowimg.training.checkpoint import Checkpoint, Keep, write_checkpoint
from flowimg.training.loop import Callback
from flowimg.training.snapshots import write_snapshot
from flowimg.training.state import Training, average_tensors, state_tensors

MISSES = 3
"""Checkpoints in a row that could not be saved, which end the run."""


def keep_averages(session: Session) -> Callback:
    """Write the power averages at `train.snapshots` steps, also at the one that a run continues from.

    The thread writes them before the checkpoint of the same step, so a run that continues from there lacks none. A
    failed write is only warned of.
    """
    folder, plan = session.folder, session.config.train
    due = snapshot_steps(plan.steps, plan.snapshots)
    writing: Future[None] | None = None

    def write(step: int, tensors: dict[str, Tensor]) -> None:
        try:
            write_snapshot(folder.snapshots, step, tensors)
        except OSError as error:
            print(f"warning   the averages of step {step} were not written ({error})", flush=True)

    def callback(state: Training) -> None:
        nonlocal writing
        if state.step in due and session.strategy.is_first:
            if writing is not None:
                writing.result()  # on a slow disk copies would heap up
            writing = session.thread.submit(write, state.step, _copy(average_tensors(state)))
        if writing is not None and session.span.is_last(state):
            writing.result()

    return callback


def keep_checkpoints(session: Session) -> Callback:
    """Save every `checkpoint_every` steps, at the start (a full disk is found at once) and at the end.

    A thread writes a copy of the state while the next steps are done; the last is waited for. One that cannot be
    written is missed, and the run continues, until MISSES in a row are, but not without any.
    """
    config, status, span = session.config, session.status, session.span
    saver = Saver(session)

    def callback(state: Training) -> None:
        none = status.saved is None  # a folder that cannot hold the first one will hold none
        saver.settle(must=none, wait=False)
        first = state.step == 0 and span.began is None
        if not (first or span.due(state, config.train.checkpoint_every)):
            return
        end = span.is_last(state)
        if session.strategy.is_first:
            status.at("saving")
            saver.settle(must=none)
            saver.save(state)
            if end:
                saver.settle(must=True)
            status.at("training")
        if end:
            session.strategy.wait()

    return callback


class Saver:
    """Writes checkpoints in the session's thread, one at a time, and counts those that could not be written."""

    def __init__(self, session: Session) -> None:
        self.session, plan = session, session.config.train
        self.keep = Keep(plan.keep, plan.keep_every, plan.keep_best)
        self.writing: Future[int] | None = None
        self.average: nn.Module | None = None
        self.misses = 0

    def save(self, state: Training) -> None:
        """Begin to write the state as it is now."""
        if self.average is None and exports(state.ema):
            self.average = copy.deepcopy(state.ema).cpu()
        self.writing = self.session.thread.submit(self._write, state.step, _snapshot(state, self.session))

    def settle(self, must: bool, wait: bool = True) -> None:
        """Wait for what is being written, or look whether it is done; what fails is a miss or, if it must not, raised.

        Raises:
            MachineError: If it must not fail.
        """
        status = self.session.status
        if self.writing is None or not (wait or self.writing.done()):
            return
        try:
            status.saved = self.writing.result()
            self.misses = 0
        except (OSError, CheckpointError) as error:
            self.misses += 1
            saved = f"the last whole one is of step {status.saved}" if status.saved is not None else "there is none"
            if must:
                raise MachineError(f"the checkpoint of step {status.step} cannot be saved ({error}); {saved}") from None
            missed = f"miss {self.misses} of {MISSES}"
            print(f"warning   a checkpoint was not saved ({error}); {saved}; {missed}", flush=True)
            if self.misses == MISSES:
                why = f"{MISSES} checkpoints in a row could not be saved ({error})"
                self.session.requests.ask(GIVEN_UP, why)
        finally:
            self.writing = None

    def _write(self, step: int, checkpoint: Checkpoint) -> int:
        session = self.session
        write_checkpoint(session.folder.checkpoints, step, checkpoint, self.keep)
        if self.average is not None:
            self.average.load_state_dict(checkpoint.tensors["ema"])
            try:
                keep_model(session.config, session.folder, session.facts, self.average, step)
            except OSError as error:
                print(f"warning   {session.folder.model} is not of step {step} ({error})", flush=True)
        return step


def exports(field: nn.Module) -> bool:
    """Whether diffusers knows the network inside a field."""
    return getattr(field, "exports", None) is not None


def _snapshot(state: Training, session: Session) -> Checkpoint:
    """A copy of the state as it is now, in memory."""
    about: dict[str, Any] = {
        "shape": session.facts.shape,
        "classes": session.facts.classes,
        **({"absent": session.facts.absent} if session.facts.absent else {}),
        "seed": session.config.seed,
        "architecture": architecture_of(session.config, state.field),
        "data": session.batches.fingerprint,
        "batch_size": state.objective.batch_size,
        "samples": state.samples,
        "processes": session.strategy.processes,
        # a start from here must not forget how long nothing was finite, or starts would creep through it
        **state.flags.counted(),
        "metrics": session.last.copy() if session.last.get("step") == state.step else {},
    }
    return Checkpoint({file: _copy(held) for file, held in state_tensors(state).items()}, about)


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def keep_model(config: Config, folder: RunFolder, facts: DataFacts, ema: nn.Module, step: int) -> None:
    """Write RUN/model, the averaged field for diffusers, where diffusers knows its network."""
    if exports(ema):
        run = OpenRun(folder, config, facts, build_space(config, facts), ema, step, "")
        write_model(folder.model, run, grid_for(folder, step))
