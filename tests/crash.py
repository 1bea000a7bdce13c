"""`python crash.py POINT STEP flowimg-arguments`: flowimg, killed (SIGKILL) at a named point of the save of a step.

With PROCESS:POINT only that process of a launch is killed; what a launcher restarts is not killed again. Patches
nothing but where the process ends, and pictures.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from sketch import sketched

from flowimg import files
from flowimg.jobs.train import saving
from flowimg.training import checkpoint, parts

POINTS = [
    "before", "folder", "half of weights", "weights", "ema", "optimizer", "state", "half of manifest", "manifest",
    "renamed", "half of latest", "latest", "half of a rotation", "rotation",
]  # fmt: skip


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point, step):
    """Die at this point of the save of this step."""
    write, save, write_json, rename = (
        checkpoint.write_checkpoint,
        parts.save_file,
        checkpoint._write_json,
        Path.rename,
    )
    sync, write_text, rmtree = files.sync, checkpoint.write_text, shutil.rmtree
    share, now = saving.write_share, {"step": None}

    def at(name):
        if now["step"] == step and name == point:
            die()

    def halved(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def write_checkpoint(folder, which, *args):
        now["step"] = which
        at("before")
        done = write(folder, which, *args)
        at("rotation")
        now["step"] = None
        return done

    def write_share(folder, which, *args):
        now["step"] = which
        share(folder, which, *args)
        at("shared")
        now["step"] = None

    def save_file(tensors, path):
        if path.stem == "weights":
            at("folder")
        save(tensors, path)
        if point == f"half of {path.stem}" and now["step"] == step:
            halved(path)
            die()
        at(path.stem)

    def _write_json(path, value):
        write_json(path, value)
        if point == f"half of {path.stem}" and now["step"] == step:
            halved(path)
            die()
        at(path.stem)

    def _rename(self, target):
        done = rename(self, target)
        if Path(target).name == f"step_{step:08d}":
            at("renamed")
        return done

    def _sync(path, *how):
        sync(path, *how)
        if path.name.startswith(".latest.") and point == "half of latest" and now["step"] == step:
            halved(path)
            die()

    def _write_text(path, text, **more):
        write_text(path, text, **more)
        at(path.name)

    def _rmtree(path, *args, **more):
        if point == "half of a rotation" and now["step"] == step and Path(path).name.startswith("step_"):
            next(Path(path).glob("*.safetensors")).unlink()
            die()
        return rmtree(path, *args, **more)

    saving.write_checkpoint, saving.write_share = write_checkpoint, write_share
    parts.save_file, checkpoint._write_json, files.sync, checkpoint.write_text = (
        save_file,
        _write_json,
        _sync,
        _write_text,
    )
    Path.rename = _rename
    checkpoint.shutil.rmtree = _rmtree


if __name__ == "__main__":
    sketched()
    process, _, name = sys.argv[1].rpartition(":")
    last = int(sys.argv[2])
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not restarted and process in ("", os.environ.get("RANK", "0")):
        if name == "step":  # not in a save: when this step begins
            from flowimg.training import loop

            train_step = loop.train_step

            def dying(state, *args):
                if state.step == last:
                    die()
                train_step(state, *args)

            loop.train_step = dying
        else:
            arm(name, last)
    sys.argv = ["flowimg", *sys.argv[3:]]
    from flowimg.cli import main

    main()
