"""The irreducible loss of a run: stored in its folder, or estimated from its data if these are available."""

import json
import math
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
from flowimg.files import write_json
from flowimg.flow.condition import Condition
from flowimg.flow.irreducible import BINS, Irreducible, irreducible_loss, means_by_time, tenth_of
from flowimg.flow.objectives import Draw, FlowMatching
from flowimg.flow.times import shift_times
from flowimg.runs.folder import RunFolder
from flowimg.settings.run import Config

DRAWS, DATA = 4096, 262_144
"""Points: the number of x_t that the irreducible loss is averaged over, and of data that each is compared with."""
PICTURES, MAX_PICTURES, MAX_VALUES = 256, 60_000, 2**28
"""Pictures: the number of x_t, and the maximum numbers of data and of their pixel values, which bound the memory."""
OF_POINTS, OF_PICTURES = "irreducible loss", "irreducible loss (even with memorisation)"
"""The names of the irreducible loss in figures."""
FORMER = {"what no field can learn, even by heart": OF_PICTURES, "what no field can learn": OF_POINTS}  # house: stored
"""What folders of earlier versions say instead."""
NOT_AUGMENTED = ", of pictures that are not augmented"
"""With augmentation there is no closed form; the value is then the irreducible held-out loss."""


def find_irreducible(folder: RunFolder, config: Config, batches: Batches | None) -> Irreducible | None:
    """The irreducible loss of a run: as stored in its folder, or estimated from the data and stored.

    None if the noise is coupled to the data, for which there is no closed form, if the data are unavailable, or have
    several shapes.
    """
    path = folder.figures / "floor.json"
    if not build_objective(config).coupling.independent or _has_buckets(config):
        return None
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        for former, name in FORMER.items():
            stored["of"] = stored["of"].replace(former, name)
        return Irreducible(stored["mean"], [math.nan if v is None else v for v in stored["by_t"]], stored["of"])
    if batches is None:
        try:
            batches = build_source(config).load(torch.device("cpu"))
        except Exception as error:  # the data may be on another machine, or gone: a missing figure is not a failure
            print(f"the irreducible loss is left out, because the run's data are unavailable ({error})")
            return None
    irreducible = estimate_irreducible(config, batches)
    by_t = [None if math.isnan(value) else value for value in irreducible.by_t]
    folder.figures.mkdir(parents=True, exist_ok=True)
    write_json(path, {**irreducible._asdict(), "by_t": by_t}, indent=None)
    return irreducible


def _has_buckets(config: Config) -> bool:
    buckets = getattr(config.data, "buckets", None)
    return buckets is not None and buckets.area is not None


def estimate_irreducible(config: Config, batches: Batches) -> Irreducible:
    """The loss of the best possible field on this data, with the run's times and label drop."""
    t, losses, of = ESTIMATES[type(batches)](build_objective(config), batches)
    by_t, counts = means_by_time(losses, t), tenth_of(t).bincount(minlength=BINS).tolist()
    known = [(count, loss) for count, loss in zip(counts, by_t, strict=True) if not math.isnan(loss)]
    mean = sum(count * loss for count, loss in known) / max(sum(count for count, _ in known), 1)
    return Irreducible(mean, by_t, of)


def _of_points(objective: FlowMatching, batches: PointBatches) -> tuple[Tensor, Tensor, str]:
    """Times, the irreducible loss at each, and its name."""
    draw = _even_draw(objective, batches)
    losses = torch.full((DRAWS,), torch.nan, dtype=torch.float64)
    late = draw.t >= 1 - 1 / BINS
    # close to t = 1 only data near x_t matter, and it takes a large sample to contain any
    for rows, count in ((~late, DATA // 16), (late & (late.cumsum(0) <= DRAWS // 10), DATA)):
        data = batches.toy.sample(SobolEngine(3, scramble=True, seed=1).draw(count, dtype=torch.float64))
        labels = batches.toy.part(data) if batches.labels else None
        losses[rows] = irreducible_loss(objective.path, draw.rows(rows), data, labels, fresh=True)
    return draw.t, losses, OF_POINTS


def _even_draw(objective: FlowMatching, batches: PointBatches) -> Draw:
    """Noise, data and times from a Sobol sequence, whose means converge faster than those of random draws."""
    even = SobolEngine(7, scramble=True, seed=0).draw(DRAWS, dtype=torch.float64)
    x_1 = batches.toy.sample(even[:, :3])
    x_0 = torch.special.ndtri(even[:, 3:5].clamp(1e-9, 1 - 1e-9))
    t = shift_times(objective.times(even[:, 5]), objective.shift)
    cond = Condition(batches.toy.part(x_1) if batches.labels else None)
    return Draw(x_0, x_1, t, cond.drop("label", even[:, 6] < dict(objective.drops)["label"]))


def _of_pictures(objective: FlowMatching, batches: Any) -> tuple[Tensor, Tensor, str]:
    """Times, the irreducible loss at each, and its name; over all pictures, or as many as memory and time allow."""
    images = batches.some(min(MAX_PICTURES, max(1, MAX_VALUES // math.prod(batches.space.shape))))
    device = torch.device("cpu") if batches.device.type == "mps" else batches.device  # mps has no float64
    none = torch.zeros(0, dtype=torch.int64)
    of_run = {"space": batches.space, "flip": batches.flip, "seed": batches.seed}
    plain = ImageBatches(images.to(device), none, batch_size=PICTURES, device=device, **of_run)
    draw = replace(objective, batch_size=PICTURES).draw(plain, 0, range(PICTURES))
    pixels, labels, _ = plain.images
    if plain.flip:  # a training step may see the mirrored pictures too
        pixels = torch.cat([pixels, pixels.flip(-1)])
        labels = None if labels is None else torch.cat([labels, labels])
    losses = irreducible_loss(objective.path, draw, plain.space.encode(pixels), labels).cpu()
    return draw.t.cpu(), losses, OF_PICTURES + (NOT_AUGMENTED if batches.augment > 0 else "")


ESTIMATES: dict[type, Callable[[FlowMatching, Any], tuple[Tensor, Tensor, str]]] = {
    PointBatches: _of_points,
    ImageBatches: _of_pictures,
    StreamBatches: _of_pictures,
}
"""How the irreducible loss is estimated from each kind of batches."""
