"""`python slowly.py STAGE flowimg-arguments`: flowimg with one stage that takes its time, so that a signal meets it."""

import sys
import time

from flowimg.cli import main

stage = sys.argv[1]
if stage == "preparing data":
    from flowimg.jobs.train.run import run

    build_source = run.build_source

    def slow_source(config):
        for _ in range(600):
            time.sleep(0.1)
        return build_source(config)

    run.build_source = slow_source
elif stage == "saving":
    from flowimg.training import checkpoint

    sync = checkpoint.sync

    def slow_sync(path):
        sync(path)
        time.sleep(0.3)

    checkpoint.sync = slow_sync
elif stage == "training":
    from flowimg.training import loop

    train_step = loop.train_step

    def slow_step(state, *args):
        time.sleep(0.05)
        train_step(state, *args)

    loop.train_step = slow_step

sys.argv = ["flowimg", *sys.argv[2:]]
main()
