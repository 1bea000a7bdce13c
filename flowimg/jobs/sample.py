"""`flowimg sample`: samples of a run's field, from seeds; shared out over processes, streamed to disk, resumable."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from einops import rearrange
from tqdm import tqdm

from flowimg.config import Drawing, Sample, SettingsError, nearest
from flowimg.jobs.draw import quickened, share, show, stream, turns
from flowimg.jobs.folder import Trained, check_guidance, open_run, weights_name, write_text
from flowimg.jobs.machine import MachineError, autocast, leave_together, processes, settle
from flowimg.jobs.outputs import Output, first_rows, join, missing, write_parts
from flowimg.sampling.generate import to_uint8

GRID = 400
"""Pictures in the grid at most; the files hold all."""


def sample(settings: Sample) -> dict[str, Any] | None:
    """Draw samples, write them and a grid of them, and say where they are."""
    state = processes("sample")
    run = open_run(settings.run, settings.weights, settings.step, state.device)
    settings = settle(settings, run.config)
    points = run.config.data.kind == "points"
    if points and settings.format in ("png", "parquet"):
        raise SettingsError(f"--format {settings.format} is for pictures: points are written as npz or npy")
    form = settings.format or ("npz" if points else "png")
    label = find_label(settings.label, run)
    check_guidance(settings.guidance, run.facts, run.config)
    run = quickened(run, settings, settings.count, state)
    seeds = range(settings.seed, settings.seed + settings.count)
    labels = turns(seeds, run.facts.classes) if label is None else torch.full((len(seeds),), label)

    about = {**_about(settings, run, label), "format": form}
    folder = (
        Path(settings.out)
        if settings.out
        else run.folder.generated / f"{how_name(settings, run, label)}_seed{settings.seed}x{settings.count}_{form}"
    )
    kept = _kept(folder, about)
    if len(set(gather_object([(run.step, run.sha256)]))) > 1:  # also: nobody writes before all have looked
        raise MachineError(f"the processes found different checkpoints in {settings.run}: name one by --step")
    output = Output(folder, form, seeds, labels, run.facts.classes)
    lacking: list[Any] = [None]
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if not kept:
            write_text(folder / "samples.json", json.dumps(about, indent=1) + "\n")
        parts = output.path(range(0, 1)).parent
        parts.mkdir(exist_ok=True)
        for leftover in [*folder.glob(".*.tmp"), *parts.glob(".*.tmp")]:  # of a process that was killed while it wrote
            leftover.unlink()
        lacking = [missing(output)]
    # one process looks and tells the others, so that no two draw the same and what is left is shared out evenly
    broadcast_object_list(lacking)
    todo = share(lacking[0], state.process_index, state.num_processes)
    rows = [row for part in todo for row in part]
    nfe = 0

    def arrays() -> Iterator[np.ndarray]:
        nonlocal nfe
        wanted = None if labels is None else labels[rows]
        drawn = stream(
            run.field, run.config, run.facts, settings, [seeds[row] for row in rows], wanted, settings.batch_size
        )
        for batch in drawn:
            nfe = max(nfe, batch.nfe)
            yield batch.x_1.float().numpy() if points else rearrange(to_uint8(batch.x_1), "n c h w -> n h w c").numpy()

    before = len(seeds) - sum(len(part) for part in lacking[0])
    shown = None if state.is_main_process else True
    desc = None if state.num_processes == 1 else f"process 1 of {state.num_processes}"
    with (
        autocast(state.device, settings.precision),
        tqdm(total=before + len(rows), initial=before, unit="sample", desc=desc, disable=shown) as progress,
    ):
        for count in write_parts(output, todo, arrays()):
            progress.update(count)
    state.wait_for_everyone()
    nfe = max(gather_object([nfe]))  # few samples are not enough for every process
    lacking = [missing(output)]
    broadcast_object_list(lacking)
    if lacking[0]:
        raise MachineError(f"{folder} lacks samples that other processes drew: it must be on a disk they share")
    told = None
    if state.is_main_process:
        told = _finish(output, about, nfe or kept.get("nfe"), run, points)
    leave_together()
    return told


def _finish(output: Output, about: dict[str, Any], nfe: int | None, run: Trained, points: bool) -> dict[str, Any]:
    """The grid, the one file of all, and what they are."""
    figure = output.folder / "grid.png"
    count = len(output.seeds) if points else min(GRID, len(output.seeds))
    if all(output.path(part).exists() for part in output.parts() if part.start < count):  # else it was drawn before
        rows = torch.from_numpy(first_rows(output, count))
        seen = rows if points else rearrange(rows, "n h w c -> n c h w").float() / 127.5 - 1
        show(seen, None if output.labels is None else output.labels[:count], run.config, figure, f"step {run.step}")
    join(output)
    write_text(output.folder / "samples.json", json.dumps({**about, "nfe": nfe}, indent=1) + "\n")
    cost = f", {nfe} evaluations each" if nfe else ""
    print(f"{len(output.seeds):,} samples of step {run.step}{cost}: {output.file}")
    print(f"the grid: {figure}")
    where = {
        "run": str(run.folder.path),
        "folder": str(output.folder),
        "samples": str(output.file),
        "grid": str(figure),
    }
    return {**where, **about, "nfe": nfe}


def find_label(label: int | str | None, run: Trained) -> int | None:
    """The number of the class that was asked for by number or name.

    Raises:
        SettingsError: If the run has no such class.
    """
    if label is None:
        return None
    classes = list(run.facts.classes)
    if not classes:
        raise SettingsError(f"--label {label} needs a conditional run, and {run.folder.path} is not one")
    if str(label) in classes:
        return classes.index(str(label))
    if str(label).isdecimal() and int(label) < len(classes):
        return int(label)
    raise SettingsError(f"--label {label} is no class of {run.folder.path}: {nearest(str(label), classes)}")


def _about(settings: Sample, run: Trained, label: int | None) -> dict[str, Any]:
    """Everything that decides the samples: what must be equal for a folder to be gone on with."""
    idle = {"run", "out", "batch_size", "compile", "format", "label", "step"}
    idle |= {"num_steps", "times", "shift"} if settings.solver == "dopri5" else {"tolerance"}
    idle |= {"guidance_interval"} if settings.guidance == 1 else set()
    return {
        **settings.model_dump(mode="json", exclude=idle),
        "step": run.step,
        "weights_sha256": run.sha256,
        "label": None if label is None else run.facts.classes[label],
    }


def how_name(settings: Drawing, run: Trained, label: int | None) -> str:
    """A name for what is drawn so: the step, the weights, the solver and what differs from the usual."""
    dopri5 = settings.solver == "dopri5"
    solver = settings.solver + (f"{settings.tolerance:g}" if dopri5 else str(settings.num_steps))
    low, high = settings.guidance_interval
    parts = {
        settings.times: settings.times != "uniform" and not dopri5,
        f"shift{settings.shift:g}": settings.shift != 1 and not dopri5,
        f"class{label}": label is not None,
        settings.precision: settings.precision != "fp32",
        f"guidance{settings.guidance:g}": settings.guidance != 1,
        f"from{low:g}to{high:g}": settings.guidance != 1 and settings.guidance_interval != (0, 1),
    }
    return "_".join(
        [
            f"step_{run.step:08d}_{weights_name(settings.weights)}_{solver}",
            *(part for part, said in parts.items() if said),
        ]
    )


def _kept(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a folder that holds these very samples, or the beginning of them, says of itself; {} for a new one.

    Raises:
        SettingsError: If it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file: name a folder")
    if not folder.exists() or all(file.suffix == ".tmp" for file in folder.iterdir()):
        return {}
    try:
        kept = json.loads((folder / "samples.json").read_text())
    except (OSError, ValueError):
        kept = None
    if not isinstance(kept, dict) or {name: kept.get(name) for name in about} != about:
        raise SettingsError(f"{folder} holds other files, which are not overwritten: name another folder by --out")
    return kept
