"""What is saved of a run as it trains: checkpoints, averages for later, and the folder that diffusers reads.

All of it is written by one thread beside the loop, in order, of copies of the state.
"""

from concurrent.futures import Future
from typing import Any

from torch import Tensor, nn

from flowimg.build.data import build_space
from flowimg.build.facts import DataFacts
from flowimg.build.field import architecture_of
from flowimg.errors import CheckpointError, MachineError
from flowimg.jobs.export import grid_for, write_model
from flowimg.jobs.train.session import Session
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import OpenRun
from flowimg.runs.signals import GIVEN_UP
from flowimg.settings.run import Config
from flowimg.training.averages import snapshot_steps, with_weights
from flowimg.training.checkpoint import Checkpoint, Keep, read_tensors, write_checkpoint
from flowimg.training.loop import Callback
from flowimg.training.parts import prepare, write_share
from flowimg.training.snapshots import write_snapshot
from flowimg.training.state import Training, saved

MISSES = 3
"""Checkpoints in a row that could not be saved, which end the run."""


def keep_averages(session: Session) -> Callback:
    """Write the power averages at `train.snapshots` steps, also at the one that a run continues from.

    The thread writes them before the checkpoint of the same step, so a run that continues from there lacks none. A
    failed write is only warned of.
    """
    folder, plan, status = session.folder, session.config.train, session.status
    due = snapshot_steps(plan.steps, plan.snapshots)
    writing: Future[None] | None = None

    def write(step: int, tensors: dict[str, Tensor]) -> None:
        try:
            write_snapshot(folder.snapshots, step, tensors)
        except OSError as error:
            print(f"warning   the averages of step {step} were not written ({error})", flush=True)

    def callback(state: Training) -> None:
        nonlocal writing
        if state.step in due:
            if writing is not None:
                with status.during("saving"):
                    writing.result()  # on a slow disk copies would heap up
            with status.during("saving"):
                files, _ = saved(state, averages_only=True)
            if files:
                writing = session.thread.submit(write, state.step, files["averages"])
        if writing is not None and session.span.is_last(state):
            with status.during("saving"):
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
        status.at("saving")
        saver.settle(must=none)
        saver.save(state)
        if end:
            saver.settle(must=True)
        status.at("training")
        if end:
            with status.during("saving"):  # the others wait for the last checkpoint
                session.strategy.wait()

    return callback


class Saver:
    """Writes checkpoints in the session's thread, one at a time, and counts those that could not be written.

    Where several processes write a share each, the first finishes the checkpoint, and says what failed.
    """

    def __init__(self, session: Session) -> None:
        self.session, plan = session, session.config.train
        self.keep = Keep(plan.keep, plan.keep_every, plan.keep_best)
        self.writing: Future[int] | None = None
        self.misses = 0

    def save(self, state: Training) -> None:
        """Begin to write the state as it is now; all processes call it together."""
        session, strategy = self.session, self.session.strategy
        trouble: OSError | None = None
        if strategy.shard > 1:
            strategy.wait()  # until nobody writes a share of the last one, which may have failed
            try:
                if strategy.is_first:
                    prepare(session.folder.checkpoints, state.step)
            except OSError as error:
                trouble = error
            strategy.wait()
        files, names = saved(state)
        if strategy.is_first:
            about = _about(state, session)
            others = [name for name in names if name not in files]
            self.writing = session.thread.submit(self._write, state.step, Checkpoint(files, about), others, trouble)
        elif files:
            self.writing = session.thread.submit(self._write_share, state.step, files)

    def settle(self, must: bool, wait: bool = True) -> None:
        """Wait for what is being written, or look whether it is done; what fails is a miss or, if it must not, raised.

        Raises:
            MachineError: If it must not fail.
        """
        status = self.session.status
        if self.writing is None or not (wait or self.writing.done()):
            return
        if not self.session.strategy.is_first:
            self.writing.exception()  # the first process has heard of it
            self.writing = None
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

    def _write(self, step: int, checkpoint: Checkpoint, others: list[str], trouble: OSError | None) -> int:
        if trouble:
            raise trouble
        session, empty = self.session, self.session.strategy.template
        folder = session.folder.checkpoints
        path = write_checkpoint(folder, step, checkpoint, self.keep, others)
        if exports(empty):
            try:
                average = with_weights(empty, read_tensors(path, "ema")).cpu()
                keep_model(session.config, session.folder, session.facts, average, step)
            except OSError as error:
                print(f"warning   {session.folder.model} is not of step {step} ({error})", flush=True)
        return step

    def _write_share(self, step: int, files: dict[str, dict[str, Tensor]]) -> int:
        write_share(self.session.folder.checkpoints, step, files)
        return step


def exports(field: nn.Module) -> bool:
    """Whether diffusers knows the network inside a field."""
    return getattr(field, "exports", None) is not None


def _about(state: Training, session: Session) -> dict[str, Any]:
    """What a checkpoint says of a run beside its tensors."""
    return {
        "shape": session.facts.shape,
        "classes": session.facts.classes,
        **({"buckets": session.facts.buckets} if session.facts.buckets else {}),
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


def keep_model(config: Config, folder: RunFolder, facts: DataFacts, ema: nn.Module, step: int) -> None:
    """Write RUN/model, the averaged field for diffusers, where diffusers knows its network."""
    if exports(ema):
        from flowimg.sampling.pipeline import lacking

        if why := lacking(ema):
            print(f"warning   no {folder.model}: {why}", flush=True)
            return
        run = OpenRun(folder, config, facts, build_space(config, facts), ema, step, "")
        write_model(folder.model, run, grid_for(folder, step))
