"""What a job does to the machine it runs on."""

import json
import subprocess
import sys

import pytest
from tiny import write_settings

from flowimg.cli import main
from flowimg.config import Config, Invert, Likelihood, load
from flowimg.jobs import machine

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


@pytest.mark.parametrize(
    ("fast", "kind", "asked", "found"),
    [
        (True, "unet", "auto", "bf16"), (False, "unet", "auto", "fp32"), (True, "mlp", "auto", "fp32"),
        (True, "unet", "fp32", "fp32"), (False, "unet", "bf16", "bf16"),
    ],
)  # fmt: skip
def test_arithmetic_is_that_of_the_device_unless_it_is_named(monkeypatch, fast, kind, asked, found):
    monkeypatch.setattr(machine, "fast_in_bf16", lambda device: fast)
    assert (
        machine.settle_precision(
            asked, Config(data={"kind": "points" if kind == "mlp" else "images"}, field={"kind": kind})
        )
        == found
    )


def test_a_run_keeps_its_arithmetic_on_another_machine(tmp_path, monkeypatch, capsys):
    run, settings = tmp_path / "run", write_settings(tmp_path / "a.yaml", train={"precision": "auto"})
    for fast, steps in ((True, "1"), (False, "2")):
        monkeypatch.setattr(machine, "fast_in_bf16", lambda device, fast=fast: fast)
        main(["train", str(settings), "--run", str(run), "--train.steps", steps])
        assert load(str(run / "config.yaml")).train.precision == "bf16"
        said = capsys.readouterr().out
        assert ", bf16" in next(line for line in said.splitlines() if line.startswith("machine"))
        assert "differ" not in said


def test_drawing_is_in_bf16_where_that_is_fast_and_what_is_followed_back_is_not(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "fast_in_bf16", lambda device: True)
    main(["sample", str(tiny.plain), "--count", "2", "--num-steps", "1", "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["precision"] == "bf16"
    assert Likelihood(run="x").precision == Invert(run="x").precision == "fp32"
