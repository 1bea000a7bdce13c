"""A million pictures in tar shards, made on the spot and streamed: time to look them up, pictures a second, memory.

    python benchmarks/million.py FOLDER [--pictures 1000000] [--shards 100] [--steps 2000] [--batch 256]

Makes FOLDER/shards once (2.6 GB), 32 x 32 JPEGs with a label each.
"""

import argparse
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from flowimg.build.data import build_source
from flowimg.data.prefetch import Prefetch
from flowimg.settings.data import ImageData
from flowimg.settings.field import UNet
from flowimg.settings.run import Config
from flowimg.settings.train import Train


def write_shard(path, start, count):
    """Smooth random blobs: pictures that take about a kilobyte each."""
    with tarfile.open(path.with_suffix(".part"), "w") as tar:
        for number in range(start, start + count):
            coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            for ending, body in (("jpg", file.getvalue()), ("cls", str(number % 1000).encode())):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    path.with_suffix(".part").rename(path)


def memory():
    """This process's own memory and that of its workers, in MiB; pages of files, which can be dropped, not counted."""

    def own(process):
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    process = psutil.Process()
    return own(process), [own(child) for child in process.children()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    shards = args.folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    each = args.pictures // args.shards
    began = time.perf_counter()
    for shard in range(args.shards):
        if not (path := shards / f"part-{shard:05d}.tar").exists():
            write_shard(path, shard * each, each)
    size = sum(file.stat().st_size for file in shards.glob("*.tar"))
    took = time.perf_counter() - began
    print(f"made      {args.pictures:,} pictures in {args.shards} shards, {size / 1e9:.2f} GB, {took:.0f} s")
    data = ImageData(source=str(shards), stream=True, size=32, flip=True, cache=str(args.folder / "cache"))
    config = Config(data=data, field=UNet(), train=Train(batch_size=args.batch))
    before, _ = memory()
    for again in ("first time", "again"):
        began = time.perf_counter()
        source = build_source(config)
        print(f"looked up {again}: {time.perf_counter() - began:.2f} s")
    print(f"          {source.story[:120]}")
    batches = source.load(torch.device("cpu"))
    ahead = Prefetch(batches, [range(args.batch)])
    began = time.perf_counter()
    ahead(0, range(args.batch))
    order, took = batches.order, time.perf_counter() - began
    print(f"first     batch after {took:.2f} s, {order.lanes} lanes of {order.group} open shards")
    peak, seen, began = 0.0, 0, time.perf_counter()
    workers: list[float] = []
    for step in range(1, args.steps + 1):
        seen += len(ahead(step, range(args.batch))[0])
        if step % 50 == 0:
            now, workers = memory()
            peak = max(peak, now)
        if step == args.steps // 10:
            early = memory()[0]
    seconds = time.perf_counter() - began
    print(f"streamed  {seen:,} pictures, {seen / seconds:,.0f}/s with {batches.workers} worker(s)")
    print(f"memory    {before:,.0f} MiB before, {early:,.0f} after a tenth, {peak:,.0f} at most")
    print(f"          workers {', '.join(f'{w:,.0f}' for w in workers)} MiB")
    ahead.close()
    batches.close()


if __name__ == "__main__":
    main()
