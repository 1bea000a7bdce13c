"""Time from the command to the first step, beside what no run can do without.

    python benchmarks/start.py CONFIG [--KEY VALUE ...]

The floor of a run on points is `import torch`; of one on pictures, torch, accelerate and diffusers imported and the
same UNet2DModel constructed. Each in a process of its own, in turn, after one of each that is not counted; wall-clock
and CPU seconds from the start of the process, medians and ranges of PAIRS.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from flowimg.cli import run_settings
from flowimg.build.data import build_source
from flowimg.build.field import build_field

PAIRS = 5
TOLD = """
import json, resource, time
def tell():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("\\n" + json.dumps([time.time(), used.ru_utime + used.ru_stime]), flush=True)
"""
POINTS = TOLD + "import torch\ntell()\n"
PICTURES = (
    TOLD
    + """
import torch, accelerate
from diffusers import UNet2DModel
UNet2DModel.from_config(json.loads({!r}))
tell()
"""
)
OURS = (
    TOLD
    + """
import os
import flowimg.training.loop as loop
from flowimg.cli import main
def first(*args):
    tell()
    os._exit(0)
loop.train_step = first
main({!r})
"""
)


def seconds(code: str, folder: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds until the code tells."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    try:
        at, cpu = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise SystemExit(done.stderr) from None
    return at - began, cpu


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    args = [os.path.abspath(sys.argv[1]), *sys.argv[2:]]
    config = run_settings("train", args)
    floor = POINTS
    if config.data.kind == "images":
        field = build_field(config, build_source(config).facts)
        floor = PICTURES.format(json.dumps(field.architecture()))
    found: dict[str, list[tuple[float, float]]] = {"floor": [], "flowimg train": []}
    for pair in range(PAIRS + 1):
        for name, code in (("floor", floor), ("flowimg train", "")):
            with tempfile.TemporaryDirectory() as folder:
                code = code or OURS.format(["train", *args, "--run", f"{folder}/run"])
                measured = seconds(code, folder)
            if pair:
                found[name].append(measured)
    for which, words in enumerate(("seconds", "CPU seconds")):
        for name, all_of in found.items():
            values = [one[which] for one in all_of]
            print(f"{name:<14} {statistics.median(values):6.2f} {words} ({min(values):.2f} to {max(values):.2f})")
        ratios = [ours[which] / bare[which] for bare, ours in zip(*found.values(), strict=True)]
        print(f"{'ratio':<14} {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
