"""`flowimg data`: check a source, draw what a field will see of it, or decode it beforehand."""

import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from flowimg.build.data import build_source, build_space
from flowimg.build.images import depth_of, find_images, store_images, told_of_buckets
from flowimg.data.cache import cache_folder
from flowimg.data.find import FEW, select
from flowimg.data.listing import Request
from flowimg.data.scan import HASH, Scan, scan
from flowimg.data.sources.recognise import recognise
from flowimg.errors import DataError, SettingsError
from flowimg.figures.samples import Samples, check_grid, draw_portions
from flowimg.flow.condition import Condition
from flowimg.jobs.drawing import check_places
from flowimg.machine.cores import cores
from flowimg.machine.home import settle_home
from flowimg.machine.processes import one_process
from flowimg.names import one_line
from flowimg.runs.folder import RunFolder
from flowimg.runs.places import located
from flowimg.settings.data import ImageData
from flowimg.settings.field import UNet
from flowimg.settings.run import Config
from flowimg.settings.verbs import Check, Preview
from flowimg.spaces.depth import BYTES, Depth

DataT = TypeVar("DataT", Check, Preview)

BAR = 30
"""Characters of the bar of the largest class."""
SHOWN = 40
"""Most classes that are printed; --json has all."""
SPARSE, SPARSE_SHARE = 10, 0.05
"""A class with fewer pictures, or with a smaller share of the mean over classes, is near-empty."""


DARK = 64
"""A picture without a level from here on, of 255, is nearly black."""


def check(settings: Check, config: Config | None = None) -> dict[str, Any]:
    """Decode every picture of a source, and report what there is and what is wrong with it.

    Args:
        settings: The source, and how its pictures are processed.
        config: The run whose data are checked, if the source is a settings file or a run.

    Raises:
        DataError: If more than `max_bad` are broken; its `result` has all findings.
    """
    one_process("data check")
    began, settings = time.perf_counter(), _located(settings, config)
    depth = depth_of(settings)
    request = Request(**settings.model_dump(include={field.name for field in fields(Request)}) | {"depth": depth})
    cache = cache_folder(settings.cache)
    settle_home(cache)
    source = recognise(settings.source, cache, request)
    seen = scan(source, cache, request, settings.workers or cores(), bar=True, deep=True)
    rows, well, _, _ = select(source.where, seen, request.classes, request.first)
    good = rows[well[rows]]
    bad = [{"name": seen.names[row], "reason": seen.wrong[row]} for row in rows[~well[rows]].tolist()]
    duplicates = _duplicates(seen, good)
    listing = source.list() if duplicates else None
    classes, told = _count_classes(seen, good), None
    if settings.buckets.area and len(good):
        told = told_of_buckets(settings, seen.table["sizes"][good])
    sparse = max(SPARSE, SPARSE_SHARE * sum(classes.values()) / max(len(classes), 1))
    result = {
        "source": settings.source,
        "kind": source.kind,
        "split": settings.split,
        "pictures": len(rows),
        "good": len(good),
        "bad": bad,
        "sizes": {f"{w} x {h}": count for (h, w), count in seen.of_size(good).most_common()},
        "modes": dict(seen.of_kind(good, 0).most_common()),
        "formats": dict(seen.of_kind(good, 1).most_common()),
        "transparent": int(seen.table["clear"][good].sum()),
        "moving": int(seen.table["moving"][good].sum()),
        "dark": int((seen.table["brightest"][good] < DARK).sum()),
        "why_dark": nearly_black(depth),
        "classes": classes,
        "buckets": told,
        "channels": settings.channels,
        "near_empty": [name for name, count in classes.items() if count < sparse],
        "twice": [[one_line(listing.name(row)) for row in group] for group in duplicates] if listing else [],
        "left_alone": list(seen.unused),
    }
    _print_findings(result, settings.list_most, time.perf_counter() - began)
    share = len(bad) / max(len(rows), 1)
    if share > settings.max_bad or not len(good):
        raise DataError(
            f"{settings.source}: {len(bad):,} of {len(rows):,} pictures ({share:.1%}) cannot be used, more than "
            f"max_bad {settings.max_bad:g} allows: repair or remove them, or train with a higher --data.max-bad",
            result,
        )
    return result


def _located(settings: DataT, config: Config | None) -> DataT:
    """The settings of a source with the paths of a run as they led where it was begun."""
    if config is None:
        return settings
    data, found = dict(config.data), dict(located(config, RunFolder(Path(str(config.run)))).data)
    kept = {name: value for name, value in found.items() if value != data[name] == getattr(settings, name)}
    return settings.model_copy(update=kept)


def _count_classes(seen: Scan, good: NDArray[np.int64]) -> dict[str, int]:
    if seen.labels is None:
        return {}
    counts = np.bincount(seen.labels[good], minlength=len(seen.classes))
    return {name: int(count) for name, count in zip(seen.classes, counts, strict=True)}


def _duplicates(seen: Scan, good: NDArray[np.int64]) -> list[list[int]]:
    """Groups of rows whose pictures have the same pixels."""
    hashes = np.ascontiguousarray(seen.table["hashes"][good]).view(f"V{HASH}").ravel()
    _, number, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for position in np.flatnonzero(counts[number] > 1).tolist():
        groups.setdefault(int(number[position]), []).append(int(good[position]))
    return list(groups.values())


def _print_findings(found: dict[str, Any], list_most: int, seconds: float) -> None:
    """Print the findings, one in each line; of lists, at most the first `list_most` lines."""

    def line(head: str, text: str) -> None:
        print(f"{head:<10}{text}")

    def lines(head: str, texts: list[str]) -> None:
        if len(texts) > list_most:
            texts = [*texts[:list_most], f"... {len(texts):,} in all; --list-most N or --json shows more"]
        for number, text in enumerate(texts):
            line("" if number else head, text)

    bad, classes, duplicates = found["bad"], found["classes"], found["twice"]
    line("source", f"{one_line(found['source'])}: {found['kind']}")
    count, good = found["pictures"], found["good"]
    took = f"{seconds:.1f} s, {count / seconds:,.0f}/s" if seconds > 1 else f"{seconds:.1f} s"
    line("pictures", f"{count:,} in {found['split']}: {good:,} good, {len(bad):,} bad ({took})")
    for head in ("sizes", "modes", "formats"):
        texts = [f"{name} ({count:,})" for name, count in found[head].items()]
        said = ", ".join(texts[:8]) + (f", ... {len(texts):,} in all" if len(texts) > 8 else "")
        line(head, said + ("; width x height" if head == "sizes" else ""))
    if found["buckets"]:
        line("buckets", found["buckets"].removeprefix("buckets, "))
    if found["transparent"]:
        kept = found["channels"] in ("rgba", "all")
        used = "that is kept as a channel" if kept else "laid over data.background"
        line("", f"{found['transparent']:,} are transparent: {used}")
    if found["moving"]:
        used = "each page of a TIFF is a channel" if found["channels"] == "all" else "the first is used"
        line("", f"{found['moving']:,} have several frames or pages: {used}")
    if found["dark"]:
        line("warning", f"{found['dark']:,} are nearly black: {found['why_dark']}")
    if classes:
        shown = [(one_line(name), count) for name, count in list(classes.items())[:SHOWN]]
        widest, most = max(len(name) for name, _ in shown), max(max(classes.values()), 1)
        line("classes", f"{len(classes):,}")
        for name, count in shown:
            line("", f"{name:<{widest}}  {'#' * round(BAR * count / most):<{BAR}}  {count:,}")
        if len(classes) > SHOWN:
            line("", f"... {len(classes) - SHOWN:,} more")
    if found["near_empty"]:
        counts = [f"{one_line(name)} ({classes[name]})" for name in found["near_empty"][:20]]
        line("warning", f"near-empty classes: {', '.join(counts)}")
    if duplicates:
        extra = sum(map(len, duplicates)) - len(duplicates)
        line("duplicate", f"{extra:,} pictures have the same pixels as another one, in {len(duplicates):,} groups")
        groups = [" = ".join(group[:4]) + (f" = ... ({len(group)})" if len(group) > 4 else "") for group in duplicates]
        lines("", groups)
    if bad:
        reasons = Counter(item["reason"] for item in bad).most_common(5)
        line("bad", "; ".join(f"{count:,} {reason}" for reason, count in reasons))
        lines("", [f"{item['name']}: {item['reason']}" for item in bad])
    lines("not used", found["left_alone"])
    if good < FEW:
        line("warning", few(good))


def nearly_black(depth: Depth) -> str:
    """What is wrong with pictures of a depth that are nearly black."""
    if depth == BYTES:
        files = "scans of 12 or 14 bits in files of 16 need data.depth 16 and data.range, for 12 bits 0 4095"
        return f"no level is above {DARK - 1} of 255; {files}"
    first = f"no number is above a quarter of the way from {depth.low:g} to {depth.high:g}"
    return f"{first}: give data.range, the numbers that mean black and white (scans of 12 bits: 0 4095)"


def few(count: int) -> str:
    """The warning about a small set."""
    number = "1 picture is little" if count == 1 else f"{count:,} pictures are few"
    return (
        f"{number}: with fewer than about {FEW:,}, a field may memorise them; more pictures, "
        "--data.flip true and fewer steps help, and the nearest pictures in `flowimg evaluate` show whether it does"
    )


def preview(settings: Preview, config: Config | None = None) -> dict[str, Any]:
    """Draw the first pictures of a run on a source, as the field will see them.

    Args:
        settings: The source, how its pictures are processed, and how many are drawn.
        config: The run whose first pictures are drawn, if the source is a settings file or a run.
    """
    one_process("data preview")
    settings = _located(settings, config)
    if Path(settings.out).exists():
        raise SettingsError(f"--out {settings.out} exists and is not overwritten: name a new file")
    check_places(Path(settings.out))
    data = ImageData(**settings.model_dump(include=set(ImageData.model_fields)))
    if config is None and not data.stream and (count := len(find_images(data).rows)) <= data.held_out:
        held_out = int(count > 1)
        print(f"held out  {held_out} and not {data.held_out} as in a run: there are too few")
        data = data.model_copy(update={"held_out": held_out})
    config = (config or Config(field=UNet(), data=data)).model_copy(update={"data": data, "seed": settings.seed})
    source = build_source(config)
    print("\n".join([f"data      {source.story}", *(f"warning   {line}" for line in source.doubts())]))
    check_grid(build_space(config, source.facts), settings.count, None, "give a lower --count")
    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    draw_preview(source.load(torch.device("cpu")), settings.count, config.train.batch_size, Path(settings.out))
    print(f"pictures  {settings.out}: the first {settings.count} that a run of seed {config.seed} sees")
    return {"out": settings.out, "count": settings.count, "shape": source.facts.shape, "story": source.story}


def draw_preview(batches: Any, count: int, batch_size: int, path: Path) -> None:
    """Draw a grid of the first pictures of a run, and warn if there is next to nothing to see in them."""
    fresh = batches.seen_from(0)  # a resumed run may count from another sample
    seen: dict[torch.Size, list[torch.Tensor]] = {}
    for step, positions in fresh.first(count, batch_size):
        x_1, _ = fresh(step, positions)
        seen.setdefault(x_1.shape[1:], []).append(x_1.cpu())
    fresh.close()
    spaces = [replace(batches.space, shape=tuple(shape)) for shape in seen]
    parts = [Samples(space, torch.cat(x), Condition()) for space, x in zip(spaces, seen.values(), strict=True)]
    draw_portions(parts, path)
    colours = [part.x[:, :3] if batches.space.alpha else part.x for part in parts]
    if max(float(some.max()) for some in colours) < DARK / 127.5 - 1 - 1e-6:
        number = sum(len(part.x) for part in parts)
        print(f"warning   the first {number} pictures are nearly black: {nearly_black(batches.space.depth)}")


def prepare(config: Config) -> dict[str, Any]:
    """Decode a run's pictures to the cache, where the run will find them."""
    one_process("data prepare")
    config = located(config, RunFolder(Path(str(config.run))))
    data: Any = config.data
    if not data.holds_pictures:
        raise SettingsError(f"data.kind {data.kind} needs no preparation: points are drawn afresh")
    began = time.perf_counter()
    if data.stream:
        story, cache = build_source(config).story, cache_folder(data.cache)
        print(f"data      {story}\ncache     {cache}: where each picture is stored; none is decoded")
        return {"cache": str(cache), "story": story}
    found = find_images(data)
    stores = store_images(data, found)
    bad = [*found.bad, *(one for stored in stores for one in stored.bad)]
    print(f"data      {one_line(data.source)}: {found.story}")
    for name, reason in bad[:20]:
        print(f"left out  {name}: {reason}")
    for stored in stores:
        pixels = stored.images.pixels
        kind = "bytes" if pixels.dtype == torch.uint8 else str(pixels.dtype).removeprefix("torch.")
        print(
            f"store     {stored.folder}: {' x '.join(map(str, pixels.shape))} {kind}, {pixels.nbytes / 2**20:,.1f} MiB"
        )
    print(f"          {time.perf_counter() - began:.1f} s; it may be deleted at any time, and is then made again")
    first = stores[0]
    return {
        "store": str(first.folder),
        "stores": [str(stored.folder) for stored in stores],
        "shape": list(first.images.pixels.shape),
        "bytes": sum(stored.images.pixels.nbytes for stored in stores),
        "fingerprint": first.fingerprint,
        "bad": [one._asdict() for one in bad],
        "story": found.story,
    }
