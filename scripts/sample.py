"""`python scripts/sample.py RUN ...`: flowimg sample, one process for now."""

import sys

from flowimg.cli import main

main(["sample", *sys.argv[1:]])
