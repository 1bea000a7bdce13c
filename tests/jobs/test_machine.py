"""What a job does to the machine it runs on."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from flowimg.jobs.machine import keep_memory
{call}
def step():
    for _ in range(8):
        torch.empty(2**22).fill_(1.0)  # 16 MiB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_memory_that_is_freed_is_used_again():
    """Mapped anew, 8 times 16 MiB are 32,768 pages of 4 KiB to fault in (fewer where pages are larger)."""

    def faults(call, env=None):
        code = FAULTS.format(call=call)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    usual = faults("", {"MALLOC_MMAP_THRESHOLD_": "100000"})
    if usual < 50:
        pytest.skip("this C library keeps memory of its own accord")
    assert faults("keep_memory()") < usual / 5
    # who has set it knows better
    assert faults("keep_memory()", {"MALLOC_MMAP_THRESHOLD_": "100000"}) > usual / 2
