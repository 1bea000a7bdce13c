"""Time from the command to the first training step, beside the least that any such run needs.

    python benchmarks/start.py CONFIG [--KEY VALUE ...]
    python benchmarks/start.py CONFIG --flowimg CHECKOUT     this checkout beside another one of flowimg

The floor of a run on points is `import torch`; of one on pictures, torch, accelerate and diffusers imported and the
same UNet2DModel constructed. Each is a process that exits at that point, in turn (A B, B A, ...), --pairs times (6)
after one round that does not count. Reported: wall-clock and CPU seconds of the process, median, minimum and maximum.

With other checkouts (--flowimg, one or more), which are run by their command line only, a run of --steps (20) steps is
also timed, from the command to the end of its process, with the last checkpoint, figures and report. Reported besides:
the ratio of this checkout's time to the other's, the median over pairs with its 95 % interval, and whether the
difference is beyond the noise: that takes six pairs or more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from turns import CHECKOUT, checkout_of, compared, environment_of, flowimg_command

from flowimg.build.data import build_source
from flowimg.build.field import build_field
from flowimg.fields.stock import architecture
from flowimg.settings.command import run_settings

POINTS = "import os, torch\nos._exit(0)\n"
PICTURES = """
import json, os
import torch, accelerate
from diffusers import UNet2DModel
UNet2DModel.from_config(json.loads({!r}))
os._exit(0)
"""
WHAT = {"first": "to the first step", "end": "to the end of {} steps"}


def seconds(command: list[str], checkout: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a process of Python; {run} in its arguments becomes a new folder.

    Raises:
        SystemExit: If it fails; with its output.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, *(arg.replace("{run}", f"{folder}/run") for arg in command)]
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment_of(checkout), stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)  # with the processes that it waited for
        taken = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read())
    return taken, used.ru_utime + used.ru_stime


def commands(given: argparse.Namespace, more: list[str]) -> dict[tuple[str, str], tuple[list[str], str]]:
    """What is timed, as (what, who): the arguments of Python and the checkout."""
    args = [os.path.abspath(given.config), *more]
    config = run_settings("train", args)
    floor = POINTS
    if config.data.kind == "images":
        field = build_field(config, build_source(config).facts)
        floor = PICTURES.format(json.dumps(architecture(field.unet)))
    checkouts = {"flowimg train": CHECKOUT, **{path: checkout_of(path) for path in given.flowimg}}
    args += ["--run", "{run}"]
    timed = {("first", "floor"): (["-c", floor], CHECKOUT)}
    for name, checkout in checkouts.items():
        timed["first", name] = (flowimg_command("first", args), checkout)
    for name, checkout in checkouts.items() if given.flowimg else ():
        short = ["-m", "flowimg", "train", *args, "--train.steps", str(given.steps)]
        timed["end", name] = (short, checkout)
    return timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="a settings file")
    told = "other checkouts of flowimg, started in turn with this one on the same settings"
    parser.add_argument("--flowimg", nargs="+", default=[], metavar="CHECKOUT", help=told)
    parser.add_argument("--pairs", type=int, default=6, help="processes of each (default: 6)")
    parser.add_argument("--steps", type=int, default=20, help="of the short run (default: 20)")
    given, more = parser.parse_known_args()
    timed = commands(given, more)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {which: [] for which in timed}
    for pair in range(given.pairs + 1):
        for which in timed if pair % 2 else reversed(timed):
            measured = seconds(*timed[which])
            if pair:
                found[which].append(measured)
        print(f"{pair} of {given.pairs} pairs", file=sys.stderr, flush=True)
    print(f"{torch.get_num_threads()} threads")
    for what in dict.fromkeys(what for what, _ in timed):
        report(what, WHAT[what].format(given.steps), found)


def report(what: str, words: str, found: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    """Print the times of all to one point, and their ratios."""
    rows = {who: pairs for (point, who), pairs in found.items() if point == what}
    width = max(len(who) for who in rows)
    for index, unit in enumerate(("seconds", "CPU seconds")):
        print(f"\n{unit} {words}")
        times = {who: [pair[index] for pair in pairs] for who, pairs in rows.items()}
        for who, values in times.items():
            print(f"{who:<{width}} {statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})")
        own = times.pop("flowimg train")
        if floor := times.pop("floor", None):
            ratios = [ours / bare for ours, bare in zip(own, floor, strict=True)]
            print(f"flowimg train / floor {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        for who, values in times.items():
            print(f"flowimg train, beside {who}: {compared(own, values)}")


if __name__ == "__main__":
    main()
