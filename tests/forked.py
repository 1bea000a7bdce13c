"""Processes of their own that need not import torch first: they are forked from one that has.

A test that starts flowimg wants a process: its signals, its memory, its exit. What it would wait for is the import of
torch, which is most of a short run. So the first process that is asked for starts a server, which imports what runs
import and then forks itself for every process: from there on it is that script, run as `python SCRIPT ...` runs it.
Where forking after such imports is not safe (macOS), or not at all, processes are started as usual.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

PRELOADED = (
    "flowimg.cli", "torch.optim", "torch._dynamo", "accelerate", "accelerate.commands.launch", "torch.distributed.run",
    "diffusers.models.unets.unet_2d", "sklearn.datasets", "scipy.special", "PIL.Image",
    "matplotlib.backends.backend_agg", "matplotlib.figure",
)  # fmt: skip
"""What runs import, flowimg's own but for its settings left out: that is soon done."""


class Forked:
    """What `subprocess.Popen` is to a process of its own, as far as tests ask: stdout and stderr are captured."""

    def __init__(self, args, cwd, env):
        self.args, self.returncode, self._heard = args, None, b""
        self._out, self._err = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115
        self._line = connected()
        asked = json.dumps({"args": args, "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(self._line, [len(asked).to_bytes(4, "big")], [self._out.fileno(), self._err.fileno()])
        self._line.sendall(asked)
        self.pid = int(self._told())

    def _told(self):
        while not self._heard.endswith(b"\n"):
            more = self._line.recv(1)
            assert more, "the server of processes is gone"
            self._heard += more
        told, self._heard = self._heard, b""
        return told

    def wait(self, timeout=None):
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = int(self._told())
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self._line.close()
        return self.returncode

    def poll(self):
        try:
            return self.wait(0.001)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout=None):
        self.wait(timeout)
        said = []
        for file in (self._out, self._err):
            file.seek(0)
            said.append(file.read())
            file.close()
        return tuple(said)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(args, cwd, env):
    """`python SCRIPT WORD ...` (`args` are the script and the words), in a session of its own."""
    args = [str(arg) for arg in args]
    if sys.platform == "linux":
        return Forked(args, cwd, env)
    return subprocess.Popen(
        [sys.executable, *args], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


_held, _begun = [], []


def connected():
    """A line to the server of all test workers, which ends with the last of those that asked for it.

    Its stdin is a pipe with a name: who has it open holds the server, and while it is open for reading there is one.
    """
    folder = Path(os.environ.get("FLOWIMG_TESTS_FORKED") or _own().name)
    line, door = socket.socket(socket.AF_UNIX), str(folder / "door")
    with FileLock(folder / "lock"):
        try:
            held = os.open(folder / "held", os.O_WRONLY | os.O_NONBLOCK)
            line.connect(door)
        except OSError:  # there is none yet, or it was killed, as on a machine that ran out of memory
            held = _begin(folder)
            line.connect(door)
    if _held:
        os.close(_held.pop())
    _held.append(held)
    return line


@cache
def _own():
    return tempfile.TemporaryDirectory(prefix="forked")


def _begin(folder):
    """Start a server, and hold it."""
    for name in ("held", "door"):
        (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / "held")
    stdin = os.open(folder / "held", os.O_RDONLY | os.O_NONBLOCK)
    held = os.open(folder / "held", os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, __file__, folder / "door"], stdin=stdin, stdout=subprocess.PIPE, start_new_session=True
    )
    os.close(stdin)
    _begun.append(process)  # or Python would warn that it still runs
    assert process.stdout.readline() == b"ready\n", "the server of processes did not start"
    return held


# --- the server ------------------------------------------------------------------------------------------------------


def serve(address):
    """Fork for whoever asks. Returns in the forked process alone: what it is to be, and where its words go."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(address)
    door.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever waits for a process is not waited for
    print("ready", flush=True)
    with selectors.DefaultSelector() as events:
        events.register(door, selectors.EVENT_READ)
        events.register(sys.stdin, selectors.EVENT_READ)
        while True:
            if door not in [key.fileobj for key, _ in events.select()]:  # nobody asks, and nobody holds it
                raise SystemExit
            line, _ = door.accept()
            if os.fork() == 0:
                break
            line.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    door.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, words, *_ = socket.recv_fds(line, 4, 2)
    asked = line.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    pid = os.fork()
    if pid:
        line.sendall(b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        try:
            line.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        finally:
            os._exit(0)
    line.close()
    return json.loads(asked), words


if __name__ == "__main__":
    import atexit
    import contextlib
    import gc
    import importlib
    import runpy
    import threading

    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # a name less is a slower test, no other one
            importlib.import_module(name)
    gc.freeze()  # what is never looked through is not copied from the server's memory
    asked, (out, err) = serve(sys.argv[1])
    os.setsid()
    for number, to in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(number, to)
        os.close(number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = asked["args"]
    sys.path[0] = str(Path(asked["args"][0]).resolve().parent)
    try:
        runpy.run_path(asked["args"][0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        code = stop.code or 0
    # the end of an interpreter, but for taking apart the modules, which would first be copied from the server's memory
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
