"""Starting, killing and comparing runs in processes of their own, for the tests of survival and the soak."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import forked

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CRASH, SLOWLY = Path(__file__).with_name("crash.py"), Path(__file__).with_name("slowly.py")
POISON = Path(__file__).with_name("poison.py")
HANGING = 600
"""Seconds after which a process hangs; how long it takes is no test's business, and a busy machine takes its time."""
TINY = """--train.steps 8 --train.batch-size 48 --train.log-every 2 --train.sample-every 100 --train.checkpoint-every 2
--train.keep 2 --grid.count 4 --grid.num-steps 1 --figures false --field.width 8 --field.depth 1 --data.held-out 16"""


def launch(processes, mixed_precision="no"):
    """The words before a script: the interpreter, or a launcher on CPUs."""
    if not processes:
        return [sys.executable]
    many = ["--multi_gpu"] if processes > 1 else []
    return [
        BIN / "accelerate", "launch", *many, "--num_processes", processes, "--num_machines", 1,
        "--mixed_precision", mixed_precision, "--dynamo_backend", "no", "--main_process_port", 0,
    ]  # fmt: skip


def words(run, *more, config="configs/checkerboard.yaml"):
    return ["train", config, "--run", run, *TINY.split(), *more]


def begin(*command, **more):
    """Start a script that `launch` comes before, in a session of its own, with more variables."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {name: str(value) for name, value in more.items()}
    return forked.start(command[command[0] == sys.executable :], ROOT, environment)


def finish(process, limit=HANGING):
    """Exit status, and all that was said."""
    try:
        said = "".join(process.communicate(timeout=limit))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    return process.returncode, said


def go(*command):
    status, said = finish(begin(*command))
    assert status == 0, said
    return said


def go_on(processes, *command):
    """Run a script on several processes without a launcher, which would have each import torch; what the first said."""
    if processes < 2:
        return go(sys.executable, *command)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": processes}
    place |= {"LOCAL_WORLD_SIZE": processes}
    started = [begin(sys.executable, *command, RANK=rank, LOCAL_RANK=rank, **place) for rank in range(processes)]
    found = [finish(process) for process in started]
    assert not any(status for status, _ in found), "\n".join(said for _, said in found)
    return found[0][1]


def on_two(code, folder):
    """Run code on two processes."""
    script = folder / "two.py"
    script.write_text(f"{code}\ntorch.distributed.destroy_process_group()\n")
    go_on(2, script)


def status(run):
    try:
        return json.loads((run / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def trains(run):
    """Whether a step of it was logged: sooner known than from the status, which is written every few seconds."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def wait_for(what, limit=HANGING):
    until = time.monotonic() + limit
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def last_checkpoint(run, step=8):
    """The bytes of everything that a run ended with."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
