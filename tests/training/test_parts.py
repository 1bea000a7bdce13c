"""How tensors are cut into the files of a checkpoint, and how processes that write a share each tell the first."""

import json
from threading import Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from flowimg.errors import CheckpointError
from flowimg.training import parts
from flowimg.training.checkpoint import Checkpoint, Keep, problem, read_checkpoint, weights_sha256, write_checkpoint
from flowimg.training.parts import accounts_of, kind_of, parts_of, prepare, sha256_of, write_share

ONE, TWO = {"weights": {"a": torch.ones(2)}}, {"weights-2": {"b": torch.zeros(3)}}
REST = {"ema": {"a": torch.ones(2)}, "optimizer": {}}
names = st.text("abcdefgh.0123456789", min_size=1, max_size=8)


@given(sizes=st.dictionaries(names, st.integers(0, 20), max_size=12), part=st.integers(1, 40), mix=st.randoms())
def test_names_and_sizes_decide_the_cut_and_nothing_else(sizes, part, mix):
    shuffled = list(sizes)
    mix.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", part)
        found = parts_of({"weights": sizes, "ema": {}})
        assert parts_of({"weights": {name: sizes[name] for name in shuffled}, "ema": {}}) == found
    assert [name for _, kind, held in found if kind == "weights" for name in held] == sorted(sizes)
    for file, kind, held in found:
        assert kind_of(f"{file}.safetensors") == kind
        assert sum(sizes[name] for name in held) <= part or len([name for name in held if sizes[name]]) == 1
    assert found[-1] == ("ema", "ema", [])  # a kind without tensors has a file
    assert len({file for file, _, _ in found}) == len(found)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("weights", "weights"), ("ema-12", "ema"), ("objective-x", "objective-x"), ("-2", "-2"), ("a-b-3", "a-b")],
)
def test_a_file_says_what_it_is_a_part_of(file, kind):
    assert kind_of(f"{file}.safetensors") == kind


def test_two_that_write_a_share_each_make_one_checkpoint(tmp_path):
    prepare(tmp_path, 3)
    other = Thread(target=write_share, args=(tmp_path, 3, TWO))
    other.start()
    path = write_checkpoint(tmp_path, 3, Checkpoint({**ONE, **REST}, {}), Keep(2), ["weights-2"])
    other.join()
    assert problem(path) is None and [file.name for file in tmp_path.glob(".*")] == []
    assert read_checkpoint(path).tensors["weights"].keys() == {"a", "b"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["weights-2.safetensors"]["sha256"] == sha256_of(path / "weights-2.safetensors")
    assert weights_sha256(path, "weights") not in (entry["sha256"] for entry in manifest.values())  # of both files


def test_what_another_process_could_not_write_is_told_and_the_checkpoint_fails(tmp_path, monkeypatch):
    prepare(tmp_path, 3)
    bad = {"weights-2": {"b": torch.tensor([1.0, float("nan")])}}
    with pytest.raises(CheckpointError, match="not finite in b"):
        write_share(tmp_path, 3, bad)
    with pytest.raises(OSError, match=r"another process did not write weights-2.safetensors: .* not finite in b"):
        write_checkpoint(tmp_path, 3, Checkpoint({**ONE, **REST}, {}), Keep(2), ["weights-2"])
    assert not list(tmp_path.glob("step_*"))
    prepare(tmp_path, 4)  # sweeps what is left of it
    assert [path.name for path in tmp_path.glob(".step*")] == [".step_00000004"]
    monkeypatch.setattr(parts, "WAIT", 0.0)
    with pytest.raises(OSError, match=r"another process has not written weights-2.safetensors 0 s after"):
        accounts_of(tmp_path, 4, {"weights-2.safetensors"})


def test_a_share_that_does_not_fit_the_disk_leaves_no_file_of_it(tmp_path, monkeypatch):
    def full(file, tensors):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    prepare(tmp_path, 3)
    monkeypatch.setattr(parts, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        write_share(tmp_path, 3, TWO)
    assert list(parts.unfinished(tmp_path, 3).iterdir()) == []
    with pytest.raises(OSError, match=r"did not write weights-2.safetensors: .*No space left"):
        accounts_of(tmp_path, 3, {"weights-2.safetensors"})


def test_what_a_share_holds_is_what_was_given(tmp_path):
    prepare(tmp_path, 1)
    write_share(tmp_path, 1, {"ema": {"x": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3.0)}})
    found = load_file(parts.unfinished(tmp_path, 1) / "ema.safetensors")
    assert torch.equal(found["x"], torch.arange(6.0).view(2, 3).T) and found["step"].item() == 3
