"""The irreducible loss of a run: kept in its folder, or estimated from its data where they are there."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from flowimg.build.data import build_source
from flowimg.build.flow import build_objective
from flowimg.data.batches import Batches, ImageBatches, PointBatches
from flowimg.data.stream import StreamBatches
from flowimg.files import write_text
from flowimg.flow.condition import Condition
from flowimg.flow.irreducible import BINS, Irreducible, irreducible_loss, means_by_time, tenth_of
from flowimg.flow.objectives import Draw, FlowMatching
from flowimg.flow.times import shift_times
from flowimg.runs.folder import RunFolder
from flowimg.settings.run import Config

DRAWS, DATA = 4096, 262_144
"""Points: x_t that the irreducible loss is a mean over, and data that may have made them."""
PICTURES, MOST, NUMBERS = 256, 60_000, 2**28
"""The same for pictures; and the numbers that those may have in all, for memory's sake."""
AS_THEY_ARE = ", of pictures that are not augmented"
"""It is the irreducible held-out loss then: there is no closed form for the others."""


def find_irreducible(folder: RunFolder, config: Config, batches: Batches | None) -> Irreducible | None:
    """The floor of the run's loss: kept in its folder, or estimated from the data where they are found.

    None where noise and data are coupled: there is no closed form then.
    """
    kept = folder.figures / "floor.json"
    if not build_objective(config).coupling.independent:
        return None
    if kept.exists():
        told = json.loads(kept.read_text())
        return Irreducible(told["mean"], [float("nan") if v is None else v for v in told["by_t"]], told["of"])
    if batches is None:
        try:
            batches = build_source(config).load(torch.device("cpu"))
        except Exception as error:  # the data may be on another machine, or gone: a figure less is no failure
            print(f"the floor of the loss is left out: the run's data are not there ({error})")
            return None
    floor = estimate_irreducible(config, batches)
    by_t = [None if value != value else value for value in floor.by_t]
    folder.figures.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps({**floor._asdict(), "by_t": by_t}) + "\n")
    return floor


def estimate_irreducible(config: Config, batches: Batches) -> Irreducible:
    """The loss that the best of all fields would have on this data, under the run's times and label drop."""
    t, losses, of = ESTIMATES[type(batches)](build_objective(config), batches)
    by_t, counts = means_by_time(losses, t), tenth_of(t).bincount(minlength=BINS).tolist()
    known = [(count, loss) for count, loss in zip(counts, by_t, strict=True) if loss == loss]
    mean = sum(count * loss for count, loss in known) / max(sum(count for count, _ in known), 1)
    return Irreducible(mean, by_t, of)


def _of_points(objective: FlowMatching, batches: PointBatches) -> tuple[Tensor, Tensor, str]:
    """Times, the irreducible loss at each, and what it is of."""
    draw = _spread(objective, batches)
    losses = torch.full((DRAWS,), torch.nan, dtype=torch.float64)
    late = draw.t >= 1 - 1 / BINS
    # near the data few points can have made x_t, so it takes many to have some of them
    for some, count in ((~late, DATA // 16), (late & (late.cumsum(0) <= DRAWS // 10), DATA)):
        data = batches.toy.sample(SobolEngine(3, scramble=True, seed=1).draw(count, dtype=torch.float64))
        labels = batches.toy.part(data) if batches.labels else None
        losses[some] = irreducible_loss(objective.path, draw.rows(some), data, labels, fresh=True)
    return draw.t, losses, "what no field can learn"


def _of_pictures(objective: FlowMatching, batches: Any) -> tuple[Tensor, Tensor, str]:
    """Times, the irreducible loss at each, and what it is of."""
    few = _some(batches)
    draw = replace(objective, batch_size=PICTURES).draw(few, 0, range(PICTURES))
    losses = irreducible_loss(objective.path, draw, *_population(few)).cpu()
    of = "what no field can learn, even by heart" + (AS_THEY_ARE if batches.augment > 0 else "")
    return draw.t.cpu(), losses, of


ESTIMATES: dict[type, Callable[[FlowMatching, Any], tuple[Tensor, Tensor, str]]] = {
    PointBatches: _of_points,
    ImageBatches: _of_pictures,
    StreamBatches: _of_pictures,
}
"""How it is estimated from each kind of batches."""


def _spread(objective: FlowMatching, batches: PointBatches) -> Draw:
    """Draws that cover noise, data and times evenly (Sobol's sequence): their mean settles sooner than a random one."""
    even = SobolEngine(7, scramble=True, seed=0).draw(DRAWS, dtype=torch.float64)
    x_1 = batches.toy.sample(even[:, :3])
    x_0 = torch.special.ndtri(even[:, 3:5].clamp(1e-9, 1 - 1e-9))
    t = shift_times(objective.times(even[:, 5]), objective.shift)
    cond = Condition(batches.toy.part(x_1) if batches.labels else None)
    return Draw(x_0, x_1, t, cond.drop("label", even[:, 6] < objective.label_drop))


def _some(batches: Any) -> ImageBatches:
    """The pictures that the loss is of: all of them, or as many as memory and time allow."""
    images = batches.some(min(MOST, max(1, NUMBERS // batches.held_out(1)[0].numel())))
    device = torch.device("cpu") if batches.device.type == "mps" else batches.device  # that one has no float64
    none = torch.zeros(0, dtype=torch.int64)
    return ImageBatches(images.to(device), batches.space, none, batches.flip, batches.seed, PICTURES, device)


def _population(batches: ImageBatches) -> tuple[Tensor, Tensor | None]:
    """All pictures that a step may see, mirrored ones included."""
    pixels, labels, _ = batches.images
    if batches.flip:
        pixels = torch.cat([pixels, pixels.flip(-1)])
        labels = None if labels is None else torch.cat([labels, labels])
    return batches.space.encode(pixels), labels
