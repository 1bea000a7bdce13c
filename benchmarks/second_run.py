"""From settings to the first batch, on pictures that were prepared before: seconds, imports aside.

    python benchmarks/second_run.py CONFIG SOURCE [ROUNDS]

The first round may have to look the source through and decode it; each of the others is what a run does at its start.
"""

import argparse
import statistics
import time

import torch

from flowimg.build.data import build_source
from flowimg.settings.reading import load

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("config")
parser.add_argument("source")
parser.add_argument("rounds", type=int, nargs="?", default=9)
given = parser.parse_args()
taken = []
for _ in range(given.rounds + 1):
    began = time.perf_counter()
    settings = load(given.config)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"source": given.source})})
    found = build_source(settings)
    x_1, cond = found.load(torch.device("cpu"))(0, range(settings.train.batch_size))
    taken.append(time.perf_counter() - began)
print(found.story)
print(
    f"first {taken[0]:.3f} s; again {statistics.median(taken[1:]):.3f} s [{min(taken[1:]):.3f}, {max(taken[1:]):.3f}]"
)
