"""Averages kept aside: whole files or none, weighed as asked, and nothing read that is not ours."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowimg.errors import CheckpointError
from flowimg.training import parts
from flowimg.training.snapshots import drop_later, kept_steps, snapshot_file, weigh, write_snapshot

SHAPES = {"a.weight": torch.Size([3, 2]), "a.bias": torch.Size([3])}


def averages(seed):
    generator = torch.Generator().manual_seed(seed)
    names = [f"{length}/{name}" for length in ("0.05", "0.1") for name in SHAPES]
    return {name: torch.randn(SHAPES[name.split("/")[1]], generator=generator) for name in names}


@pytest.fixture
def folder(tmp_path):
    for step in (5, 20, 100_000_000):
        write_snapshot(tmp_path / "snapshots", step, averages(step))
    return tmp_path / "snapshots"


def test_they_are_found_in_order_and_hold_what_was_written(folder):
    (folder / "step_00000007.safetensors.bak").write_text("x")
    (folder / "step_last.safetensors").write_text("x")
    (folder / "step_00000000.safetensors").write_text("x")
    assert kept_steps(folder) == [5, 20, 100_000_000] and kept_steps(folder / "none") == []
    held = load_file(snapshot_file(folder, 20))
    assert held.keys() == averages(20).keys() and all(torch.equal(held[n], v) for n, v in averages(20).items())


def test_a_sum_is_weighed_in_float64(folder):
    parts = [(5, "0.05", 1e9), (5, "0.1", -0.25), (20, "0.05", 3.0), (5, "0.05", 1 - 1e9), (20, "0.1", 1e-12)]
    made = weigh(folder, parts, SHAPES)
    five, twenty = averages(5), averages(20)
    for name in SHAPES:
        truth = five[f"0.05/{name}"].double() - five[f"0.1/{name}"].double() / 4 + 3 * twenty[f"0.05/{name}"].double()
        torch.testing.assert_close(made[name].double(), truth, rtol=1e-6, atol=2e-7)
        assert made[name].dtype == torch.float32


def test_a_future_that_is_left_is_dropped(folder):
    drop_later(folder, 20)
    assert kept_steps(folder) == [5, 20]
    drop_later(folder, 4)
    assert kept_steps(folder) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_what_cannot_be_written_leaves_all_as_it_was(folder, monkeypatch, error):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise error

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(parts, "save_file", full)
    with pytest.raises(OSError, match=r"(?i)no space"):
        write_snapshot(folder, 20, averages(3))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_killed_process_left_is_cleared_away(folder):
    (folder / ".step_00000030.safetensors.123.tmp").write_bytes(b"half")
    write_snapshot(folder, 30, averages(30))
    assert kept_steps(folder) == [5, 20, 30, 100_000_000] and not list(folder.glob(".*"))


def test_a_file_that_is_missing_cut_another_or_a_link_is_told(folder):
    file = snapshot_file(folder, 20)
    whole = file.read_bytes()

    def refused(match):
        with pytest.raises(CheckpointError, match=match):
            weigh(folder, [(5, "0.05", 0.5), (20, "0.1", 0.5)], SHAPES)

    file.write_bytes(whole[:-3])
    refused("step_00000020.safetensors cannot be read as averages")
    file.write_bytes(b"\x80\x04\x95 a pickle")
    refused("cannot be read as averages")
    for wrong, match in (
        ({**averages(20), "0.1/more": torch.ones(1)}, r"does not hold the network of its settings: 0\.1/more"),
        ({name: value for name, value in averages(20).items() if name != "0.1/a.bias"}, r"0\.1/a\.bias"),
        ({**averages(20), "0.1/a.bias": torch.ones(4)}, r"0\.1/a\.bias of shape \[4\], not \[3\]"),
        ({**averages(20), "0.1/a.bias": torch.tensor([0.0, float("nan"), 0.0])}, r"not finite in a\.bias"),
    ):
        save_file(wrong, file)
        refused(match)
    file.unlink()
    refused("missing, or a link")
    (folder / "elsewhere").write_bytes(whole)
    file.symlink_to(folder / "elsewhere")
    refused("missing, or a link")
