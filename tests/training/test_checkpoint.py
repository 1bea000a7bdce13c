import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from flowimg.errors import CheckpointError
from flowimg.training import checkpoint, parts
from flowimg.training.checkpoint import (
    Checkpoint,
    Keep,
    leave_behind,
    newest_whole,
    problem,
    read_checkpoint,
    read_state,
    step_folder,
    step_folders,
    write_checkpoint,
)


def some(value=1.0):
    weights = {"a.b": torch.full((3, 2), value)}
    tensors = {"weights": weights, "ema": weights, "optimizer": {"step.a": torch.tensor(4.0)}}
    return Checkpoint(tensors, {"shape": [1, 8, 8]})


def test_what_is_written_is_read_back(tmp_path):
    path = write_checkpoint(tmp_path, 20, some(), keep=Keep(3))
    assert path == tmp_path / "step_00000020"
    back = read_checkpoint(path)
    assert {"format": checkpoint.FORMAT, "step": 20, "shape": [1, 8, 8]}.items() <= back.state.items()
    assert set(back.tensors) == {"weights", "ema", "optimizer"}
    assert torch.equal(back.tensors["weights"]["a.b"], torch.full((3, 2), 1.0))
    assert set(read_checkpoint(path, ("weights",)).tensors) == {"weights"}


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 10, 11):
        write_checkpoint(tmp_path, step, some(step), keep=Keep(2))
    assert [path.name for path in step_folders(tmp_path)] == ["step_00000010", "step_00000011"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000010", "step_00000011"]
    assert (tmp_path / "latest").read_text() == "step_00000011\n"


def test_the_one_just_written_stays_whatever_lies_beside_it(tmp_path):
    # broken checkpoints of a future that a continued run has left
    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step, some(), Keep(3))
    for step in (10, 15):
        truncate(step_folder(tmp_path, step) / "ema.safetensors")
    assert write_checkpoint(tmp_path, 7, some(), Keep(3)).is_dir()
    assert [path.name for path in step_folders(tmp_path)] == ["step_00000005", "step_00000007"]


@given(
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(sorted),
    last=st.integers(2, 5),
    every=st.none() | st.integers(1, 20),
    scores=st.none() | st.lists(st.none() | st.floats(0, 9), min_size=12, max_size=12),
    broken=st.sets(st.integers(0, 10), max_size=5),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_stays_is_the_last_those_at_kept_steps_and_the_best(tmp_path_factory, steps, last, every, scores, broken):
    folder = tmp_path_factory.mktemp("rotation")
    for number, step in enumerate(steps[:-1]):  # all are there, and then one more is written
        scored = some()._replace(state={"metrics": {"loss": scores[number]} if scores else {}})
        write_checkpoint(folder, step, scored, Keep(99))
        if number in broken:
            truncate(step_folder(folder, step) / "weights.safetensors")
    scored = some()._replace(state={"metrics": {"loss": scores[len(steps) - 1]} if scores else {}})
    write_checkpoint(folder, steps[-1], scored, Keep(last, every, "loss" if scores else None))
    there = [int(path.name[5:]) for path in step_folders(folder)]
    whole = [step for number, step in enumerate(steps[:-1]) if number not in broken] + [steps[-1]]
    expected = set(whole[-last:])
    if every:
        expected |= {step for step in whole if step % every == 0}
    if scores:
        known = [(scores[steps.index(step)], step) for step in whole if scores[steps.index(step)] is not None]
        expected |= {min(known)[1]} if known else set()
    assert set(there) == expected
    assert len(there) >= min(2, len(whole))  # never one alone, if there were more that are whole


def test_a_future_that_is_left_is_moved_not_dropped(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, some(step), Keep(9))
    assert [path.name for path in leave_behind(tmp_path, 1)] == ["step_00000002", "step_00000003"]
    write_checkpoint(tmp_path, 2, some(), Keep(9))
    assert [path.name for path in leave_behind(tmp_path, 1)] == ["step_00000002.1"]
    assert problem(tmp_path / "left" / "step_00000002") is None
    assert [path.name for path in step_folders(tmp_path)] == ["step_00000001"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weights", "ema", "optimizer"])
def test_nothing_that_is_not_finite_comes_to_disk(tmp_path, bad, name):
    write_checkpoint(tmp_path, 1, some(), Keep(2))
    tensors = {**some().tensors, name: {"a.b": torch.tensor([1.0, bad])}}
    with pytest.raises(CheckpointError, match=f"{name}.safetensors would hold"):
        write_checkpoint(tmp_path, 2, Checkpoint(tensors, {}), Keep(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000001"]


def rewrite(path, name, content):
    """Another file, with a manifest that agrees to it: what a stranger sends is whole by its own account."""
    (path / name).write_bytes(content)
    files = [f for f in path.iterdir() if f.name != "manifest.json"]
    (path / "manifest.json").write_text(json.dumps({f.name: parts.account_of(f) for f in files}))


def test_a_header_that_claims_2_to_the_60_bytes_is_refused(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), Keep(2))
    claims = json.dumps({"a": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}).encode()
    for content in (struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", len(claims)) + claims + b"\0" * 64):
        rewrite(path, "weights.safetensors", content)
        with pytest.raises(CheckpointError, match="not valid safetensors"):
            read_checkpoint(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_a_manifest_that_names_what_is_outside_is_refused(tmp_path, name):
    (tmp_path / "outside").write_text("precious")
    path = write_checkpoint(tmp_path / "checkpoints", 1, some(), Keep(2))
    manifest = json.loads((path / "manifest.json").read_text())
    entry = {"bytes": 8, "sha256": hashlib.sha256(b"precious").hexdigest()}
    (path / "manifest.json").write_text(json.dumps({**manifest, name: entry}))
    assert "no file of this folder" in problem(path)


def test_a_link_is_no_file_of_a_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path / "checkpoints", 1, some(), Keep(2))
    weights = path / "weights.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert "weights.safetensors is a link" in problem(path)


def test_a_state_longer_than_any_of_ours_is_not_read(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), Keep(2))
    with (path / "manifest.json").open("r+b") as file:
        file.truncate(2**40)  # a hole: no disk, but 1 TiB of memory for who reads it
    assert "not a manifest" in problem(path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [None, "", "no json", "[]", "{}", '{"format": 2}', "\xff"])
def test_what_is_no_state_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "state.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"state\.json is not the state of a run"):
        read_state(tmp_path)


def test_a_folder_renamed_to_another_step_is_refused(tmp_path):
    write_checkpoint(tmp_path, 1, some(), Keep(2)).rename(tmp_path / "step_00000009")
    with pytest.raises(CheckpointError, match="says that it is of step 1"):
        read_checkpoint(tmp_path / "step_00000009")


@pytest.mark.parametrize("form", [1, checkpoint.FORMAT])
def test_every_format_there_was_is_read(form):
    """Each fixture was written by the version that had the format; this one must know all of them."""
    back = read_checkpoint(Path(__file__).parent / "checkpoints" / f"format_{form}" / "step_00000020")
    expected = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(back.tensors["weights"]["a.b"], expected)
    assert torch.equal(back.tensors["ema"]["a.b"], expected + 1)
    assert torch.equal(back.tensors["optimizer"]["exp_avg_sq.a.b"], expected * 3)
    assert back.state["shape"] == [2] and back.state["step"] == 20 and back.state["skipped"] == (0 if form == 1 else 3)


def test_a_manifest_that_leaves_files_out_is_no_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), keep=Keep(2))
    (path / "manifest.json").write_text("{}")
    assert "does not name ema.safetensors" in problem(path)


def test_manifest_holds_size_and_sha256_of_every_other_file(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), keep=Keep(2))
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
    write_checkpoint(tmp_path, 1, some(1), keep=Keep(3))
    newest = write_checkpoint(tmp_path, 2, some(2), keep=Keep(3))
    damage(newest / name)
    path, passed = newest_whole(tmp_path)
    assert path == tmp_path / "step_00000001"
    assert len(passed) == 1 and "step_00000002" in passed[0] and (name in passed[0] or name == "manifest.json")
    with pytest.raises(CheckpointError, match=str(newest)):
        read_checkpoint(newest)


def test_a_write_cut_short_leaves_the_old_ones_and_no_new_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, some(1), keep=Keep(2))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_json", full)
        with pytest.raises(OSError, match="No space"):
            write_checkpoint(tmp_path, 2, some(2), keep=Keep(2))
    assert newest_whole(tmp_path) == (tmp_path / "step_00000001", [])
    write_checkpoint(tmp_path, 2, some(2), keep=Keep(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000001", "step_00000002"]


def test_a_full_disk_is_an_os_error_whoever_meets_it(tmp_path, monkeypatch):
    def full(tensors, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(parts, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, some(), keep=Keep(3))
    assert not list(tmp_path.iterdir())


def test_a_format_of_the_future_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        path = write_checkpoint(tmp_path, 1, some(), keep=Keep(2))
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(path)


def test_no_pickle_is_ever_opened(tmp_path):
    path = write_checkpoint(tmp_path, 1, some(), keep=Keep(2))
    for file in path.glob("*.safetensors"):
        torch.save({"a": torch.ones(1)}, file)
    rewrite(path, "ema.safetensors", (path / "ema.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not valid safetensors"):
        read_checkpoint(path)


def test_no_checkpoint_at_all(tmp_path):
    assert newest_whole(tmp_path / "nothing") == (None, [])
