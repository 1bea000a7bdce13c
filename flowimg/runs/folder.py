"""What lies where in a run's folder."""

import json
from pathlib import Path
from typing import Any

from flowimg.errors import SettingsError
from flowimg.files import write_text
from flowimg.names import on_disk, one_line


def _lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; half a line, from a run that was killed, is passed over."""
    kept: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(record)
    return kept


def _while_training(evaluation: dict[str, Any]) -> bool:
    return bool(evaluation.get("during"))


class RunFolder:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        """All settings of the run, resolved."""
        self.environment = path / "environment.json"
        """Versions and machine of the last start."""
        self.metrics = path / "metrics.jsonl"
        """One JSON object a line, every `train.log_every` steps."""
        self.status = path / "status.json"
        """How the run is: running, done, preempted or failed, and why."""
        self.evaluations = path / "evaluations.jsonl"
        """One JSON object a line, an evaluation each: its scores and how it was made."""
        self.checkpoints = path / "checkpoints"
        """A folder for each checkpoint kept."""
        self.snapshots = path / "snapshots"
        """Averages of the weights kept aside, of which others are made."""
        self.samples = path / "samples"
        """Grids drawn during training."""
        self.preview = path / "data.png"
        """What the field sees at the first step, for runs on pictures."""
        self.left_out = path / "left_out.txt"
        """Pictures that could not be used, a line each, with the reason."""
        self.figures = path / "figures"
        """What the run looks like."""
        self.profile = path / "profile"
        """Where the time of a step went, for runs with --profile."""
        self.report = path / "report.html"
        """One page about the run."""
        self.generated = path / "generated"
        """What the verbs drew that name no other folder."""
        self.model = path / "model"
        """The averaged field as a folder that diffusers reads."""

    def grid(self, step: int, weights: str = "ema") -> Path:
        """The grid of a step: of the average, or of the raw weights."""
        return self.samples / f"step_{step:08d}{'' if weights == 'ema' else '_raw'}.png"

    def grids(self) -> list[tuple[int, Path]]:
        """The grids of the average that are there, with their steps, in order."""
        return sorted((int(path.stem[5:]), path) for path in self.samples.glob("step_*[0-9].png"))

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics that are whole, in order; no events."""
        return [line for line in _lines(self.metrics) if "event" not in line]

    def events(self) -> list[dict[str, Any]]:
        """What happened to the run, in order: each start of it."""
        return [line for line in _lines(self.metrics) if "event" in line]

    def evaluated(self) -> list[dict[str, Any]]:
        """All evaluations, in order."""
        return _lines(self.evaluations)

    def cut_metrics(self, step: int) -> None:
        """Drop metrics past a step, which a continued run writes again; events and evaluations by the verb stay."""
        for path, again in ((self.metrics, lambda line: "event" not in line), (self.evaluations, _while_training)):
            if path.exists():
                lines = [line for line in _lines(path) if line["step"] <= step or not again(line)]
                write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def check_links(folder: RunFolder) -> None:
    """Refuse a run folder with links that lead out of it: what is written through them would be written elsewhere.

    Raises:
        SettingsError: With the first of them.
    """
    inside = folder.path.resolve()
    for path in [*folder.path.glob("*"), *folder.path.glob("*/*")]:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise SettingsError(
                f"{path} is a link out of the run's folder, and nothing is written through it: to keep a run on "
                f"another disk, make {folder.path} itself the link"
            )


def find_run(run: str) -> RunFolder:
    """The folder of a run.

    Raises:
        SettingsError: If the folder holds no run.
    """
    folder = RunFolder(on_disk(run))
    if not folder.config.exists():
        runs = sorted(str(path.parent) for path in Path("runs").glob("*/config.yaml"))
        there = ", ".join(map(one_line, runs))
        hint = f"; runs here: {there}" if runs else "; train one: flowimg train configs/letters.yaml"
        raise SettingsError(f"{run} holds no run (there is no {folder.config}){hint}")
    return folder
