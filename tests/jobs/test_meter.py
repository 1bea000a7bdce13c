"""Counted operations against those worked out by hand; speeds and memory for their order of magnitude."""

import json

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


def test_a_product_is_as_fast_as_a_machine_of_this_century_is(monkeypatch):
    monkeypatch.setattr(throughput, "SIZES", {"cpu": 256})
    assert 1e8 < throughput.product_flops(CPU, torch.float32) < 1e14


def test_memory_is_that_of_the_process():
    before = throughput.peak_memory(CPU)
    assert 50 < before < 1e5
    torch.ones(2**26)  # 256 MiB, and gone again
    assert throughput.peak_memory(CPU) >= before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_pictures_says_what_it_makes_of_its_machine(tmp_path, precision, capsys):
    train = {"steps": 4, "log_every": 2, "precision": precision}
    main(["train", str(write_settings(tmp_path / "c.yaml", train=train)), "--run", str(tmp_path / "r")])
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [0 < line["utilisation"] < 1.5 for line in lines if "loss" in line] == [True, True]
    assert "% of peak)" in capsys.readouterr().out
