"""What is saved of a run as it goes on: checkpoints, averages for later, and the folder that diffusers reads.

All of it is written by one thread beside the loop, in order, of copies of the state.
"""

import copy
from concurrent.futures import Executor, Future
from typing import Any

from torch import Tensor, nn

from flowimg.config import Config
from flowimg.jobs.build import DataFacts, architecture_of
from flowimg.jobs.export import grid_for, write_model
from flowimg.jobs.folder import RunFolder
from flowimg.jobs.machine import MachineError
from flowimg.jobs.signals import GIVEN_UP, Wishes
from flowimg.jobs.status import Status
from flowimg.jobs.stretch import Stretch
from flowimg.training.checkpoint import Checkpoint, CheckpointError, Keep, write_checkpoint
from flowimg.training.ema import snapshot_steps
from flowimg.training.loop import Callback, Training, average_tensors, state_tensors
from flowimg.training.snapshots import write_snapshot

MISSES = 3
"""Checkpoints in a row that could not be saved, which end the run."""


def keep_averages(config: Config, folder: RunFolder, stretch: Stretch, thread: Executor) -> Callback:
    """Keep the power averages aside at `train.snapshots` steps; also at the one that a run goes on from.

    The thread writes them before the checkpoint of the same step: a run that goes on from there lacks none. One that
    cannot be written is missed.
    """
    due = snapshot_steps(config.train.steps, config.train.snapshots)
    writing: Future[None] | None = None

    def write(step: int, tensors: dict[str, Tensor]) -> None:
        try:
            write_snapshot(folder.snapshots, step, tensors)
        except OSError as error:
            print(f"warning   the averages of step {step} were not kept ({error})", flush=True)

    def callback(state: Training) -> None:
        nonlocal writing
        if state.step in due and state.accelerator.is_main_process:
            if writing is not None:
                writing.result()  # on a slow disk copies would heap up
            writing = thread.submit(write, state.step, _copy(average_tensors(state)))
        if writing is not None and stretch.is_last(state):
            writing.result()

    return callback


def keep_checkpoints(
    config: Config,
    folder: RunFolder,
    facts: DataFacts,
    fingerprint: str | None,
    stretch: Stretch,
    last: dict[str, Any],
    wishes: Wishes,
    status: Status,
    thread: Executor,
) -> Callback:
    """Save every `checkpoint_every` steps, at the start (a full disk is found at once) and at the end.

    A thread writes a copy of the state while the next steps are done; the last is waited for. One that cannot be
    written is missed, and the run goes on, until MISSES in a row are, but not without any.
    """
    keep = Keep(config.train.keep, config.train.keep_every, config.train.keep_best)
    writing: Future[int] | None = None
    average: nn.Module | None = None
    misses = 0

    def write(step: int, checkpoint: Checkpoint) -> int:
        write_checkpoint(folder.checkpoints, step, checkpoint, keep)
        if average is not None:
            average.load_state_dict(checkpoint.tensors["ema"])
            try:
                keep_model(config, folder, facts, average, step)
            except OSError as error:
                print(f"warning   {folder.model} is not of step {step} ({error})", flush=True)
        return step

    def settle(must: bool) -> None:
        """Wait for what is being written; what fails is a miss, or the end if it must not fail."""
        nonlocal writing, misses
        if writing is None:
            return
        try:
            status.saved = writing.result()
            misses = 0
        except (OSError, CheckpointError) as error:
            misses += 1
            saved = f"the last whole one is of step {status.saved}" if status.saved is not None else "there is none"
            if must:
                raise MachineError(f"the checkpoint of step {status.step} cannot be saved ({error}); {saved}") from None
            print(f"warning   a checkpoint was not saved ({error}); {saved}; miss {misses} of {MISSES}", flush=True)
            if misses == MISSES:
                wishes.ask(GIVEN_UP, f"{MISSES} checkpoints in a row that could not be saved ({error})")
        finally:
            writing = None

    def callback(state: Training) -> None:
        nonlocal writing, average
        none = status.saved is None  # a folder that cannot hold the first one will hold none
        if writing is not None and writing.done():
            settle(must=none)
        first = state.step == 0 and stretch.began is None
        if not (first or stretch.due(state, config.train.checkpoint_every)):
            return
        end = stretch.is_last(state)
        if state.accelerator.is_main_process:
            status.at("saving")
            settle(must=none)
            if average is None and config.field.kind == "unet":
                average = copy.deepcopy(state.ema).cpu()
            writing = thread.submit(write, state.step, _snapshot(state, config, facts, fingerprint, last))
            if end:
                settle(must=True)
            status.at("training")
        if end:
            state.accelerator.wait_for_everyone()

    return callback


def _snapshot(
    state: Training, config: Config, facts: DataFacts, fingerprint: str | None, last: dict[str, Any]
) -> Checkpoint:
    """A copy of the state as it is now, in memory."""
    about = {
        "shape": facts.shape,
        "classes": facts.classes,
        "seed": config.seed,
        "architecture": architecture_of(config, state.field),
        "data": fingerprint,
        "batch_size": state.objective.batch_size,
        "samples": state.samples,
        "processes": state.accelerator.num_processes,
        # a start from here must not forget how long nothing was finite, or starts would creep through it
        **state.verdict.counted(),
        "metrics": last.copy() if last.get("step") == state.step else {},
    }
    return Checkpoint({file: _copy(held) for file, held in state_tensors(state).items()}, about)


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def keep_model(config: Config, folder: RunFolder, facts: DataFacts, ema: nn.Module, step: int) -> None:
    """Write RUN/model, the averaged field for diffusers, where the field is a U-Net."""
    if config.field.kind == "unet":
        write_model(folder.model, ema, config, facts, step, grid_for(folder, step))
