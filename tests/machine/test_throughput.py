"""Counted operations against those worked out by hand; speeds by a clock that is ours; memory for its magnitude."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny import write_settings
from torch import nn

from flowimg.cli import main
from flowimg.machine import throughput

CPU = torch.device("cpu")


class Known(nn.Module):
    """A convolution of 3 x 3 from 2 to 5 channels and a linear layer, on pictures of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(8, 7)

    def forward(self, x, t, cond=None):
        return self.last(self.conv(x))


def test_operations_are_those_of_three_forward_passes():
    forward = 2 * (3 * 3 * 2 * 5 * 64 + 5 * 8 * 8 * 7)
    assert throughput.pass_flops(Known(), (2, 8, 8)) == 3 * forward


def test_a_product_is_as_fast_as_the_best_of_a_few_without_the_first(monkeypatch):
    ticks = iter([0, 1, 10, 15, 20, 22, 30, 34, 40, 43, 50, 56])  # they take 1 (to warm up), 5, 2, 4, 3 and 6 seconds
    monkeypatch.setattr(throughput, "SIZES", {"cpu": 256})
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert throughput.product_flops(CPU, torch.float32) == 2 * 256**3 / 2
    assert next(ticks, None) is None


def test_memory_is_that_of_the_process():
    before = throughput.peak_memory(CPU)
    assert 50 < before < 1e5
    torch.ones(2**26)  # 256 MiB, and gone again
    assert throughput.peak_memory(CPU) >= before


def test_a_run_on_a_cpu_has_no_share_of_peak(tmp_path, monkeypatch, capsys):
    """The same run reported 55 %, 92 % and 116 %: what others left was compared with what they left another time."""
    monkeypatch.setattr(throughput, "product_flops", lambda device, dtype: 1.0)  # of which any run is more than 100 %
    main(["train", str(write_settings(tmp_path / "c.yaml", train={"steps": 1})), "--run", str(tmp_path / "r")])
    assert "utilisation" not in (tmp_path / "r" / "metrics.jsonl").read_text()
    out = capsys.readouterr().out
    assert " samples/s" in out and "peak" not in out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_pictures_says_what_it_makes_of_its_machine(tmp_path, precision, monkeypatch, capsys):
    """As on a GPU."""
    passes, count = [], throughput.pass_flops
    monkeypatch.setattr("flowimg.jobs.train.metrics.NO_PEAK", set())

    def counted(*args):
        passes.append(count(*args))
        return passes[-1]

    peaks = {torch.float32: 2.0**40, torch.bfloat16: 2.0**41}
    monkeypatch.setattr(throughput, "pass_flops", counted)
    monkeypatch.setattr(throughput, "product_flops", lambda device, dtype: peaks[dtype])
    train = {"steps": 4, "log_every": 2, "precision": precision}
    main(["train", str(write_settings(tmp_path / "c.yaml", train=train)), "--run", str(tmp_path / "r")])
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    peak = peaks[torch.float32 if precision == "fp32" else torch.bfloat16] / passes[0]  # in samples a second
    told = [(line["utilisation"], line["samples_per_second"] / peak) for line in lines if "loss" in line]
    assert len(told) == 2 and all(found == pytest.approx(wanted, rel=1e-6) for found, wanted in told)
    assert "% of peak)" in capsys.readouterr().out
