import json

import pytest
import torch

from flowimg.training import checkpoint
from flowimg.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    newest_whole,
    problem,
    read_checkpoint,
    step_folders,
    write_checkpoint,
)


def some(value=1.0):
    weights = {"a.b": torch.full((3, 2), value)}
    tensors = {"weights": weights, "ema": weights, "optimizer": {"step.a": torch.tensor(4.0)}}
    return Checkpoint(tensors, {"shape": [1, 8, 8]})


def test_what_is_written_is_read_back(tmp_path):
    path = write_checkpoint(tmp_path, 20, some(), keep=3)
    assert path == tmp_path / "step_00000020"
    back = read_checkpoint(path)
    assert back.state == {"format": checkpoint.FORMAT, "step": 20, "shape": [1, 8, 8]}
    assert set(back.tensors) == {"weights", "ema", "optimizer"}
    assert torch.equal(back.tensors["weights"]["a.b"], torch.full((3, 2), 1.0))
    assert set(read_checkpoint(path, ("weights",)).tensors) == {"weights"}


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 10, 11):
        write_checkpoint(tmp_path, step, some(step), keep=2)
    assert [path.name for path in step_folders(tmp_path)] == ["step_00000010", "step_00000011"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000010", "step_00000011"]


def test_the_one_just_written_stays_whatever_lies_beside_it(tmp_path):
    # broken checkpoints of a future that a continued run has left
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step, some(), keep=3)
    assert write_checkpoint(tmp_path, 7, some(), keep=3).is_dir()
    assert [path.name for path in step_folders(tmp_path)] == ["step_00000005", "step_00000007"]


def test_a_manifest_that_leaves_files_out_is_no_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), keep=2)
    (path / "manifest.json").write_text("{}")
    assert "does not name ema.safetensors" in problem(path)


def test_manifest_holds_size_and_sha256_of_every_other_file(tmp_path):
    import hashlib

    path = write_checkpoint(tmp_path, 1, some(), keep=2)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {p.name for p in path.iterdir()} - {"manifest.json"}
    for name, entry in manifest.items():
        content = (path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, lambda file: file.unlink()], ids=["truncated", "flipped", "gone"])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, name):
    write_checkpoint(tmp_path, 1, some(1), keep=3)
    newest = write_checkpoint(tmp_path, 2, some(2), keep=3)
    damage(newest / name)
    path, passed = newest_whole(tmp_path)
    assert path == tmp_path / "step_00000001"
    assert len(passed) == 1 and "step_00000002" in passed[0] and (name in passed[0] or name == "manifest.json")
    with pytest.raises(CheckpointError, match=str(newest)):
        read_checkpoint(newest)


def test_a_write_cut_short_leaves_the_old_ones_and_no_new_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, some(1), keep=2)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_json", full)
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(tmp_path, 2, some(2), keep=2)
    assert newest_whole(tmp_path) == (tmp_path / "step_00000001", [])
    write_checkpoint(tmp_path, 2, some(2), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_a_format_of_the_future_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        path = write_checkpoint(tmp_path, 1, some(), keep=2)
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(path)


def test_no_pickle_is_ever_opened(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), keep=2)
    for file in path.glob("*.safetensors"):
        torch.save({"a": torch.ones(1)}, file)
    manifest = {
        f.name: {"bytes": f.stat().st_size, "sha256": checkpoint._sha256(f)}
        for f in path.iterdir()
        if f.name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"(?i)header"):  # safetensors refuses what is not safetensors
        read_checkpoint(path)


def test_no_checkpoint_at_all(tmp_path):
    assert newest_whole(tmp_path / "nothing") == (None, [])
