"""MiB a second of x read from the store, of 8 and 16 bits and floats; median of seven rounds of 400 batches of 64.

    python benchmarks/depths.py SOURCE [--size 32] [--first 20000] [--depths 8 16 float]

Run in two checkouts in turns, with --depths 8, it says what a change costs.
"""

import argparse
import statistics
import time

import torch

from flowimg.build.data import build_source
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

ROUNDS, BATCHES, BATCH = 7, 400, 64


def speed(source, size, first, depth):
    """The median over rounds; the first pass over the pictures is not counted."""
    more = {"8": {}, "16": {"depth": 16}, "float": {"depth": "float", "range": [0, 255]}}[depth]
    data = {"kind": "images", "source": source, "size": size, "first": first, "channels": "rgb", "flip": True, **more}
    settings = {"data": data, "field": {"kind": "unet"}, "train": {"batch_size": BATCH}}
    batches = build_source(validate(Config, settings, "benchmark")).load(torch.device("cpu"))
    each, rounds = BATCH * batches.images.pixels[0].nbytes / 2**20, []
    for number in range(-1, ROUNDS):
        began = time.perf_counter()
        for step in range((number + 1) * BATCHES, (number + 2) * BATCHES):
            batches(step, range(BATCH))
        rounds.append(BATCHES * each / (time.perf_counter() - began))
    return statistics.median(rounds[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--first", type=int, default=20_000)
    parser.add_argument("--depths", nargs="+", default=["8", "16", "float"])
    asked = parser.parse_args()
    for depth in asked.depths:
        print(f"{depth:>5}  {speed(asked.source, asked.size, asked.first, depth):8,.0f} MiB/s", flush=True)
