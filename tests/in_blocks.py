"""`python in_blocks.py kept flowimg-arguments`: flowimg, with small fields cut into blocks and checkpoints into parts.

The gathered weights of a block are kept for the backward pass, or `dropped`; grids may take as long as they like.
"""

import sys

from flowimg.jobs.train import pace
from flowimg.training import parts, sharding

if __name__ == "__main__":
    sharding.SMALL, parts.PART, pace.SECONDS = 0, 100_000, 1e9
    sharding.KEPT = {"kept": 1.0, "dropped": 0.0}[sys.argv[1]]
    from flowimg.cli import main

    main(sys.argv[2:])
