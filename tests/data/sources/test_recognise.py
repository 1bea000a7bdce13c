import os

import datasets
import pytest
from pictures_made import complaint, dataset, decode, find, numbers, picture, samples, save, tar, told


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "../nowhere"])
def test_a_path_that_does_not_exist(source):
    assert complaint(source) == f"data.source {source} does not exist: there is no such file or folder"


@pytest.mark.parametrize("source", ["someone/pictures", "zebra"])
def test_a_dataset_of_the_hub_without_network(source, capsys):
    said = complaint(source)
    assert said.startswith(f"data.source {source} is unknown: tried were a set known by name (digits, letters, CIFAR10")
    assert f"a file or folder of this name in {os.getcwd()}, tar shards, and the hub, which cannot be reached" in said
    assert "network" in said and "local copy" in said and "did you mean" not in said
    assert f"looking for {source} on the Hugging Face hub" in capsys.readouterr().err


def test_a_dataset_that_the_hub_does_not_have(monkeypatch):
    def load(source, subset):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{source}' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = complaint("someone/pictures")
    assert "data.source someone/pictures is unknown: tried were" in said
    assert "and no such dataset on the hub" in said and "log in" in said
    assert "did you mean 'digits'?" in complaint("digts")


def test_whatever_a_reader_raises_is_one_line(monkeypatch):
    def load(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert complaint("someone/pictures") == "data.source someone/pictures cannot be read: first line"


def test_a_file_of_another_kind(tmp_path):
    save(tmp_path / "a.png", picture(0))
    assert "neither parquet, arrow, npy, npz nor tar: name such a file or a folder" in complaint(tmp_path / "a.png")


@pytest.fixture
def everything(tmp_path, monkeypatch):
    """One source of each kind in this folder."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "folder/a.png", picture(1))
    rows = dataset("ab", [0, 1])
    rows.to_parquet(tmp_path / "tables/train.parquet")
    rows.save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "one.arrow")
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "one.parquet")
    save(tmp_path / "told/a.png", picture(1))
    save(tmp_path / "told/b.png", picture(2))
    (tmp_path / "told/metadata.csv").write_text("file_name,label\na.png,x\nb.png,y\n")
    tar(tmp_path / "one.tar", samples(0, 2))
    tar(tmp_path / "shards/0.tar", samples(0, 2))
    tar(tmp_path / "shards/1.tar", samples(2, 4))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "kind", "count"),
    [
        ("digits", "the set digits", 1797),
        ("folder", "a folder of pictures", 1),
        ("tables", "a folder of tables", 2),
        ("saved", "a folder saved by datasets", 2),
        ("told", "a folder of pictures with metadata", 2),
        ("one.parquet", "a parquet file", 2),
        ("one.arrow", "an arrow file", 2),
        ("one.tar", "1 tar shard", 2),
        ("shards", "2 tar shards", 4),
        ("shards/{0..1}.tar", "2 tar shards", 4),
    ],
)
def test_every_kind_of_source_is_named_in_the_story(everything, source, kind, count):
    for name in (source, f"./{source}", str(everything / source)):
        if source != "digits" or name == source:
            found = find(name, labels=False)
            assert found.story.startswith(f"{kind}: {count:,} pictures of train")
            assert len(found.rows) == count and found.where == f"data.source {name}"


def test_a_table_beside_pictures_says_what_they_are(everything):
    assert told(find("told")) == [(1, "x"), (2, "y")]


@pytest.mark.parametrize("name", ["digits", "CIFAR10"])
def test_a_name_that_is_known_comes_before_a_folder_and_a_path_means_the_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / name / "a.png", picture(7))
    assert numbers(decode(find(f"./{name}"))) == [7]
    if name == "digits":
        assert len(find(name).rows) == 1797
    else:
        assert "is a set of torchvision" in complaint(name)


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert complaint(tmp_path / "pipe").endswith("is neither a regular file nor a folder")


@pytest.mark.parametrize("source", ["https://some.where/a.parquet", "s3://bucket/folder", "hf://datasets/a/b"])
def test_an_address_is_said_to_be_streamed(source):
    assert (
        complaint(source)
        == f"data.source {source} is an address: a run can stream parquet from there, with data.stream true"
    )


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    def refusing(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refusing)
    assert complaint(tmp_path) == f"data.source {tmp_path} cannot be read: Permission denied"
