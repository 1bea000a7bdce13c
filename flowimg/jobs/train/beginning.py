"""Where a start of a run begins: its data, the checkpoint to continue from, and its state there."""

import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from flowimg.build.data import build_source
from flowimg.build.facts import DataFacts, FoundData
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.data.batches import Batches
from flowimg.data.prefetch import Prefetch, keep_last
from flowimg.errors import CheckpointError, MachineError
from flowimg.files import read_json
from flowimg.jobs.train.launch import cut, recipe_of
from flowimg.jobs.train.profile import check_steps
from flowimg.machine.compiling import how_compiled
from flowimg.runs.folder import RunFolder
from flowimg.runs.guides import check_fits, open_guide
from flowimg.runs.opening import OpenRun, check_guidance, check_network
from flowimg.runs.resume import Change, check_averages, check_data, checkpoint_to_resume
from flowimg.settings.run import Config, Start
from flowimg.settings.sampling import EARLY
from flowimg.training.checkpoint import Check, Checkpoint, problem, step_folders
from flowimg.training.state import Training, restore, start
from flowimg.training.strategies import Strategy


class Resolved(NamedTuple):
    """What a start found: data, the checkpoint to continue from, and what the field must know of both."""

    source: FoundData
    checkpoint: Checkpoint | None
    facts: DataFacts
    passed: list[str]


@dataclass(frozen=True)
class Beginning:
    """What a start begins from; `changes` are the settings that differ from the run's, to which `begin` adds."""

    config: Config
    how: Start
    folder: RunFolder
    changes: list[Change]
    strategy: Strategy
    options: dict[str, bool] | None
    stack: ExitStack

    @property
    def until(self) -> int:
        """The step at which this start ends."""
        return min(self.config.train.steps, self.config.train.stop_at or self.config.train.steps)

    def say(self, line: str) -> None:
        """Print a line, on the first process only."""
        if self.strategy.is_first:
            print(line)

    def find(self) -> Resolved:
        """Look the data through, and find the checkpoint to continue from.

        Raises:
            SettingsError, DataError, CheckpointError: If they do not fit the settings.
        """
        config, folder, strategy = self.config, self.folder, self.strategy
        passed: list[str] = []
        with strategy.accelerator.local_main_process_first():  # one process fills the caches, the others read them
            source = build_source(config)
        checkpoint = checkpoint_to_resume(folder, self.how, passed.append, strategy.is_first, self._check())
        for line in passed:
            self.say(line)
        facts = source.facts
        if checkpoint:
            facts = facts._replace(architecture=checkpoint.state.get("architecture"))
            check_network(config, facts, checkpoint.tensors["weights"], folder.checkpoints)
            check_averages(checkpoint, config, folder.path)
        if self.how.profile:
            check_steps(checkpoint.state["step"] if checkpoint else 0, self.until)
        return Resolved(source, checkpoint, facts, passed)

    def guide(self, found: Resolved) -> OpenRun | None:
        """Another run that autoguidance of the grids goes away from, while there are steps left.

        Raises:
            SettingsError: If there is none, or it does not fit.
        """
        asked = self.config.grid.guide
        if asked in (None, EARLY) or (found.checkpoint and found.checkpoint.state["step"] >= self.until):
            return None
        guide = open_guide(asked, self.folder, 0, self.strategy.device)
        check_fits(asked, guide, str(self.folder.path), found.facts, self.config)
        return guide

    def _check(self) -> Check:
        """How a checkpoint is checked: each process reads its share of the files, where all see the same folders."""
        strategy = self.strategy
        names = "".join(path.name for path in step_folders(self.folder.checkpoints))
        seen = torch.tensor([zlib.crc32(names.encode())], device=strategy.device)
        if strategy.processes == 1 or len(strategy.gather_rows(seen).unique()) > 1:
            return problem

        def check(path: Path) -> str | None:
            why = problem(path, share=(strategy.process, strategy.processes))
            bad = strategy.gather_rows(torch.tensor([why is not None], device=strategy.device))
            return (problem(path) or why or "another process cannot read it") if bool(bad.any()) else None

        return check

    def begin(self, found: Resolved) -> tuple[Training, Batches]:
        """The run at the step where this start begins, and its data."""
        config, folder, strategy, checkpoint = self.config, self.folder, self.strategy, found.checkpoint
        check_guidance(config.grid.guidance, found.facts, config)
        with strategy.accelerator.local_main_process_first():
            field = build_field(config, found.facts)
            batches = found.source.load(strategy.device)
        offset = 0
        if checkpoint:
            check_data(checkpoint.state, batches.fingerprint, self.how.allow, folder.path)
            self.changes.extend(_other_machine(checkpoint, strategy, folder, how_compiled(self.options)))
            seen = checkpoint.state["samples"]
            offset = 0 if seen is None else seen - checkpoint.state["step"] * config.train.batch_size
        batches = batches.seen_from(offset)
        objective = build_objective(config)
        _, accumulation = cut(config, strategy, field.to(strategy.device), objective, batches)
        recipe, offload = recipe_of(config, accumulation), config.train.offload
        state = start(strategy, field, objective, batches, recipe, self.options, offload)
        state.offset = offset
        _feed(state, batches, self.stack)
        if checkpoint:
            _restore(state, checkpoint, folder)
        _agree(state, folder)
        return state, batches


def _feed(state: Training, batches: Batches, stack: ExitStack) -> None:
    """Make data, noise and times ahead of the steps, in a thread, unless they lie in memory already."""
    stack.callback(batches.close)
    if batches.ready:
        return
    ahead = Prefetch(partial(state.objective.draw, keep_last(batches)), state.micro_batches())
    stack.callback(ahead.close)
    state.draw = ahead


def _other_machine(checkpoint: Checkpoint, strategy: Strategy, folder: RunFolder, compiled: str) -> list[Change]:
    """Changes of the number of processes and of compiling since the checkpoint was written."""
    compared = [
        ("processes", checkpoint.state["processes"], strategy.processes),
        ("compiled", read_json(folder.environment).get("compiled"), compiled),
    ]
    verdict = "same samples, different rounding"
    return [Change(key, then, now, verdict) for key, then, now in compared if then not in (None, now)]


def _restore(state: Training, checkpoint: Checkpoint, folder: RunFolder) -> None:
    """Set the run to its checkpoint.

    Raises:
        CheckpointError: If its tensors are not those of this network.
    """
    about = checkpoint.state
    try:
        restore(state, about["step"], checkpoint.tensors, about["in_row"], about["skipped"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint in {folder.path} does not fit the network of these settings: {said}"
        ) from None


def _agree(state: Training, folder: RunFolder) -> None:
    """Check that all processes found the same checkpoint.

    Raises:
        MachineError: If they did not.
    """
    found = state.strategy.gather_rows(torch.tensor([state.step], device=state.strategy.device))
    if len(found.unique()) > 1:
        raise MachineError(f"the processes found checkpoints of steps {found.tolist()}: {folder.path} must be shared")
