"""`make soak`: a run killed with SIGKILL at 30 random times ends bit for bit as the run that was never killed.

python tests/soak.py [KILLS] [SEED] [PROCESSES]

Several processes share one copy of the weights, save at every step, and one of them is killed.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from survival import CRASH, SLOWLY, begin, finish, go, last_checkpoint, launch, status, wait_for, words

from flowimg.files import read_json
from flowimg.runs.folder import RunFolder

STEPS = 1600
MORE = ["--train.steps", STEPS, "--train.sample-every", 50]


def kill(process, run, processes, chance, began):
    """Kill the run's process or, of several, one; the launcher where they have not begun."""
    chosen = read_json(run / "processes" / f"{chance.randrange(processes)}.json") if processes > 1 else {}
    if chosen.get("since", 0) > began:  # not of an earlier start
        os.kill(chosen["pid"], signal.SIGKILL)
    else:
        process.kill()


def saves(run, began):
    """Whether this start has saved a checkpoint."""
    told = read_json(run / "processes" / "0.json")
    return told.get("since", 0) > began and told.get("saved") is not None and told["stage"] in ("training", "saving")


def soak(kills, seed, processes):
    chance, start = random.Random(seed), launch(processes if processes > 1 else 0)
    every = 1 if processes > 1 else 5  # a logged loss is the mean since the last line, or since the start
    more = [*MORE, "--train.checkpoint-every", every, "--train.log-every", every, "--train.shard", "all"]
    with tempfile.TemporaryDirectory() as folder:
        straight, run = Path(folder, "straight"), Path(folder, "run")
        go(*start, CRASH, "never", 0, *words(straight, *more))
        done, at = 0, []
        while done < kills:
            began = time.time()
            process = begin(*start, SLOWLY, "training", *words(run, *more))  # 50 ms a step
            if processes > 1:  # which take long to begin
                wait_for(lambda began=began: saves(run, began) or process.poll() is not None)  # noqa: B023
            time.sleep(chance.uniform(0.5, 8.0))
            if process.poll() is not None:
                sys.exit(f"ended by itself after {done} kills:\n{finish(process)[1]}")
            kill(process, run, processes, chance, began)
            finish(process)
            done += 1
            at.append((status(run).get("stage", "before any"), status(run).get("step", 0)))
            print(f"kill {done}: {at[-1][0]}, about step {at[-1][1]}, saved {status(run).get('saved')}", flush=True)
        said = go(*start, CRASH, "never", 0, *words(run, *more))
        print(next(line for line in said.splitlines() if line.startswith("run ")))
        same = last_checkpoint(straight, STEPS) == last_checkpoint(run, STEPS)
        events = RunFolder(run).events()
        broken = sum(len(event["passed_over"]) for event in events)
        print(f"{kills} kills, {len(events)} starts that came to training, {broken} broken checkpoints passed over")
        losses = [[r.get("loss") for r in RunFolder(path).records()] for path in (straight, run)]
        for what, equal in {"the last checkpoint": same, "all losses": losses[0] == losses[1]}.items():
            print(f"{what}: {'equal' if equal else 'NOT EQUAL'} to those of the run that was never killed")
        sys.exit(not (same and losses[0] == losses[1]))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    soak(*given, *[30, 0, 1][len(given) :])
