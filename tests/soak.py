"""`make soak`: a run killed with SIGKILL at 30 random times ends bit for bit as the run that was never killed.

python tests/soak.py [KILLS] [SEED]
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from survival import CRASH, SLOWLY, begin, finish, go, last_checkpoint, launch, status, words

from flowimg.runs.folder import RunFolder

STEPS = 2000
MORE = ["--train.steps", STEPS, "--train.checkpoint-every", 5, "--train.log-every", 5, "--train.sample-every", 50]


def soak(kills, seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        straight, run = Path(folder, "straight"), Path(folder, "run")
        go(*launch(0), CRASH, "never", 0, *words(straight, *MORE))
        done, at = 0, []
        while done < kills:
            process = begin(*launch(0), SLOWLY, "training", *words(run, *MORE))  # 50 ms a step
            time.sleep(chance.uniform(0.5, 8.0))
            if process.poll() is not None:
                sys.exit(f"ended by itself after {done} kills:\n{finish(process)[1]}")
            process.kill()
            finish(process)
            done += 1
            at.append((status(run).get("stage", "before any"), status(run).get("step", 0)))
            print(f"kill {done}: {at[-1][0]}, about step {at[-1][1]}, saved {status(run).get('saved')}", flush=True)
        said = go(*launch(0), CRASH, "never", 0, *words(run, *MORE))
        print(next(line for line in said.splitlines() if line.startswith("run ")))
        same = last_checkpoint(straight, STEPS) == last_checkpoint(run, STEPS)
        events = RunFolder(run).events()
        broken = sum(len(event["passed_over"]) for event in events)
        print(f"{kills} kills, {len(events)} starts that came to training, {broken} broken checkpoints passed over")
        losses = [[r.get("loss") for r in RunFolder(path).records()] for path in (straight, run)]
        sys.exit(None if same and losses[0] == losses[1] else "NOT EQUAL to the run that was never killed")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    soak(*given, *[30, 0][len(given) :])
