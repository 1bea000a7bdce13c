"""`python in_blocks.py flowimg-arguments`: flowimg, with small fields cut into blocks and checkpoints into parts.

The weights of a block are gathered for each pass anew, and grids may take as long as they like.
"""

import sys

from flowimg.jobs.train import pace
from flowimg.training import parts, sharding

if __name__ == "__main__":
    sharding.SMALL, sharding.KEPT, parts.PART, pace.SECONDS = 0, 0.0, 100_000, 1e9
    from flowimg.cli import main

    main(sys.argv[1:])
