"""`flowimg doctor`: is this machine, and this folder, one that a long run can trust?"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowimg.errors import MachineError
from flowimg.fields.cpu.norm import library
from flowimg.files import existing
from flowimg.machine.device import pick_device
from flowimg.machine.precision import fast_in_bf16
from flowimg.machine.throughput import product_flops
from flowimg.settings.verbs import Doctor

PACKAGES = ("torch", "torchvision", "accelerate", "diffusers", "datasets", "safetensors", "numpy", "pydantic")
ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("{backend}")
rank = dist.get_rank()
device = torch.device("cuda", rank) if "{backend}" == "nccl" else torch.device("cpu")
x = torch.full((1024,), rank + 1.0, device=device)
dist.all_reduce(x)
assert bool((x == 3).all()), x
dist.destroy_process_group()
"""
PATIENCE = 90
"""Seconds that two processes may take to find each other and add."""

Finding = tuple[str, str]
"""ok, note or bad; and a sentence."""


def doctor(settings: Doctor) -> dict[str, Any]:
    """Look at everything, say it, and fail if something is bad.

    Raises:
        MachineError: With what is bad.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "versions": _versions,
        "device": _device,
        "precision": _precision,
        "memory": _shared_memory,
        "processes": _processes,
        "folder": lambda: _folder(Path(settings.run)),
    }
    found: dict[str, Finding] = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:  # whatever is wrong with a machine, the other checks are of use
            found[name] = ("bad", f"{type(error).__name__}: {error}")
        print(f"{found[name][0]:<5} {name:<10} {found[name][1]}", flush=True)
    bad = [f"{name}: {sentence}" for name, (verdict, sentence) in found.items() if verdict == "bad"]
    if bad:
        raise MachineError("\n".join(bad))
    return {name: {"verdict": verdict, "says": sentence} for name, (verdict, sentence) in found.items()}


def _versions() -> Finding:
    import torchvision  # noqa: F401  a pair that does not fit torch fails here

    told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return "ok", f"Python {platform.python_version()}, {told}"


def _device() -> Finding:
    device = pick_device()
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        torch.ones(8, device=device).sum().item()
        return "ok", "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
    note = (
        "no GPU that torch sees" if shutil.which("nvidia-smi") is None else "nvidia-smi is here, and torch sees no GPU"
    )
    return "note" if shutil.which("nvidia-smi") else "ok", f"{device}, {torch.get_num_threads()} threads; {note}"


def _precision() -> Finding:
    """Matrix products in fp32 and bf16 on this device."""
    device = pick_device()
    times = product_flops(device, torch.bfloat16) / product_flops(device, torch.float32)
    told = f"bf16 is {times:.1f} times as fast as fp32 in matrix products"
    taken = "bf16" if fast_in_bf16(device) else "fp32"
    told += f"; train.precision auto takes {taken} for U-Nets"
    if (times > 1.2) != (taken == "bf16"):
        return "note", f"{told}, the slower one here: ask for the other"
    if device.type == "cpu" and taken == "bf16":
        if library().functions() is None:
            return "note", f"{told}, whose blocks are not in C: a C compiler (cc) would make them faster"
        told += ", whose blocks are in C"
    return "ok", told


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return "ok", "no /dev/shm on this system"
    free = shutil.disk_usage(shm).free / 2**20
    if free < 64:
        return "note", f"/dev/shm has {free:.0f} MiB: in a container give more, --shm-size=1g"
    return "ok", f"/dev/shm has {free:,.0f} MiB free"


def _processes() -> Finding:
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "all_reduce.py")
        script.write_text(ALL_REDUCE.format(backend=backend))
        began = time.perf_counter()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
        try:
            done = subprocess.run(launch, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return "bad", f"two processes did not add by {backend} within {PATIENCE} s: see NCCL_DEBUG=INFO, firewalls"
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if "Error:" in line), "no reason given")
        return "bad", f"two processes could not add by {backend}: {why.strip()}"
    return "ok", f"two processes add by {backend}, {time.perf_counter() - began:.0f} s with their start"


def _folder(run: Path) -> Finding:
    """Write, sync, rename, lock, as a run does."""
    standing = existing(run)
    free = shutil.disk_usage(standing).free / 2**30
    try:
        with tempfile.TemporaryDirectory(dir=standing, prefix=".flowimg-doctor-") as folder:
            file = Path(folder, "a")
            began = time.perf_counter()
            with file.open("wb") as stream:
                stream.write(os.urandom(2**22))
                stream.flush()
                os.fsync(stream.fileno())
            seconds = time.perf_counter() - began
            Path(folder, "step").mkdir()
            Path(folder, "step").rename(Path(folder, "renamed"))
            locks = _locks(file)
    except OSError as error:
        return "bad", f"{standing} cannot hold a run: {error}"
    told = f"{standing}: {free:,.1f} GiB free, 4 MiB synced in {1000 * seconds:.0f} ms, folders are renamed"
    if not locks:
        return "note", f"{told}; it has no locks: two runs in one folder would not see each other"
    return "ok", f"{told}, locks hold"


def _locks(file: Path) -> bool:
    try:
        import fcntl

        with file.open() as one, file.open() as two:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except (ImportError, OSError):
        pass
    return False
