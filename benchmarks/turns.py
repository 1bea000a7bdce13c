"""Processes whose training steps take turns, and checkouts of flowimg that are compared by their command line only.

    python benchmarks/turns.py steps train CONFIG [--KEY VALUE ...]   `flowimg train` that waits before its steps
    python benchmarks/turns.py first train CONFIG [--KEY VALUE ...]   `flowimg train` that exits at its first step

Not for users: speed.py, start.py and shared.py start these, with the checkout in PYTHONPATH. This file uses no name in
flowimg, and finds a step by torch's classes: two checkouts may differ in every file and every name, as long as they
share the command line.
"""

import math
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

ENVIRON = dict(os.environ)
"""The variables as the user set them: flowimg, whatever its version, sets others when it is imported."""
if __name__ == "__main__":
    import flowimg  # noqa: F401  the checkout's own, before torch, which reads these variables

import torch  # noqa: E402

HERE = Path(__file__).resolve()
CHECKOUT = str(HERE.parents[1])
"""The checkout of flowimg that this file belongs to."""


# --- in the process that trains --------------------------------------------------------------------------------------


class Turns:
    """Called before each step: waits for its turn, runs the requested number of steps, reports what they took.

    A report is a line: seconds, peak memory in MiB, threads.
    """

    def __init__(self) -> None:
        asked, told = (int(number) for number in os.environ["TURNS"].split())
        self.asked, self.told = os.fdopen(asked), os.fdopen(told, "w", buffering=1)
        self.left, self.began = 0, 0.0

    def __call__(self) -> None:
        if not self.left:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if self.began:
                print(time.perf_counter() - self.began, peak_mib(), torch.get_num_threads(), file=self.told)
            line = self.asked.readline()
            if not line:
                os._exit(0)
            self.left, self.began = int(line), time.perf_counter()
        self.left -= 1


def peak_mib() -> int:
    """Peak memory in MiB: of tensors on the GPU where one is used, else of this process."""
    if torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def before_optimizer_steps(call: Callable[[], None]) -> None:
    """Call this before each step of any optimiser made from now on.

    torch's own hooks do not see flowimg's optimiser, which leaves out torch's wrapper of `step`.
    """
    made = torch.optim.Optimizer.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        step = self.step

        def called(self: Any, *args: Any, **more: Any) -> Any:
            call()
            return step(*args, **more)

        self.step = MethodType(called, self)

    torch.optim.Optimizer.__init__ = init  # type: ignore[method-assign]


def exit_at_first_step() -> None:
    """End this process where a network is first called to be trained."""
    torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: os._exit(0) if module.training and torch.is_grad_enabled() else None
    )


def run(how: str, args: list[str]) -> None:
    """`python -m flowimg ARGS`, its steps in turns or ended at its first step.

    Raises:
        SystemExit: If the flowimg that Python finds is not in the first folder of PYTHONPATH.
    """
    spec, wanted = find_spec("flowimg"), os.environ["PYTHONPATH"].split(os.pathsep)[0]
    if spec is None or spec.origin is None or not Path(spec.origin).resolve().is_relative_to(wanted):
        raise SystemExit(f"Python finds flowimg at {spec and spec.origin}, not in {wanted}")
    if how == "steps":
        before_optimizer_steps(Turns())
    else:
        exit_at_first_step()
    sys.argv = ["flowimg", *args]
    runpy.run_module("flowimg", run_name="__main__", alter_sys=True)


# --- in the benchmark ------------------------------------------------------------------------------------------------


class Trainer:
    """A process that waits for its turns: `command` is a script and its arguments, and calls `Turns` before steps.

    `before` are the words before the interpreter, if any.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str], log: Path, before: Sequence[str] = ()) -> None:
        asked, heard = os.pipe(), os.pipe()
        self.log = log
        self.asked = os.fdopen(asked[1], "w", buffering=1)
        self.process = subprocess.Popen(
            [*before, sys.executable, *command], env={**env, "TURNS": f"{asked[0]} {heard[1]}"},
            pass_fds=(asked[0], heard[1]), stdout=log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(asked[0])
        os.close(heard[1])
        self.heard = os.fdopen(heard[0])
        self.mib = self.threads = 0
        self.ask(1)  # it starts beside the others, and takes its first step

    def ask(self, steps: int) -> None:
        """Let it run this number of steps."""
        with suppress(BrokenPipeError):  # the process ended: `seconds` raises
            print(steps, file=self.asked)

    def seconds(self) -> float:
        """Wait for the steps asked for last; the seconds of all of them.

        Raises:
            ChildProcessError: If the process ended; with the last lines of its output.
        """
        line = self.heard.readline()
        if not line:
            raise ChildProcessError("it ended:\n" + "".join(self.log.read_text().splitlines(keepends=True)[-25:]))
        seconds, mib, threads = line.split()
        self.mib, self.threads = int(mib), int(threads)
        return float(seconds)

    def turn(self, steps: int) -> float:
        """Seconds per step over this number of steps."""
        self.ask(steps)
        return self.seconds() / steps

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()


def checkout_of(path: str) -> str:
    """The absolute path of a checkout of flowimg.

    Raises:
        SystemExit: If there is no flowimg in that folder.
    """
    checkout = Path(path).resolve()
    if not (checkout / "flowimg" / "__main__.py").exists():
        raise SystemExit(f"--flowimg {path}: not a checkout of flowimg (no flowimg/__main__.py)")
    return str(checkout)


def environment_of(checkout: str, safe: bool = True) -> dict[str, str]:
    """Environment variables with which Python imports flowimg from that checkout.

    Unless `safe` is False, neither the script's folder nor the working directory hides a module then.
    """
    path = os.pathsep.join([checkout, *filter(None, [ENVIRON.get("PYTHONPATH")])])
    return {**ENVIRON, "PYTHONPATH": path, **({"PYTHONSAFEPATH": "1"} if safe else {})}


def flowimg_command(how: str, args: Sequence[str]) -> list[str]:
    """A script and its arguments, for `run`."""
    return [str(HERE), how, "train", *args]


def compared(own: Sequence[float], others: Sequence[float]) -> str:
    """How many times as long this checkout takes as another one, and whether that is beyond the noise.

    The ratio is the median over pairs. Its interval needs no assumption on the noise: it runs from the k-th smallest to
    the k-th largest of n ratios, which holds the median with probability 1 - 2 sum_{i<k} C(n, i) / 2^n, for the largest
    k with at least 95 %, or k = 1.
    """
    ratios = sorted(mine / other for mine, other in zip(own, others, strict=True))
    n = len(ratios)
    inside = [1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)] or [0.0]
    k = max([k for k, share in enumerate(inside, 1) if share >= 0.95], default=1)
    low, high = ratios[k - 1], ratios[-k]
    verdict = "too few pairs to judge"
    if inside[k - 1] >= 0.95:  # six pairs or more: of five, all lie on one side by chance in one case of 16
        verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference"
        verdict += " beyond the noise"
    return (
        f"{statistics.median(ratios):.3f} times as long ({100 * inside[k - 1]:.0f} % interval {low:.3f} to {high:.3f}, "
        f"{n} pairs from {ratios[0]:.3f} to {ratios[-1]:.3f}): {verdict}"
    )


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
