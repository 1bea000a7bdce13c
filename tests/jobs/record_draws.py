"""Run `flowimg` and write down what each process saw: tests start it, by itself or under a launcher.

Usage: record_draws.py OUT GRADIENT_SCALE VERB ...
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from flowimg.cli import main
from flowimg.flow.objectives import FlowMatching

out, scale, *args = sys.argv[1:]
draw, loss = FlowMatching.draw, FlowMatching.loss
made, steps_seen = {}, {}


def recording_draw(self, data, step, positions):
    drawn = draw(self, data, step, positions)
    made[id(drawn)] = f"{step:04d}.{positions.start:04d}", drawn
    return drawn


def scaled_loss(self, wrapped, drawn):
    if id(drawn) not in made:  # held-out data
        return loss(self, wrapped, drawn)
    place, _ = made[id(drawn)]  # of what is made ahead some is never seen
    steps_seen[place] = drawn
    return loss(self, wrapped, drawn) * float(scale)


FlowMatching.draw = recording_draw
FlowMatching.loss = scaled_loss
main(args)

rank = int(os.environ.get("RANK", "0"))
columns = {place: {**d._asdict(), "cond": d.cond.label} for place, d in steps_seen.items()}
tensors = {f"{place}.{name}": t.contiguous() for place, d in columns.items() for name, t in d.items()}
Path(out).mkdir(parents=True, exist_ok=True)
save_file(tensors, Path(out) / f"{rank}.safetensors")
assert torch.get_num_threads() >= 1
