"""`python in_blocks.py flowimg-arguments`: flowimg, with small fields cut into blocks and checkpoints into parts.

The weights of a block are gathered for each pass anew.
"""

import sys

from flowimg.training import parts, sharding

if __name__ == "__main__":
    sharding.SMALL, sharding.KEPT, parts.PART = 0, 0.0, 100_000
    from flowimg.cli import main

    main(sys.argv[1:])
