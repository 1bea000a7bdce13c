"""What the verbs share that draw from given pictures: `flowimg inpaint` and `flowimg vary`."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from flowimg.conditions.labels import labelled
from flowimg.errors import SettingsError
from flowimg.figures.samples import check_grid, save_grid
from flowimg.files import write_json
from flowimg.flow.condition import Condition
from flowimg.jobs.drawing import (
    check_pictures,
    check_places,
    check_same_run,
    compiled,
    label_of,
    new_folder,
    opened,
    sampler_of,
)
from flowimg.jobs.sample import how_name
from flowimg.machine.processes import leave_together, processes, share
from flowimg.runs.opening import OpenRun, check_null, made_by
from flowimg.sampling.sampler import Followed, Sampler, seeds_from
from flowimg.sampling.writers import SINGLE
from flowimg.settings.sampling import Solving
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
    if label is None:
        check_null(run, "give --label")
    if label is None and settings.guidance != 1:
        raise SettingsError(f"guidance {settings.guidance:g} needs a class to guide towards: give --label")
    check_grid(run.space, len(settings.pictures) * (settings.count + 1), settings.count + 1, "give fewer pictures")
    return settings, run, label, state


class Place(NamedTuple):
    """Where the pictures of a verb go: a folder, and the format of the files in it."""

    folder: Path
    form: str

    def file(self, settings: FromPictures, row: int) -> Path:
        """The file of a picture: `row` counts pictures and seeds."""
        number, seed = divmod(row, settings.count)
        name = Path(settings.pictures[number]).stem.encode()[:60].decode(errors="ignore")  # a file's name has a limit
        start = f"{number:03d}_{name}"
        return self.folder / f"{start}_seed{settings.seed + seed}.{SINGLE[self.form]}"


def place_for(settings: FromPictures, run: OpenRun, label: int | None, how: str, given: Sequence[Tensor]) -> Place:
    """The place for what is drawn from these tensors, made by every process; `how` ends the usual folder's name.

    Raises:
        SettingsError: If --out exists.
    """
    digest = hashlib.sha256("\0".join(settings.pictures).encode())
    for tensor in given:
        digest.update(tensor.numpy().tobytes())
    seeds = f"seed{settings.seed}x{settings.count}_{digest.hexdigest()[:8]}"
    usual = run.folder.generated / f"{how_name(settings, run, label)}_{how}_{seeds}"
    folder = new_folder(settings.out, usual)
    space: Any = run.space
    check_same_run(settings, run)  # waits until all processes have looked
    check_places(folder / "grid.png")
    return Place(folder, space.formats[0])


def draw_from(
    settings: FromPictures, run: OpenRun, label: int | None, state: PartialState, place: Place, draw: Draw
) -> Followed | None:
    """Draw from each picture with each seed, picture by picture; each process draws and writes its share.

    Args:
        settings: Those of the verb.
        run: The run.
        label: The class of all that is drawn.
        state: The processes.
        place: Where the files go.
        draw: Draws a batch.
    Returns:
        All that was drawn, on the first process.
    """
    count, space = len(settings.pictures) * settings.count, cast(Any, run.space)
    sampler = sampler_of(run, settings, compiled(run, settings, count, state), settings.batch_size)
    mine = share(range(count), state.process_index, state.num_processes)
    parts = [torch.zeros(0, *space.shape)]
    nfe = 0
    with tqdm(total=len(mine), unit="sample", leave=False, disable=None if state.is_main_process else True) as bar:
        for start in range(0, len(mine), sampler.batch_size):
            some = mine[start : start + sampler.batch_size]
            pictures, seeds = zip(*(divmod(row, settings.count) for row in some), strict=True)
            cond = labelled(label, len(some), run.facts.classes)
            states, calls = draw(sampler, list(pictures), [settings.seed + seed for seed in seeds], cond)
            parts.append(states[-1].clone())
            for row, picture in zip(some, space.rows(parts[-1]).numpy(), strict=True):
                place.file(settings, row).write_bytes(space.as_file(picture, place.form))
            nfe = max(nfe, calls)
            bar.update(len(some))
    if odd := sum(not bool(x.isfinite().all()) for x in torch.cat(parts)):
        print(f"warning   {odd} of {len(mine)} pictures are not finite: use more steps or less guidance")
    shares = gather_object([(torch.cat(parts), nfe)])
    leave_together()
    if not state.is_main_process:
        return None
    return Followed(torch.cat([x for x, _ in shares]), max(calls for _, calls in shares))


def told(settings: FromPictures, run: OpenRun, place: Place, shown: Tensor, drawn: Followed) -> dict[str, Any]:
    """Write a grid, a row a picture with what is `shown` of it first, and what was done; and say where."""
    rows, grid = drawn.states.unflatten(0, (len(shown), settings.count)), place.folder / "grid.png"
    save_grid(run.space, torch.cat([shown[:, None], rows], dim=1).flatten(0, 1), grid, settings.count + 1)
    files = [str(place.file(settings, row)) for row in range(len(drawn.states))]
    where = {"folder": str(place.folder), "grid": str(grid), "files": files}
    made = made_by(run, settings.weights, settings.precision)
    own = settings.model_dump(mode="json", exclude=set(Solving.model_fields))
    result = {**own, **settings.acting, **made, **where, "nfe": drawn.nfe}
    write_json(place.folder / "samples.json", result)
    several = "picture" if len(files) == 1 else "pictures"
    print(f"{len(files)} {several} drawn from {len(shown)}, {drawn.nfe} evaluations each: {place.folder}")
    print(f"the grid (what was given, then {settings.count} drawn): {grid}")
    return result
