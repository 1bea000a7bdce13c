"""Pictures a second, side by side: flowimg's store against `datasets`, PIL and torchvision's transforms.

    python benchmarks/data.py SOURCE [--sizes 32 64] [--rounds 5] [--seconds 3] [--batch 64]

SOURCE is a folder of pictures or of parquet files. Each row does the same work: a shuffled batch of RGB pictures of
one size, scaled to [-1, 1], half of them flipped. Rows take turns, round by round; medians, and ratios to two workers.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import datasets
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from flowimg.data.batches import ImageBatches
from flowimg.data.cache import cache_folder
from flowimg.data.find import find
from flowimg.data.store import hold_out, store
from flowimg.spaces.pixels import Pixels

SECONDS_OF_WARMTH = 0.5


def peers(source, size, batch, workers):
    """What most trainers do: decode, resize and flip each picture whenever it comes."""
    kind = "parquet" if any(Path(source).rglob("*.parquet")) else "imagefolder"
    if kind == "parquet":
        files = sorted(str(file) for file in Path(source).rglob("*train*.parquet"))
        rows = datasets.load_dataset("parquet", data_files=files, split="train")
    else:
        rows = datasets.load_dataset("imagefolder", data_dir=source, split="train")
    steps = v2.Compose(
        [
            v2.Resize(size, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.RandomHorizontalFlip(),
            v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )  # fmt: skip

    def transform(some):
        return {"x": [steps(picture.convert("RGB")) for picture in some["image"]]}

    loader = DataLoader(
        rows.with_transform(transform), batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        for some in loader:
            yield some["x"]


def ours(source, size, batch, how):
    """Batches of the store: mapped with nothing of it in memory, mapped and read before, or copied to memory."""
    cache = cache_folder()
    stored = store(find(source, cache, size=size, channels="rgb", labels=False), cache)
    images = stored.images
    if how == "in memory":
        images = images._replace(pixels=images.pixels.clone())
    if how == "map, warm":
        images.pixels.sum()
    if how == "map, cold":
        del images
        file = os.open(stored.folder / "pixels", os.O_RDONLY)
        os.fsync(file)
        del stored
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
        images = store(find(source, cache, size=size, channels="rgb", labels=False), cache).images
    space, apart = Pixels(tuple(images.pixels.shape[1:])), hold_out(len(images.pixels), 1)
    how = {"space": space, "flip": True, "seed": 0, "batch_size": batch, "device": torch.device("cpu")}
    data = ImageBatches(images, apart, **how)
    step = 0
    while True:
        yield data(step, range(batch))[0]
        step += 1


def rate(batches, seconds, warm):
    """Pictures a second; a cold start is timed from its first batch."""
    if warm:
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS_OF_WARMTH:
            next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        x = next(batches)
        assert x.dtype == torch.float32
        assert x.shape[1] == 3
        count += len(x)
    return count / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    for size in args.sizes:
        next(ours(args.source, size, args.batch, "map, warm"))  # decoded before anything is timed
        loaders = {f"datasets + PIL, {n} workers": peers(args.source, size, args.batch, n) for n in (0, 2)}
        found: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for name, batches in loaders.items():
                found.setdefault(name, []).append(rate(batches, args.seconds, warm=True))
            for how in ("map, cold", "map, warm", "in memory"):
                batches = ours(args.source, size, args.batch, how)
                found.setdefault(f"store, {how}", []).append(rate(batches, args.seconds, how != "map, cold"))
        two = found["datasets + PIL, 2 workers"]
        print(f"{size} x {size}, batch {args.batch}, {args.rounds} rounds of {args.seconds:g} s")
        for name, rates in found.items():
            ratio = statistics.median(a / b for a, b in zip(rates, two, strict=True))
            print(
                f"  {name:<28} {statistics.median(rates):>10,.0f}/s  [{min(rates):,.0f}, {max(rates):,.0f}]"
                f"  {ratio:6.1f} x two workers"
            )


if __name__ == "__main__":
    main()
