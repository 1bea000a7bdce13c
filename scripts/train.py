"""`accelerate launch scripts/train.py CONFIG ...`: flowimg train on many processes."""

import sys

from flowimg.cli import main

main(["train", *sys.argv[1:]])
