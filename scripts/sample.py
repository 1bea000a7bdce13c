"""`python scripts/sample.py RUN ...`: flowimg sample, also under `accelerate launch`."""

import sys

from flowimg.cli import main

main(["sample", *sys.argv[1:]])
