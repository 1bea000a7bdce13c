"""`flowimg doctor`: checks that this machine and a folder are fit for a long run."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowimg.errors import MachineError
from flowimg.fields.cpu.norm import library
from flowimg.files import existing, filled, lock
from flowimg.machine.cores import Neighbours, cores, shared_sentence
from flowimg.machine.device import pick_device
from flowimg.machine.precision import fast_in_bf16
from flowimg.machine.throughput import product_flops
from flowimg.settings.verbs import Doctor

PACKAGES = ("torch", "torchvision", "accelerate", "diffusers", "datasets", "safetensors", "numpy", "pydantic")
TOGETHER = """
import torch, torch.distributed as dist
dist.init_process_group("{backend}")
rank = dist.get_rank()
device = torch.device("cuda", rank) if "{backend}" == "nccl" else torch.device("cpu")
x = torch.full((1024,), rank + 1.0, device=device)
dist.all_reduce(x)
assert bool((x == 3).all()), x

from torch.distributed.fsdp import fully_shard
torch.manual_seed(0)
layer = torch.nn.Linear(8, 3, device=device)
x = torch.ones(4, 8, device=device)
whole = layer(x)
fully_shard(layer, mesh=dist.init_device_mesh(device.type, (2,)))
layer.set_force_sum_reduction_for_comms("{backend}" == "gloo")
y = layer(x)
y.sum().backward()
assert bool((y == whole).all()), y
assert bool((layer.weight.grad.full_tensor() == 4).all()), layer.weight.grad
dist.destroy_process_group()
"""
PATIENCE = 90
"""Longest time in seconds for two processes to start and to do that."""

Finding = tuple[str, str]
"""A verdict (ok, note or bad), and a sentence."""


def doctor(settings: Doctor) -> dict[str, Any]:
    """Run and print all checks.

    Raises:
        MachineError: If a check found something bad; the message lists all such findings.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "versions": _versions,
        "device": _device,
        "precision": _precision,
        "memory": _shared_memory,
        "processes": _processes,
        "cores": partial(_cores, Neighbours()),  # after checks that take seconds, over which their use is averaged
        "folder": partial(_folder, Path(settings.run)),
    }
    found: dict[str, Finding] = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:  # the other checks are useful whatever is wrong with the machine
            found[name] = ("bad", f"{type(error).__name__}: {error}")
        verdict, sentence = found[name]
        print(f"{verdict:<5} {name:<10} {sentence}", flush=True)
    if bad := [f"{name}: {sentence}" for name, (verdict, sentence) in found.items() if verdict == "bad"]:
        raise MachineError("\n".join(bad))
    return {name: {"verdict": verdict, "says": sentence} for name, (verdict, sentence) in found.items()}


def _versions() -> Finding:
    import torchvision  # noqa: F401  this import fails if its version does not fit torch

    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return "ok", ", ".join([f"Python {platform.python_version()}", *versions])


def _device() -> Finding:
    device = pick_device()
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        torch.ones(8, device=device).sum().item()
        return "ok", "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
    threads = f"{device}, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        return "note", f"{threads}; torch finds no GPU, although nvidia-smi is installed"
    return "ok", f"{threads}; torch finds no GPU"


def _precision() -> Finding:
    """Compare the speed of matrix products in bf16 and fp32 with the precision that `auto` takes."""
    device = pick_device()
    speedup = product_flops(device, torch.bfloat16) / product_flops(device, torch.float32)
    fast = fast_in_bf16(device)
    summary = f"bf16 is {speedup:.1f} times as fast as fp32 in matrix products; train.precision auto takes "
    summary += "bf16 for U-Nets" if fast else "fp32 for U-Nets"
    if (speedup > 1.2) != fast:
        return "note", f"{summary}, the slower one here: set train.precision to the other"
    if device.type != "cpu" or not fast:
        return "ok", summary
    if library().functions() is None:
        return "note", f"{summary}, whose blocks are not in C: a C compiler (cc) would make them faster"
    return "ok", f"{summary}, whose blocks are in C"


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return "ok", "no /dev/shm on this system"
    free = shutil.disk_usage(shm).free / 2**20
    if free < 64:
        return "note", f"/dev/shm has only {free:.0f} MiB free: give a container more with --shm-size=1g"
    return "ok", f"/dev/shm has {free:,.0f} MiB free"


def _processes() -> Finding:
    """Start two processes that add numbers, and share a layer."""
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    what = f"two-process {backend} all-reduce and sharded layer"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "all_reduce.py")
        script.write_text(TOGETHER.format(backend=backend), encoding="utf-8")
        began = time.perf_counter()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
        try:
            done = subprocess.run(
                launch, capture_output=True, encoding="utf-8", errors="backslashreplace", timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return "bad", f"{what} did not finish within {PATIENCE} s: check firewalls, and set NCCL_DEBUG=INFO"
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if "Error:" in line), "no reason given")
        return "bad", f"{what} failed: {why.strip()}"
    return "ok", f"{what} work ({time.perf_counter() - began:.0f} s including start-up)"


def _cores(neighbours: Neighbours) -> Finding:
    """Say whether other processes use the cores."""
    threads = torch.get_num_threads()
    others = neighbours.look(threads)
    neighbours.close()
    if others is not None:
        return "note", shared_sentence(others, threads)
    return "ok", f"{threads} of {cores()} cores have a thread of torch; other processes leave enough, as far as known"


def _folder(run: Path) -> Finding:
    """Write, sync, rename and lock in a folder, as a run does."""
    parent = existing(run)
    free = shutil.disk_usage(parent).free / 2**30
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".flowimg-doctor-") as folder:
            began = time.perf_counter()
            with filled(Path(folder, "step")) as step:
                (step / "weights").write_bytes(os.urandom(2**22))
            seconds = time.perf_counter() - began
            locks = _locks_hold(Path(folder, "lock"))
    except OSError as error:
        return "bad", f"{parent} cannot hold a run: {error}"
    summary = f"{parent}: {free:,.1f} GiB free, a folder of 4 MiB synced and renamed in {1000 * seconds:.0f} ms"
    if not locks:
        return "note", f"{summary}; it has no locks: two runs in one folder would not notice each other"
    return "ok", f"{summary}, locks hold"


def _locks_hold(file: Path) -> bool:
    with suppress(TimeoutError), lock(file, lambda: None), lock(file, lambda: None, patience=0):
        return False
    return True
