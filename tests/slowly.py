"""`python slowly.py STAGE flowimg-arguments`: flowimg with one stage that takes its time, so that a signal meets it.

"preparing data" and "saving without end" take for ever: who is to leave in the middle of them must not wait for them.
"""

import signal
import sys
import time

from sketch import sketched

from flowimg.cli import main

sketched()
if hasattr(signal, "SIGHUP"):  # tests started by nohup ignore it, and what they start would too
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
stage = sys.argv[1]
if stage == "preparing data":
    from flowimg.jobs.train import beginning

    def slow_source(config):
        while True:
            time.sleep(0.1)

    beginning.build_source = slow_source
elif stage in ("saving", "saving without end"):
    from flowimg import files

    sync = files.sync

    def slow_sync(path, *how):
        sync(path, *how)
        time.sleep(0.3)
        while stage == "saving without end" and path.name.startswith(".step_") and any(path.parent.glob("step_*")):
            time.sleep(0.1)  # there is a whole one

    files.sync = slow_sync
elif stage == "training":
    from flowimg.training import loop

    train_step = loop.train_step

    def slow_step(state, *args):
        time.sleep(0.05)
        train_step(state, *args)

    loop.train_step = slow_step

sys.argv = ["flowimg", *sys.argv[2:]]
main()
