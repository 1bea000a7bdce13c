"""What the verbs share that draw from given pictures: `flowimg inpaint` and `flowimg vary`."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from flowimg.conditions.labels import labelled
from flowimg.errors import SettingsError
from flowimg.figures.samples import check_grid, save_grid
from flowimg.flow.condition import Condition
from flowimg.jobs.drawing import check_pictures, compiled, label_of, new_folder, opened, sampler_of
from flowimg.jobs.given import stem
from flowimg.jobs.sample import how_name
from flowimg.machine.processes import leave_together, processes, share
from flowimg.runs.opening import OpenRun
from flowimg.sampling.sampler import Followed, Sampler, seeds_from
from flowimg.sampling.writers import SINGLE
from flowimg.settings.steering import FromPictures

SettingsT = TypeVar("SettingsT", bound=FromPictures)
Draw = Callable[[Sampler, list[int], list[int], Condition], Followed]
"""(sampler, pictures by number, seeds, conditions) -> what was drawn of them, a row each."""


def opened_for(verb: str, settings: SettingsT) -> tuple[SettingsT, OpenRun, int | None, PartialState]:
    """The settings, the run, the class and the processes of a verb that draws from pictures.

    Raises:
        SettingsError: If they do not fit together.
    """
    state = processes(verb)
    if not settings.pictures:
        raise SettingsError(f"flowimg {verb} needs pictures: flowimg {verb} RUN PICTURE ...")
    seeds_from(settings.seed, settings.count)
    settings, run = opened(settings, state.device)
    check_pictures(settings, run)
    label = label_of(settings, run)
    if label is None and run.facts.classes and run.config.train.label_drop == 0:
        raise SettingsError(
            f"{settings.run} learned no pictures without their class (train.label_drop 0): give --label"
        )
    if label is None and settings.guidance != 1:
        raise SettingsError(f"guidance {settings.guidance:g} needs a class to guide towards: give --label")
    check_grid(run.space, len(settings.pictures) * (settings.count + 1), settings.count + 1, "give fewer pictures")
    return settings, run, label, state


def draw_from(
    settings: FromPictures, run: OpenRun, label: int | None, state: PartialState, draw: Draw
) -> Followed | None:
    """What is drawn from each picture with each seed, picture by picture, on the first process; each draws its share.

    Args:
        settings: Those of the verb.
        run: The run.
        label: The class of all that is drawn.
        state: The processes.
        draw: Draws a batch.
    """
    count = len(settings.pictures) * settings.count
    field = compiled(run, settings, count, state)
    sampler = sampler_of(run, settings, field, settings.batch_size)
    mine = share(range(count), state.process_index, state.num_processes)
    rows: list[Tensor] = []
    nfe = 0
    with tqdm(total=len(mine), unit="sample", leave=False, disable=None if state.is_main_process else True) as bar:
        for start in range(0, len(mine), sampler.batch_size):
            some = mine[start : start + sampler.batch_size]
            pictures, seeds = zip(*(divmod(row, settings.count) for row in some), strict=True)
            cond = labelled(label, len(some), run.facts.classes)
            states, calls = draw(sampler, list(pictures), [settings.seed + seed for seed in seeds], cond)
            rows.append(states[-1])
            nfe = max(nfe, calls)
            bar.update(len(some))
    shares = gather_object([(torch.cat(rows) if rows else torch.zeros(0, *run.space.shape), nfe)])
    leave_together()
    if not state.is_main_process:
        return None
    return Followed(torch.cat([x for x, _ in shares]), max(calls for _, calls in shares))


def keep_drawn(
    settings: FromPictures, run: OpenRun, label: int | None, how: str, shown: Tensor, drawn: Followed
) -> dict[str, Any]:
    """Write what was drawn and a grid, a row a picture with what is `shown` of it first; and say where."""
    space: Any = run.space
    out = new_folder(settings.out, run.folder.generated / f"{how_name(settings, run, label)}_{how}")
    form = space.formats[0]
    for old in out.glob(f"*_seed*.{SINGLE[form]}"):  # there may have been others the last time
        old.unlink()
    files = []
    for row, picture in enumerate(space.rows(drawn.states).numpy()):
        number, seed = divmod(row, settings.count)
        name = f"{stem(number, settings.pictures[number])}_seed{settings.seed + seed}.{SINGLE[form]}"
        (out / name).write_bytes(space.as_file(picture, form))
        files.append(str(out / name))
    rows = drawn.states.unflatten(0, (len(shown), settings.count))
    grid = out / "grid.png"
    save_grid(space, torch.cat([shown[:, None], rows], dim=1).flatten(0, 1), grid, settings.count + 1)
    print(f"{len(files)} pictures from {len(shown)}, {drawn.nfe} evaluations each: {out}")
    print(f"the grid (what was given, then {settings.count} drawn): {grid}")
    return {"run": settings.run, "step": run.step, "folder": str(out), "grid": str(grid), "files": files,
            "nfe": drawn.nfe}  # fmt: skip
