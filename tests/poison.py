"""`python poison.py PROCESS FIRST LAST flowimg-arguments`: flowimg whose data are NaN at these steps on a process."""

import os
import sys

from sketch import sketched

from flowimg.cli import main
from flowimg.flow.objectives import FlowMatching

process, first, last = map(int, sys.argv[1:4])
draw = FlowMatching.draw


def poisoned(self, data, step, places):
    drawn = draw(self, data, step, places)
    if first <= step <= last and int(os.environ.get("RANK", "0")) == process:
        drawn.x_1[0] = float("nan")
    return drawn


FlowMatching.draw = poisoned
sketched()
sys.argv = ["flowimg", *sys.argv[4:]]
main()
