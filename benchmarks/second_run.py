"""From settings to the first batch, on pictures that were prepared before: seconds, imports aside.

    python benchmarks/second_run.py CONFIG SOURCE [ROUNDS]

The first round may have to look the source through and decode it; each of the others is what a run does at its start.
"""

import statistics
import sys
import time

import torch

from flowimg.build.data import build_source
from flowimg.settings.reading import load

config, source, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 9
taken = []
for _ in range(rounds + 1):
    began = time.perf_counter()
    settings = load(config)
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"source": source})})
    found = build_source(settings)
    x_1, labels = found.load(torch.device("cpu"))(0, range(settings.train.batch_size))
    taken.append(time.perf_counter() - began)
print(found.story)
print(
    f"first {taken[0]:.3f} s; again {statistics.median(taken[1:]):.3f} s [{min(taken[1:]):.3f}, {max(taken[1:]):.3f}]"
)
