"""`accelerate launch scripts/sample.py RUN ...`: flowimg sample, started by a launcher."""

import sys

from flowimg.cli import main

main(["sample", *sys.argv[1:]])
