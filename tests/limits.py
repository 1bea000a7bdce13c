"""`python limits.py NAME=SECONDS,... flowimg-arguments`: flowimg with other limits for those that are lost or stuck.

The names are those of flowimg/runs/; STEP is the least time of a step.
"""

import sys
import time

from sketch import sketched

from flowimg.cli import main
from flowimg.runs import others, status, watchdog
from flowimg.training import loop

sketched()
train_step = loop.train_step
limits = {name: float(value) for name, value in (pair.split("=") for pair in sys.argv[1].split(","))}
least = limits.pop("STEP", 0.0)
for name, value in limits.items():
    holders = [module for module in (others, status, watchdog) if hasattr(module, name)]
    assert holders, f"there is no limit {name}"
    for module in holders:
        setattr(module, name, value)


def slow_step(state, *args):
    time.sleep(least)
    train_step(state, *args)


loop.train_step = slow_step
sys.argv = ["flowimg", *sys.argv[2:]]
main()
