"""`flowimg sample`: samples of a run from seeds, distributed over processes, streamed to disk, resumable."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from flowimg.build.data import build_condition, portions
from flowimg.errors import MachineError, SettingsError
from flowimg.figures.samples import Samples, draw_portions
from flowimg.files import read_json, write_json
from flowimg.jobs.drawing import check_same_run, compiled, label_of, opened, sampler_of
from flowimg.machine.processes import leave_together, processes, share
from flowimg.runs.opening import OpenRun, made_away_from, weights_name
from flowimg.sampling.sampler import Sampler, seeds_from
from flowimg.sampling.writers import SINGLE, Output, check_format, first_rows, join, missing, write_parts
from flowimg.settings.verbs import Drawing, Sample


def sample(settings: Sample) -> dict[str, Any] | None:
    """Draw samples, write them and a grid, and print where they are."""
    state = processes("sample")
    seeds = seeds_from(settings.seed, settings.count)
    settings, run = opened(settings, state.device)
    form = settings.format or run.space.formats[0]
    if form not in run.space.formats:
        raise SettingsError(f"--format {form} cannot hold {run.space.words}: give {' or '.join(run.space.formats)}")
    label = label_of(settings, run)
    field = compiled(run, settings, settings.count, state)  # which refuses before anything is written
    sampler = sampler_of(run, settings, field, settings.batch_size)
    cond = build_condition(run.config, run.facts, seeds, label)
    shares = portions(run.config, run.facts, seeds)
    if len(run.facts.buckets) > 1 and form not in SINGLE:
        raise SettingsError(f"--format {form} holds pictures of one shape: give one by --shape, or --format png")

    about = _about(settings, run, label) | {"format": form}
    usual = f"{how_name(settings, run, label)}_seed{settings.seed}x{settings.count}_{form}"
    folder = Path(settings.out) if settings.out else run.folder.generated / usual
    kept = _kept(folder, about)
    check_same_run(settings, run)  # this also waits until all processes have looked
    outputs = [
        Output(folder, form, [seeds[row] for row in rows], cond.rows(rows), run.facts.classes, space)
        for space, rows in shares
    ]
    for output in outputs:
        check_format(output)
    nfe = 0
    # of all shapes before any is drawn: looking for the next one would delete what others still write of this one
    lacks = [_lacking(output, about, kept, state) for output in outputs]
    for output, lacking in zip(outputs, lacks, strict=True):
        todo = share(lacking, state.process_index, state.num_processes)
        sampler = replace(sampler, shape=output.space.shape)
        nfe = max(nfe, _draw(sampler, output, todo, sum(map(len, lacking)), state))
    state.wait_for_everyone()
    nfe = max(gather_object([nfe]))  # few samples are not enough for every process
    left: list[Any] = [[part for output in outputs for part in missing(output)]]
    broadcast_object_list(left)
    if left[0]:
        raise MachineError(f"{folder} lacks samples that other processes drew: it must be on a disk they share")
    told = _finish(outputs, about, nfe or kept.get("nfe"), run) if state.is_main_process else None
    leave_together()
    return told


def _lacking(output: Output, about: dict[str, Any], kept: dict[str, Any], state: PartialState) -> list[range]:
    """The parts to draw: one process looks and sends them to the others, so that no two draw the same."""
    lacking: list[Any] = [None]
    if state.is_main_process:
        folder = output.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not kept:
            write_json(folder / "samples.json", about)
        parts = output.path(range(0, 1)).parent
        parts.mkdir(exist_ok=True)
        for leftover in [*folder.glob(".*.tmp"), *parts.glob(".*.tmp")]:  # of a process that was killed while it wrote
            leftover.unlink()
        lacking = [missing(output)]
    broadcast_object_list(lacking)
    return lacking[0]


def _draw(sampler: Sampler, output: Output, todo: Sequence[range], lacking: int, state: PartialState) -> int:
    """Draw and write these parts; the evaluations each sample took.

    Args:
        sampler: Draws them.
        output: Where to.
        todo: The parts that this process draws.
        lacking: Samples that all processes together draw.
        state: The processes.
    """
    rows = [row for part in todo for row in part]
    nfe = 0

    def arrays() -> Iterator[np.ndarray]:
        nonlocal nfe
        for batch in sampler.samples([output.seeds[row] for row in rows], output.cond.rows(rows)):
            nfe = max(nfe, batch.nfe)
            yield output.space.rows(batch.x_1).numpy()

    before = len(output.seeds) - lacking
    desc = None if state.num_processes == 1 else f"process 1 of {state.num_processes}"
    shown = None if state.is_main_process else True
    with tqdm(total=before + len(rows), initial=before, unit="sample", desc=desc, disable=shown) as progress:
        for count in write_parts(output, todo, arrays()):
            progress.update(count)
    return nfe


def _finish(outputs: Sequence[Output], about: dict[str, Any], nfe: int | None, run: OpenRun) -> dict[str, Any]:
    """Write the grid, the one file of all samples, and their description."""
    folder, file = outputs[0].folder, outputs[0].file
    figure = folder / "grid.png"
    most = min(run.space.in_a_figure, run.space.fits_a_figure) // len(outputs)
    shown = [(output, min(most, len(output.seeds))) for output in outputs]
    if all(out.path(part).exists() for out, n in shown for part in out.parts() if part.start < n):  # else drawn before
        drawn = [
            Samples(out.space, out.space.of_rows(torch.from_numpy(first_rows(out, n))), out.cond.rows(slice(n)))
            for out, n in shown
        ]
        draw_portions(drawn, figure, f"step {run.step}")
    for output in outputs:
        join(output)
    write_json(folder / "samples.json", {**about, "nfe": nfe})
    cost = f", {nfe} evaluations each" if nfe else ""
    print(f"{sum(len(output.seeds) for output in outputs):,} samples of step {run.step}{cost}: {file}")
    print(f"the grid: {figure}")
    where = {"run": run.folder.path, "folder": folder, "samples": file, "grid": figure}
    return {**{name: str(path) for name, path in where.items()}, **about, "nfe": nfe}


def _about(settings: Sample, run: OpenRun, label: int | None) -> dict[str, Any]:
    """Everything that decides the samples: what must match to resume into a folder."""
    drawn = {"count", "seed", "weights", "precision", *(("shape",) if settings.shape else ())}
    return {
        **settings.acting,
        **settings.model_dump(mode="json", include=drawn),
        **made_away_from(run.guide),
        "step": run.step,
        "weights_sha256": run.sha256,
        "label": None if label is None else run.facts.classes[label],
    }


def how_name(settings: Drawing, run: OpenRun, label: int | None) -> str:
    """A name for samples drawn with these settings: step, weights, solver, and what differs from the defaults."""
    adaptive = settings.adaptive
    solver = settings.solver + (f"{settings.tolerance:g}" if adaptive else str(settings.num_steps))
    low, high = settings.guidance_interval
    parts = {
        settings.times: settings.times != "uniform" and not adaptive,
        f"shift{settings.shift:g}": settings.shift != 1 and not adaptive,
        f"class{label}": label is not None,
        "x".join(map(str, settings.shape or ())): settings.shape is not None,
        settings.precision: settings.precision != "fp32",
        f"guidance{settings.guidance:g}": settings.guidance != 1,
        f"from{low:g}to{high:g}": settings.guidance != 1 and settings.guidance_interval != (0, 1),
        _noise_name(settings): settings.stochastic,
        _guide_name(settings, run): run.guide is not None,
    }
    head = f"step_{run.step:08d}_{weights_name(settings.weights)}_{solver}"
    return "_".join([head, *(part for part, said in parts.items() if said)])


def _noise_name(settings: Drawing) -> str:
    low, high = settings.noise_interval
    shape = "" if settings.shape_of_noise == "sigma" else settings.shape_of_noise
    return f"noise{settings.noise_strength:g}{shape}" + (f"from{low:g}to{high:g}" if (low, high) != (0, 1) else "")


def _guide_name(settings: Drawing, run: OpenRun) -> str:
    if run.guide is None:
        return ""
    low, high = settings.guide_interval
    within = f"from{low:g}to{high:g}" if (low, high) != (0, 1) else ""
    return f"away{settings.autoguidance:g}{within}_from_{run.guide.step}_{run.guide.sha256[:6]}"


def _kept(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The description in a folder that holds these samples or the first of them; {} for a new folder.

    Raises:
        SettingsError: If it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file: name a folder")
    if not folder.exists() or all(file.suffix == ".tmp" for file in folder.iterdir()):
        return {}
    kept = read_json(folder / "samples.json")
    more = {name for name in kept if name.startswith(("guide", "noise"))} - about.keys()  # which these have not
    if more or {name: kept.get(name) for name in about} != about:
        raise SettingsError(f"{folder} holds other files, which are not overwritten: name another folder by --out")
    return kept
