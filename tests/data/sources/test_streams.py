"""What can be streamed, and what is said of what cannot."""

import os
import tarfile
from types import SimpleNamespace

import datasets
import fsspec
import pytest
from shards_made import numbered, parquet, write_tar, write_tars

from flowimg.data.sources.streams import open_stream
from flowimg.errors import DataError


def opened(source, cache, **asked):
    usual = {"subset": None, "split": "train", "image_column": None, "label_column": None, "labels": True}
    return open_stream(str(source), cache, **{**usual, **asked})


def complaint(source, cache, **asked):
    with pytest.raises(DataError) as caught:
        opened(source, cache, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def hub(monkeypatch):
    """A dataset of the hub, whose files are elsewhere."""
    with fsspec.open("memory://hub/train-00000.parquet", "wb") as file:
        file.write(parquet(range(30), 10))
    files = {"train": ["memory://hub/train-00000.parquet"], "odd": ["memory://hub/a.csv"]}
    asked = []

    def builder(source, subset):
        asked.append((source, subset))
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return asked


def test_a_dataset_of_the_hub_is_its_parquet_files(hub, tmp_path):
    stream = opened("someone/pictures", tmp_path, subset="small")
    assert hub == [("someone/pictures", "small")]
    assert stream.counts.tolist() == [10, 10, 10] and "3 row groups of 1 parquet files" in stream.story
    shard = stream.open(1)
    assert [shard.picture(row).content for row in range(10)] == [numbered(number) for number in range(10, 20)]
    assert shard.labels.tolist() == [number % 5 for number in range(10, 20)]
    assert "row group 1 of memory://hub/train-00000.parquet" in shard.name(3)


def test_what_the_hub_has_in_other_forms_is_refused(hub, tmp_path):
    assert "holds neither tar shards nor parquet" in complaint("someone/pictures", tmp_path, split="odd")
    assert complaint("someone/pictures", tmp_path, split="none").endswith("data.split may be train, odd")


@pytest.mark.parametrize("source", ["someone/pictures", "zebra"])
def test_a_hub_that_cannot_be_reached_is_said_with_all_that_was_tried(source, tmp_path):
    said = complaint(source, tmp_path)
    assert "is unknown" in said and "hub" in said and "tar shards" in said


def test_a_folder_of_pictures_is_not_streamed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(numbered(1))
    assert "leave data.stream out" in complaint(tmp_path / "photos", tmp_path)


def test_tar_shards_with_and_without_labels(tmp_path):
    folder = write_tars(tmp_path / "shards", [4, 0, 6])
    stream = opened(folder, tmp_path)
    assert stream.counts.tolist() == [4, 6] and stream.classes == tuple("01234")  # an empty shard is none
    shard = stream.open(1)
    assert shard.labels.tolist() == [number % 5 for number in range(4, 10)]
    assert shard.name(2) == f"{folder}/part-0002.tar:000006.png"
    assert opened(folder, tmp_path, labels=False).classes == ()
    assert opened(folder, tmp_path, labels=False).open(0).labels is None


def test_classes_are_those_of_all_shards_in_order_of_value(tmp_path):
    for shard, start in enumerate((10, 2, 33)):
        write_tar(tmp_path / f"s/{shard}.tar", [start], label="cls")
    stream = opened(tmp_path / "s", tmp_path)
    assert stream.classes == ("0", "2", "3")
    assert [int(stream.open(shard).labels[0]) for shard in range(3)] == [0, 1, 2]


def test_a_label_that_was_asked_for_must_be_there(tmp_path):
    folder = write_tars(tmp_path / "shards", [4])
    assert "not every picture has a label txt" in complaint(folder, tmp_path, label_column="txt")
    assert opened(folder, tmp_path, label_column="cls").classes


def test_the_fingerprint_is_of_what_the_shards_hold_and_not_of_where(tmp_path):
    one, other = (
        opened(write_tars(tmp_path / name, counts), tmp_path) for name, counts in (("a", [4, 5]), ("b", [4, 5]))
    )
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != opened(write_tars(tmp_path / "c", [5, 4]), tmp_path).fingerprint


def test_split_is_told_by_names(tmp_path):
    write_tar(tmp_path / "s/train-0.tar", range(3))
    write_tar(tmp_path / "s/test-0.tar", range(3, 5))
    assert opened(tmp_path / "s", tmp_path).counts.tolist() == [3]
    assert opened(tmp_path / "s", tmp_path, split="test").counts.tolist() == [2]
    assert complaint(tmp_path / "s", tmp_path, split="val").endswith("data.split may be test, train")


def test_the_last_picture_of_a_shard_that_is_broken_off_is_left_out_as_it_is_where_it_is_decoded(tmp_path):
    file = write_tar(tmp_path / "s.tar", [10, 21, 32])
    with tarfile.open(file) as opened_file:
        os.truncate(file, opened_file.getmember("000032.cls").offset + 100)
    stream = opened(file, tmp_path / "cache")
    assert stream.counts.tolist() == [2] and stream.classes == ("0", "1") and "1 shards are broken off" in stream.story
    assert stream.open(0).labels.tolist()[:2] == [0, 1]


def test_a_folder_of_both_means_the_same_streamed_and_decoded(tmp_path):
    write_tar(tmp_path / "both/a.tar", range(5))
    (tmp_path / "both/train-0.parquet").write_bytes(parquet(range(30), 10))
    assert opened(tmp_path / "both", tmp_path / "cache").counts.sum() == 30


def test_files_at_an_address_are_of_the_split_that_their_names_tell(tmp_path):
    for name, count in (("train-0", 20), ("test-0", 5)):
        with fsspec.open(f"memory://named/{name}.parquet", "wb") as file:
            file.write(parquet(range(count), 10))
    assert opened("memory://named", tmp_path).counts.sum() == 20
    assert opened("memory://named", tmp_path, split="test").counts.sum() == 5


def test_footers_and_labels_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/train.parquet").write_bytes(parquet(range(30), 10))
    first = opened(tmp_path / "t", tmp_path / "cache")

    def never(*_):
        raise AssertionError

    monkeypatch.setattr("flowimg.data.sources.parquet._reader", never)
    again = opened(tmp_path / "t", tmp_path / "cache")
    assert again.counts.tolist() == first.counts.tolist() == [10, 10, 10] and again.classes == first.classes
