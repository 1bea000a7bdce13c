"""Two network namespaces joined by a throttled link, in place of two machines. Needs root, `ip` and `tc` of Linux.

Not for users: sharding.py --rates runs a process in each of them.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

NAMES = ("flowimg0", "flowimg1")
"""The namespaces, and the interface in each of them."""
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TICKS = 250
"""A bucket holds what the link lets through in a 250th of a second: the kernel refills it at least as often."""

Throttle = Callable[[float | None], None]
"""Set the rate of the link in Mbit/s each way; None for no limit."""


def possible() -> str | None:
    """Why there can be no namespaces, or None."""
    if lacking := [tool for tool in ("ip", "tc") if not shutil.which(tool)]:
        return f"there is no {lacking[0]} (package iproute2)"
    return None if os.geteuid() == 0 else "only root may make network namespaces"


def inside(machine: int) -> list[str]:
    """The words before a command that runs in one of the namespaces."""
    return ["ip", "netns", "exec", NAMES[machine]]


@contextmanager
def two_machines() -> Iterator[Throttle]:
    """Make the namespaces and the link; remove them at the end."""
    with suppress(subprocess.CalledProcessError):  # left over by a run that was killed
        _remove()
    try:
        for name in NAMES:
            _run("ip", "netns", "add", name)
        pair = ("name", NAMES[0], "netns", NAMES[0], "type", "veth", "peer", "name", NAMES[1], "netns", NAMES[1])
        _run("ip", "link", "add", *pair)
        for machine, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
            _run(*inside(machine), "ip", "address", "add", f"{address}/24", "dev", name)
            for device in ("lo", name):
                _run(*inside(machine), "ip", "link", "set", device, "up")
        yield _throttle
    finally:
        _remove()


def _throttle(rate: float | None) -> None:
    for machine, name in enumerate(NAMES):
        with suppress(subprocess.CalledProcessError):  # none was set
            _run(*inside(machine), "tc", "qdisc", "del", "dev", name, "root")
        if rate is not None:
            burst = max(2**15, round(rate * 1e6 / 8 / TICKS))
            limits = ("rate", f"{rate:g}mbit", "burst", str(burst), "latency", "50ms")
            _run(*inside(machine), "tc", "qdisc", "add", "dev", name, "root", "tbf", *limits)


def _remove() -> None:
    for name in NAMES:
        _run("ip", "netns", "del", name)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
