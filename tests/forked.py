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
from pathlib import Path

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
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(server())
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


_server = []


def server():
    """The address of this process's server, which ends with it: its stdin is closed."""
    if not _server or _server[-1].poll() is not None:  # or it was killed, as on a machine that ran out of memory
        _server.clear()
        folder = tempfile.TemporaryDirectory(prefix="forked")
        address = os.path.join(folder.name, "door")
        process = subprocess.Popen(
            [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        _server.extend([address, folder, process])
        assert process.stdout.readline() == b"ready\n", "the server of processes did not start"
    return _server[0]


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
            if any(key.fileobj is sys.stdin for key, _ in events.select()):
                raise SystemExit
            line, _ = door.accept()
            if os.fork() == 0:
                break
            line.close()
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
    import importlib
    import runpy
    import threading

    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # a name less is a slower test, no other one
            importlib.import_module(name)
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
