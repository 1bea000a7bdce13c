"""`python scripts/evaluate.py RUN ...`: flowimg evaluate, also under `accelerate launch`."""

import sys

from flowimg.cli import main

main(["evaluate", *sys.argv[1:]])
