"""`flowimg data`: a source looked over, drawn as a field will see it, or decoded beforehand."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowimg.build.data import build_source, find_images, store_images
from flowimg.data.cache import cache_folder
from flowimg.data.find import FEW, recognise_asked, select
from flowimg.data.listing import Listing, Source, plain
from flowimg.data.scan import Scan, scan
from flowimg.data.workers import cores
from flowimg.errors import DataError, SettingsError
from flowimg.figures.samples import save_grid
from flowimg.machine.processes import alone
from flowimg.settings.data import ImageData
from flowimg.settings.field import UNet
from flowimg.settings.run import Config
from flowimg.settings.verbs import Check, Preview

BAR = 30
"""Characters of the longest bar of a class."""
SHOWN = 40
"""Classes and sizes shown at most; --json has all."""
SPARSE, SPARSE_SHARE = 10, 0.05
"""A class is near-empty below so many pictures, or so small a share of what classes have on average."""


def check(settings: Check) -> dict[str, Any]:
    """Look every picture over, say what there is, and list what is odd.

    Raises:
        DataError: If more than `max_bad` are broken; its `result` is all that was found.
    """
    alone("data check")
    began = time.perf_counter()
    cache, named = cache_folder(settings.cache), bool(settings.classes)
    known, key = recognise_asked(
        settings.source,
        cache,
        settings.subset,
        settings.root,
        split=settings.split,
        image_column=settings.image_column,
        label_column=settings.label_column,
        labels=settings.labels or named,
        named=named,
    )
    seen = scan(known, cache, key, settings.workers or cores(), bar=True, deep=True)
    rows, well, _, _ = select(known.where, seen, settings.classes, settings.first)
    listing: Listing | None = None

    def name(row: int) -> str:
        nonlocal listing
        if row in seen.names:
            return seen.names[row]
        listing = listing or known.list()
        return plain(listing.name(row))

    count, good = len(rows), rows[well[rows]]
    bad = [{"name": seen.names[row], "reason": seen.wrong[row]} for row in rows[~well[rows]].tolist()]
    sizes = Counter({f"{w} x {h}": int(n) for (h, w), n in zip(*_unique(seen.sizes[good]), strict=True)})
    classes = _classes(seen, good)
    twice = [[name(row) for row in group] for group in _twice(seen, good)]
    result = {
        "source": settings.source,
        "kind": known.kind,
        "split": settings.split,
        "pictures": count,
        "good": len(good),
        "bad": bad,
        "sizes": dict(sizes.most_common()),
        "modes": dict(seen.of_kind(good, 0).most_common()),
        "formats": dict(seen.of_kind(good, 1).most_common()),
        "transparent": int(seen.clear[good].sum()),
        "moving": int(seen.moving[good].sum()),
        "classes": classes,
        "near_empty": _sparse(classes),
        "twice": twice,
        "left_alone": list(seen.left_alone),
    }
    _tell(settings, known, result, time.perf_counter() - began)
    share = len(bad) / max(count, 1)
    if share > settings.max_bad or not len(good):
        raise DataError(
            f"{settings.source}: {len(bad):,} of {count:,} pictures ({share:.1%}) cannot be used, more than max_bad "
            f"{settings.max_bad:g} allows: mend or remove them, or train with a higher --data.max-bad",
            result,
        )
    return result


def _unique(sizes: np.ndarray) -> tuple[list[list[int]], list[int]]:  # type: ignore[type-arg]
    pairs, counts = np.unique(sizes, axis=0, return_counts=True)
    return pairs.tolist(), counts.tolist()


def _classes(seen: Scan, good: np.ndarray) -> dict[str, int]:  # type: ignore[type-arg]
    if seen.labels is None:
        return {}
    counts = np.bincount(seen.labels[good], minlength=len(seen.classes))
    return {plain(name): int(count) for name, count in zip(seen.classes, counts, strict=True)}


def _sparse(classes: dict[str, int]) -> list[str]:
    mean = sum(classes.values()) / max(len(classes), 1)
    return [name for name, count in classes.items() if count < max(SPARSE, SPARSE_SHARE * mean)]


def _twice(seen: Scan, good: np.ndarray) -> list[list[int]]:  # type: ignore[type-arg]
    """Rows of pictures that show the same, group by group."""
    whole = np.ascontiguousarray(seen.hashes[good]).view(np.dtype((np.void, seen.hashes.shape[1]))).ravel()
    _, number, counts = np.unique(whole, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[number] > 1)
    groups: dict[int, list[int]] = {}
    for place in several.tolist():
        groups.setdefault(int(number[place]), []).append(int(good[place]))
    return list(groups.values())


def _tell(settings: Check, known: Source, found: dict[str, Any], seconds: float) -> None:
    """Say what was found, a line each."""

    def line(head: str, text: str) -> None:
        print(f"{head:<10}{text}")

    def some(head: str, lines: list[str]) -> None:
        for number, text in enumerate(lines[: settings.list_most]):
            line("" if number else head, text)
        if len(lines) > settings.list_most:
            line("" if settings.list_most else head, f"... {len(lines):,} in all; --list-most N or --json shows more")

    bad, classes, twice = found["bad"], found["classes"], found["twice"]
    line("source", f"{settings.source}: {known.kind}")
    each = f", {found['pictures'] / seconds:,.0f}/s" if seconds > 1 else ""
    line(
        "pictures",
        f"{found['pictures']:,} in {settings.split}: {found['good']:,} good, {len(bad):,} bad ({seconds:.1f} s{each})",
    )
    for head in ("sizes", "modes", "formats"):
        values = list(found[head].items())
        more = f", ... {len(values):,} in all" if len(values) > 8 else ""
        line(head, ", ".join(f"{name} ({count:,})" for name, count in values[:8]) + more)
    if found["transparent"]:
        line("", f"{found['transparent']:,} are transparent: laid over data.background")
    if found["moving"]:
        line("", f"{found['moving']:,} have several frames or pages: the first is taken")
    if classes:
        widest, most = max(map(len, classes)), max(max(classes.values()), 1)
        line("classes", f"{len(classes):,}")
        for name, count in list(classes.items())[:SHOWN]:
            line("", f"{name:<{widest}}  {'#' * round(BAR * count / most):<{BAR}}  {count:,}")
        if len(classes) > SHOWN:
            line("", f"... {len(classes) - SHOWN:,} more")
    if found["near_empty"]:
        line("warning", f"near-empty classes: {', '.join(found['near_empty'][:20])}")
    if twice:
        line(
            "twice",
            f"{sum(map(len, twice)) - len(twice):,} pictures show what another one shows, in {len(twice):,} groups",
        )
        some("", [" = ".join(group[:4]) + (f" = ... ({len(group)})" if len(group) > 4 else "") for group in twice])
    if bad:
        reasons = Counter(item["reason"] for item in bad)
        line("bad", "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5)))
        some("", [f"{item['name']}: {item['reason']}" for item in bad])
    if found["left_alone"]:
        some("unread", found["left_alone"])
    if found["good"] < FEW:
        line("warning", few(found["good"]))


def few(count: int) -> str:
    """What is to be said of a small set."""
    return (
        f"{count:,} pictures are few: below about {FEW:,} a field may learn them by heart; more pictures, "
        "--data.flip true and fewer steps help, and the nearest pictures in `flowimg evaluate` tell"
    )


def preview(settings: Preview, config: Config | None = None) -> dict[str, Any]:
    """Draw the first batch of a run on a source, as the field will see it.

    Args:
        settings: The source, how its pictures are treated, and how many are drawn.
        config: The run, where it is one of a settings file: its first step is drawn.
    """
    alone("data preview")
    if Path(settings.out).exists():
        raise SettingsError(f"--out {settings.out} exists and is not overwritten: name a new file")
    data = ImageData(**{name: getattr(settings, name) for name in ImageData.model_fields})
    if config is None and not data.stream and len(find_images(data).rows) <= data.held_out:
        print(f"held out  1 and not {data.held_out}, as a run would need: there are too few")
        data = data.model_copy(update={"held_out": 1})
    config = config or Config(field=UNet(), data=data, seed=settings.seed)
    config = config.model_copy(update={"data": data, "seed": settings.seed})
    source = build_source(config)
    print(f"data      {source.story}")
    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    batches: Any = source.load(torch.device("cpu"))
    draw_preview(batches, settings.count, config.train.batch_size, Path(settings.out))
    print(f"pictures  {settings.out}: the first {settings.count} that a run of seed {config.seed} sees")
    return {"out": settings.out, "count": settings.count, "shape": source.facts.shape, "story": source.story}


def draw_preview(batches: Any, count: int, batch_size: int, path: Path) -> None:
    """A grid of what the first steps of a run see."""
    fresh = batches.seen_from(0)  # a run that continues has counted otherwise
    steps = range(0, count, batch_size)
    seen = [fresh(step, range(min(batch_size, count - at)))[0] for step, at in enumerate(steps)]
    fresh.close()
    save_grid(batches.space, torch.cat(seen).cpu(), path)


def prepare(config: Config) -> dict[str, Any]:
    """Decode a run's pictures to the cache, so that the run finds them there."""
    alone("data prepare")
    data: Any = config.data
    if not data.holds_pictures:
        raise SettingsError(f"data.kind {data.kind} needs no preparation: points are drawn afresh")
    began = time.perf_counter()
    if data.stream:
        source = build_source(config)
        print(
            f"data      {source.story}\ncache     {cache_folder(data.cache)}: where each picture lies; none is decoded"
        )
        return {"cache": str(cache_folder(data.cache)), "story": source.story}
    found = find_images(data)
    stored = store_images(data, found)
    size = stored.images.pixels.nbytes
    print(f"data      {data.source}: {found.story}")
    for name, reason in (*found.bad, *stored.bad)[:20]:
        print(f"left out  {name}: {reason}")
    shape = " x ".join(map(str, stored.images.pixels.shape))
    print(f"store     {stored.folder}: {shape} bytes, {size / 2**20:,.1f} MiB, {time.perf_counter() - began:.1f} s")
    print("          it may be deleted at any time, and is made again")
    return {
        "store": str(stored.folder),
        "shape": list(stored.images.pixels.shape),
        "bytes": size,
        "fingerprint": stored.fingerprint,
        "bad": [bad._asdict() for bad in (*found.bad, *stored.bad)],
        "story": found.story,
    }
