"""What a job does to the machine it runs on."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import write_settings

from flowimg.build.field import blocks_of
from flowimg.cli import main
from flowimg.fields.cpu import norm
from flowimg.jobs import doctor
from flowimg.jobs.train.launch import slow_precision
from flowimg.machine.precision import autocast, fast_in_bf16, settle_precision
from flowimg.settings.reading import load
from flowimg.settings.run import Config
from flowimg.settings.verbs import Invert, Likelihood

FAULTS = """
import resource, torch
from flowimg.machine.device import keep_memory
{call}
def step():
    for _ in range(8):
        torch.empty(2**22).fill_(1.0)  # 16 MiB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
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
    monkeypatch.setattr("flowimg.machine.precision.fast_in_bf16", lambda device: fast)
    config = Config(data={"kind": "points" if kind == "mlp" else "images"}, field={"kind": kind})
    assert settle_precision(asked, config.field.fast_in_bf16) == found


@pytest.mark.parametrize(
    ("precision", "fast", "slow"),
    [("bf16", False, True), ("bf16", True, False), ("fp32", False, False), ("fp32", True, False)],
)
def test_bf16_is_doubted_where_it_is_slow(monkeypatch, precision, fast, slow):
    monkeypatch.setattr("flowimg.jobs.train.launch.fast_in_bf16", lambda device: fast)
    said = slow_precision(Config(field={"kind": "unet"}, train={"precision": precision}, data={"kind": "images"}))
    assert len(said) == slow and all("--train.precision auto" in line for line in said)


@pytest.mark.parametrize(
    ("kind", "precision", "device", "compiler", "found"),
    [
        ("unet", "bf16", "cpu", True, "C"), ("unet", "bf16", "cpu", False, "torch"),
        ("unet", "fp32", "cpu", True, None),
        ("unet", "bf16", "cuda", True, None), ("mlp", "bf16", "cpu", True, None),
    ],
)  # fmt: skip
def test_blocks_are_in_c_on_a_cpu_in_bf16_where_there_is_a_compiler(
    monkeypatch, kind, precision, device, compiler, found
):
    monkeypatch.setattr(norm, "_library", SimpleNamespace(functions=lambda: compiler or None))
    data, train = {"kind": "points" if kind == "mlp" else "images"}, {"precision": precision}
    config = Config(data=data, field={"kind": kind}, train=train)
    assert blocks_of(config, torch.device(device)) == found


@pytest.mark.parametrize(("compiler", "told"), [(True, "bf16, blocks in C\n"), (False, "bf16, blocks not in C, which")])
def test_what_the_blocks_are_is_told_and_kept(tmp_path, monkeypatch, capsys, compiler, told):
    if not compiler:
        monkeypatch.setattr(norm, "_library", SimpleNamespace(functions=lambda: None))
    elif norm.library().functions() is None:
        pytest.skip("no C compiler here")
    settings = write_settings(tmp_path / "a.yaml", train={"precision": "bf16"})
    main(["train", str(settings), "--run", str(tmp_path / "run"), "--train.steps", "1"])
    assert told in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["blocks"] == ("C" if compiler else "torch")


@pytest.mark.parametrize(
    ("flags", "times", "compiler", "verdict", "told"),
    [
        (True, 3.0, True, "ok", "auto takes bf16 for U-Nets, whose blocks are in C"),
        (True, 3.0, False, "note", "a C compiler (cc) would make them faster"),
        (True, 0.5, True, "note", "auto takes bf16 for U-Nets, the slower one here"),
        (False, 0.5, True, "ok", "auto takes fp32 for U-Nets"),
    ],
)
def test_the_doctor_says_what_auto_takes_and_what_it_is_worth(monkeypatch, flags, times, compiler, verdict, told):
    monkeypatch.setattr(doctor, "fast_in_bf16", lambda device: flags)
    monkeypatch.setattr(doctor, "product_flops", lambda device, form: times if form == torch.bfloat16 else 1.0)
    monkeypatch.setattr(norm, "_library", SimpleNamespace(functions=lambda: compiler or None))
    found, sentence = doctor._precision()
    assert found == verdict and told in sentence


@pytest.mark.parametrize(
    ("flags", "fast"), [("fpu amx_bf16", True), ("fpu avx512_bf16", True), ("fpu avx512f", False), (None, False)]
)
def test_a_cpu_is_fast_in_bf16_if_its_flags_say_so(monkeypatch, flags, fast):
    def read(self, **how):
        if flags is None:
            raise FileNotFoundError(self)
        return f"flags : {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert fast_in_bf16(torch.device("cpu")) == fast


@pytest.fixture
def tf32():
    """torch's two flags, back to what they were at the end."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    yield flags
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def test_fp32_is_not_tf32_neither_trained_nor_drawn(tf32, tmp_path):
    matmul, cudnn = tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    with autocast(torch.device("cpu"), "bf16"):
        assert matmul.allow_tf32 and cudnn.allow_tf32
    settings = write_settings(tmp_path / "a.yaml", train={"precision": "fp32"})
    main(["train", str(settings), "--run", str(tmp_path / "run"), "--train.steps", "1"])
    assert not matmul.allow_tf32 and not cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    with autocast(torch.device("cpu"), "fp32"):
        assert not matmul.allow_tf32 and not cudnn.allow_tf32


def test_a_run_keeps_its_arithmetic_on_another_machine(tmp_path, monkeypatch, capsys):
    run, settings = tmp_path / "run", write_settings(tmp_path / "a.yaml", train={"precision": "auto"})
    for fast, steps in ((True, "1"), (False, "2")):
        monkeypatch.setattr("flowimg.machine.precision.fast_in_bf16", lambda device, fast=fast: fast)
        main(["train", str(settings), "--run", str(run), "--train.steps", steps])
        assert load(str(run / "config.yaml")).train.precision == "bf16"
        said = capsys.readouterr().out
        assert ", bf16" in next(line for line in said.splitlines() if line.startswith("machine"))
        assert "differ" not in said


def test_drawing_is_in_bf16_where_that_is_fast_and_what_is_followed_back_is_not(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("flowimg.machine.precision.fast_in_bf16", lambda device: True)
    main(["sample", str(tiny.plain), "--count", "2", "--num-steps", "1", "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["precision"] == "bf16"
    assert Likelihood(run="x").precision == Invert(run="x").precision == "fp32"
