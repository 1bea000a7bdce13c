"""Machines that are lost: two network namespaces with a host name each, joined by a cable, are two machines.

Also what a launcher restarts, and a process that is stopped, on one machine. Every test waits for an event, and says
how many seconds it took (pytest -s).
"""

import os
import shutil
import signal
import subprocess
import time

import pytest
from survival import BIN, CRASH, HANGING, ROOT, TINY, begin, finish, launch, status, wait_for, words

from flowimg.files import read_json
from flowimg.runs.others import lives
from flowimg.runs.watchdog import FEW

LIMITS = ROOT / "tests" / "limits.py"
LONG = ["--train.steps", "100000", "--train.checkpoint-every", "1000", "--train.log-every", "20"]
LONG += ["--train.sample-every", "100000"]  # the watchdog is for steps: nothing is stopped while samples are drawn
HOSTS = ("machine-a", "machine-b")
pytestmark = pytest.mark.slow


def told(run, process):
    """What a process wrote about itself."""
    return read_json(run / "processes" / f"{process}.json")


def steps(run):
    """Whether both processes know how long a step takes."""
    return all(told(run, process).get("step", 0) > FEW for process in range(2))


def seconds_until(*pids):
    """Seconds until these processes are gone."""
    began = time.monotonic()
    wait_for(lambda: not any(lives(pid) for pid in pids))
    took = time.monotonic() - began
    print(f"{os.environ['PYTEST_CURRENT_TEST']}: {took:.1f} s")
    return took


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_launcher_restarts_a_run_of_which_a_process_was_killed(tmp_path, launcher):
    run = tmp_path / "run"
    before = {
        "accelerate": [*launch(2), "--max_restarts", 2],
        "torchrun": [BIN / "torchrun", "--standalone", "--nproc_per_node", 2, "--max_restarts", 2, "--"],
    }[launcher]
    code, said = finish(begin(*before, CRASH, "1:step", 5, *words(run)))
    assert code == 0, said
    assert status(run)["state"] == "done" and status(run)["step"] == 8
    assert "continued from step 4" in said
    assert "this is a bug in flowimg" not in said, said  # whatever the first restart died of


def test_a_process_that_is_stopped_ends_the_others(tmp_path):
    run = tmp_path / "run"
    launcher = begin(*launch(2), LIMITS, "LEAST=10,STEP=0.05", *words(run, *LONG))
    wait_for(lambda: steps(run))
    first, second = (told(run, process)["pid"] for process in range(2))
    os.kill(second, signal.SIGSTOP)
    try:
        seconds_until(first)
    finally:
        os.kill(second, signal.SIGCONT)
    code, said = finish(launcher)
    assert code == 1 and "no new step for" in said, said
    assert status(run)["state"] == "failed" and status(run)["exit"] == 4
    assert "no new step for" in status(run)["why"] and "stage" not in status(run)["why"]


class Machines:
    """Two namespaces and the cable between them."""

    def __init__(self):
        self.spaces = [f"flowimg{os.getpid()}{letter}" for letter in "ab"]
        self.launchers, self.said = [], []

    def up(self):
        a, b = self.spaces
        for space in self.spaces:
            self.ip("netns", "add", space)
        self.ip("-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b)
        for number, space in enumerate(self.spaces, start=1):
            self.ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            self.ip("-n", space, "link", "set", "lo", "up")
        self.mend()

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    def cut(self):
        self.ip("-n", self.spaces[1], "link", "set", "cable", "down")

    def mend(self):
        for space in self.spaces:
            self.ip("-n", space, "link", "set", "cable", "up")

    def train(self, folder, limits, *more, restarts=0):
        """Start a run of a process on each; when it trains, its folder and the two processes."""
        run = folder / "run"
        for rank, (space, host) in enumerate(zip(self.spaces, HOSTS, strict=True)):
            inside = ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host]
            launcher = [
                BIN / "accelerate", "launch", "--multi_gpu", "--num_machines", 2, "--num_processes", 2,
                "--machine_rank", rank, "--main_process_ip", "10.77.0.1", "--main_process_port", 29500,
                "--mixed_precision", "no", "--dynamo_backend", "no", "--max_restarts", restarts,
            ]  # fmt: skip
            command = [*inside, *launcher, LIMITS, limits, "train", "configs/checkerboard.yaml", "--run", run]
            command = [str(word) for word in [*command, *TINY.split(), *more]]
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "cable",
            }  # fmt: skip
            self.said.append(folder / f"{host}.txt")
            with self.said[-1].open("w") as file:
                how = {"cwd": ROOT, "env": environment, "start_new_session": True}
                self.launchers.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **how))
        wait_for(lambda: steps(run) or any(launcher.poll() is not None for launcher in self.launchers))
        assert steps(run), [path.read_text() for path in self.said]
        return run, *(told(run, process)["pid"] for process in range(2))

    def down(self):
        for launcher in self.launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGTERM)
                try:
                    launcher.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(launcher.pid, signal.SIGKILL)
                    launcher.wait()
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@pytest.fixture
def machines():
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare")):
        pytest.skip("needs root, ip and unshare")
    machines = Machines()
    try:
        try:
            machines.up()
            subprocess.run(["unshare", "--uts", "true"], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr}")
        yield machines
    finally:
        machines.down()


def test_a_process_killed_on_one_machine_ends_the_other(machines, tmp_path):
    run, first, second = machines.train(tmp_path, "STEP=0.05", *LONG)
    os.kill(second, signal.SIGKILL)
    seconds_until(first)
    assert status(run)["state"] == "failed" and status(run)["exit"] == 4
    assert "another process ended" in status(run)["why"] and "the same command continues" in status(run)["why"]
    assert machines.launchers[0].wait(HANGING) == 1


def test_a_machine_that_is_dead_ends_the_other_which_names_it(machines, tmp_path):
    run, first, second = machines.train(tmp_path, "STEP=0.05,SILENT=15,DEAD=5", *LONG)
    machines.cut()  # first: a dead machine resets no connection
    os.kill(machines.launchers[1].pid, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    seconds_until(first)
    assert status(run)["state"] == "failed" and status(run)["exit"] == 4
    assert f"on {HOSTS[1]}) is silent for 15 s" in status(run)["why"]
    assert "the same command continues" in machines.said[0].read_text()


def test_a_network_that_is_cut_ends_both_machines(machines, tmp_path):
    run, *both = machines.train(tmp_path, "STEP=0.05,LEAST=10", *LONG)
    machines.cut()
    seconds_until(*both)
    for process in range(2):  # one may report what the other wrote, on the disk that they share
        assert told(run, process)["state"] == "failed" and told(run, process)["exit"] == 4
        assert "no new step for" in told(run, process)["why"]
    assert status(run)["state"] == "failed"


def test_a_network_that_comes_back_is_survived(machines, tmp_path):
    run, *_ = machines.train(tmp_path, "STEP=0.05", "--train.steps", "400", "--train.log-every", "20")
    machines.cut()
    time.sleep(8)
    machines.mend()
    began, size = time.monotonic(), (run / "metrics.jsonl").stat().st_size
    wait_for(lambda: (run / "metrics.jsonl").stat().st_size > size or machines.launchers[0].poll() is not None)
    print(f"{os.environ['PYTEST_CURRENT_TEST']}: metrics {time.monotonic() - began:.1f} s after it came back")
    assert [launcher.wait(HANGING) for launcher in machines.launchers] == [0, 0]
    assert status(run)["state"] == "done" and status(run)["step"] == 400


def test_the_launchers_of_two_machines_restart_a_run_together(machines, tmp_path):
    more = ["--train.steps", "600", "--train.checkpoint-every", "50", "--train.log-every", "20"]
    run, _, second = machines.train(tmp_path, "STEP=0.05", *more, restarts=3)
    os.kill(second, signal.SIGKILL)
    assert [launcher.wait(HANGING) for launcher in machines.launchers] == [0, 0]
    assert status(run)["state"] == "done" and status(run)["step"] == 600
    said = machines.said[0].read_text()
    assert "continued from step" in said and "this is a bug in flowimg" not in said, said
