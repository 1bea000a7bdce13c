"""What a stranger's data hold besides what is read: nothing that looks meant is passed over in silence."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pictures_made import (
    complaint,
    content,
    dataset,
    decode,
    find,
    numbers,
    picture,
    plain,
    samples,
    save,
    table,
    tar,
    told,
)

from flowimg.data.cache import cache_folder
from flowimg.data.sources.streams import open_stream


def remarks(source, **asked):
    """What is said of unused things, in one text; the scan that is kept says the same."""
    said = find(source, **asked).unused
    assert find(source, **asked).unused == said
    return "\n".join(said)


# --- labels that are not read, or that mean none ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()], ids=str)
def test_whole_floats_are_labels_as_pandas_leaves_them_after_a_gap(tmp_path, kind):
    values = pa.array(np.array([2, 10, 2], kind.to_pandas_dtype()), kind)
    table(tmp_path / "train.parquet", image=plain(3), label=values)
    assert told(find(tmp_path)) == [(0, "2"), (1, "10"), (2, "2")]


@pytest.mark.parametrize(
    "values",
    [pa.array(["cat", "dog", "cat"], pa.string_view()), pa.array(["cat", "dog", "cat"]).dictionary_encode()],
    ids=["string_view", "categorical"],
)
def test_newer_texts_and_categories_of_pandas_are_labels(tmp_path, values):
    table(tmp_path / "train.parquet", image=plain(3), label=values)
    assert told(find(tmp_path)) == [(0, "cat"), (1, "dog"), (2, "cat")]


@pytest.mark.parametrize(
    "values", [[1.0, None, 0.0], [1.0, float("nan"), 0.0], ["a", "", "b"], ["3", "-1", "4"], [7, -1, 8]]
)
def test_a_gap_is_no_class_of_its_own(tmp_path, values):
    table(tmp_path / "train.parquet", image=plain(3), label=values)
    assert "row 1 has no label in column 'label'" in complaint(tmp_path)
    assert len(find(tmp_path, labels=False).rows) == 3


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("label", [[0, 1], [1, 0]], "the column label: List(Value('int64')) is no type of labels"),
        ("label", [0.5, 1.0], "the column label: 0.5 is no class"),
        ("class", [b"a", b"b"], "the column class: Value('binary') is no type of labels"),
        ("species", ["a", "b"], "the column species: data.label_column species would make it the classes"),
        ("Label", [0, 1], "the column Label: data.label_column Label would make it the classes"),
    ],
)
def test_columns_that_look_like_labels_and_are_not_read_are_named(tmp_path, column, values, said):
    table(tmp_path / "train.parquet", image=plain(2), **{column: values})
    assert decode(find(tmp_path)).labels is None
    assert remarks(tmp_path) == said
    assert remarks(tmp_path, labels=False) == ""  # they were not asked for
    assert "\n".join(open_stream(str(tmp_path), cache_folder()).unused) == said


def test_each_column_is_named_by_what_is_wrong_with_it(tmp_path):
    table(tmp_path / "train.parquet", image=plain(1), label=[0.5], Label=["a"], other=["b"])
    would = "the column Label and 1 more: data.label_column Label would make it the classes"
    assert remarks(tmp_path).splitlines() == ["the column label: 0.5 is no class", would]


def test_a_name_in_a_hint_is_quoted(tmp_path):
    table(tmp_path / "train.parquet", **{"image": plain(1), "two words": ["a"]})
    assert remarks(tmp_path).endswith("data.label_column 'two words' would make it the classes")


@pytest.mark.parametrize("label", ["-1", "", " -1\n"])
def test_no_label_is_no_class_in_shards_either(tmp_path, label):
    tar(tmp_path / "x.tar", samples(0, 3, ["4", label, "5"]))
    assert "not every picture has a label cls" in complaint(tmp_path / "x.tar")
    tar(tmp_path / "y.tar", samples(0, 3, [label] * 3))
    assert "not every picture has a label cls" in complaint(tmp_path / "y.tar")
    assert find(tmp_path / "y.tar", labels=False).classes == ()


@pytest.mark.parametrize(("value", "name"), [(3.0, "3"), (True, "True"), ("a b", "a b")])
def test_labels_in_json_are_what_they_are_in_tables(tmp_path, value, name):
    files = [
        file for n in range(2) for file in (*samples(n, n + 1), (f"{n:06d}.json", json.dumps({"kind": value}).encode()))
    ]
    tar(tmp_path / "x.tar", files)
    assert find(tmp_path / "x.tar", label_column="json.kind").classes == (name,)
    if value == 3.0:
        none = [*files[:3], (files[3][0], b'{"kind": -1}')]
        tar(tmp_path / "y.tar", none)
        assert "not every picture has a label json.kind" in complaint(tmp_path / "y.tar", label_column="json.kind")


@pytest.mark.parametrize(
    ("kinds", "would"), [(("json",), "json.KEY"), (("txt", "json"), "json.KEY"), (("class",), "class")]
)
def test_other_files_of_samples_are_named(tmp_path, kinds, would):
    files = [file for n in range(2) for file in (*samples(n, n + 1), *((f"{n:06d}.{kind}", b"{}") for kind in kinds))]
    tar(tmp_path / "x.tar", files)
    said = remarks(tmp_path / "x.tar")
    assert said.endswith(f"data.label_column {would} would make them the classes") and f".{min(kinds)}" in said
    assert open_stream(str(tmp_path / "x.tar"), cache_folder()).unused == (said,)
    assert remarks(tmp_path / "x.tar", labels=False) == ""


# --- pictures and folders ---------------------------------------------------------------------------------------------


def test_a_loose_picture_that_undoes_the_classes_is_named(tmp_path):
    for name in ("cat/a.png", "dog/b.png", "logo.png"):
        save(tmp_path / name, picture(1))
    assert find(tmp_path).classes == ()
    assert remarks(tmp_path) == "the folders cat, dog: move logo.png into one of them, and each is a class"


@pytest.mark.parametrize("outer", ["images", "train/images"])
def test_classes_that_lie_a_folder_deeper_are_named(tmp_path, outer):
    for name in ("cat/a.png", "dog/b.png"):
        save(tmp_path / outer / name, picture(1))
    said = remarks(tmp_path)
    assert said == f"the folders cat, dog: each is a class of data.source {tmp_path / outer}"
    assert find(tmp_path / outer).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("labels.csv", "labels.csv: a table of labels is read if it is called metadata.csv"),
        ("Metadata.csv", "Metadata.csv: a table of labels is read if it is called metadata.csv"),
        ("annotations.json", "annotations.json: a table of labels"),
        ("more.zip", "more.zip: unpack it"),
        ("scan.mat", "scan.mat: arrays and scans are not read"),
        ("sub/arrays.NPZ", "sub/arrays.NPZ: arrays are read if data.source names their file"),
        ("sub/film.MP4", "sub/film.MP4: videos are not read"),
        ("labels.txt", "labels.txt: a table of labels is read if it is called metadata.csv"),
        ("sub/a.txt", "sub/a.txt: a table of labels"),
        ("voc.xml", "voc.xml: a table of labels"),
        ("set.tfrecord", "set.tfrecord: sets of this form are not read: save them as parquet or tar shards"),
        ("b.jpe", "b.jpe: pictures of this form are not read: save them as PNG"),
        ("c.odd", "c.odd: files called .odd are not read"),
        ("classes", "classes: files without an ending are not read"),
    ],
)
def test_files_that_are_meant_and_not_read_are_named(tmp_path, name, said):
    save(tmp_path / "sub/a.png", picture(1))
    (tmp_path / name).write_bytes(b"x")
    assert remarks(tmp_path).startswith(said)


@pytest.mark.parametrize("name", ["README.md", "readme.txt", "LICENSE", "Thumbs.db", ".DS_Store", "MD5SUMS", "get.py"])
def test_what_lies_in_any_folder_is_not_named(tmp_path, name):
    save(tmp_path / "a.png", picture(1))
    (tmp_path / name).write_bytes(b"x")
    assert remarks(tmp_path) == ""


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "photos.7z"])
def test_a_folder_that_holds_only_an_archive_gets_a_hint(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert complaint(tmp_path).endswith(f"no tar shards; {name}: unpack it")


def test_empty_folders_are_named(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        save(tmp_path / name, picture(1))
    (tmp_path / "owl").mkdir()
    assert remarks(tmp_path) == "owl: empty"
    (tmp_path / "ant").mkdir()
    assert remarks(tmp_path) == "ant and 1 more: empty"


TABLES = "tables and tar shards beside other data are read if data.source names them, or a folder of their own"
PICTURES = "pictures beside tables or tar shards are read if they have a folder of their own"
ARRAYS = "arrays are read if data.source names their file"
NO_ENDING = "files without an ending are not read"
METADATA = "metadata are read beside pictures only, not beside tables or tar shards"


@pytest.mark.parametrize(
    ("names", "count", "said"),
    [
        (["data/0.parquet", "0.tar", "see/a.png", "see/metadata.csv"], 1, [f"0.tar and 1 more: {TABLES}"]),
        (["0.parquet", "metadata.csv", "2.tar"], 2, [f"metadata.csv: {METADATA}", f"2.tar: {TABLES}"]),
        (["0.parquet", "a.png", "b.png", "c"], 2, [f"a.png and 1 more: {PICTURES}", f"c: {NO_ENDING}"]),
        (["0.PARQUET", "1.tar", "README.md"], 2, [f"1.tar: {TABLES}"]),
        (["0.TAR", "metadata.jsonl", "a.png.zip"], 2, [f"metadata.jsonl: {METADATA}", "a.png.zip: unpack it"]),
        (["0.tar", "a.png"], 2, [f"a.png: {PICTURES}"]),
        (["0.tar", "a.npy", "b.npz"], 2, [f"a.npy: {PICTURES}", f"b.npz: {ARRAYS}"]),
    ],
)  # fmt: skip
def test_whatever_lies_beside_the_kind_of_source_that_is_read_is_named(tmp_path, names, count, said):
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        if name.lower().endswith(".parquet"):
            dataset("ab", [0, 1]).to_parquet(file)
        elif name.lower().endswith(".tar"):
            tar(file, samples(0, 2))
        elif name.endswith(".png"):
            save(file, picture(1))
        else:
            file.write_text("file_name,label\na.png,x\n")
    assert len(find(tmp_path).rows) == count and remarks(tmp_path).splitlines() == said
    if "see/a.png" not in names:
        assert list(open_stream(str(tmp_path), cache_folder()).unused) == said


def test_whatever_lies_beside_what_datasets_saved_or_a_card_names_is_named(tmp_path):
    dataset("ab", [0, 1]).save_to_disk(tmp_path / "saved")
    card = "---\nconfigs:\n- config_name: default\n  data_files: a.parquet\n---\n"
    dataset("ab", [0, 1]).to_parquet(tmp_path / "card/a.parquet")
    (tmp_path / "card/README.md").write_text(card)
    for name in ("saved", "card"):
        assert remarks(tmp_path / name) == ""
        (tmp_path / name / "more.zip").touch()
        assert remarks(tmp_path / name) == "more.zip: unpack it"
    assert open_stream(str(tmp_path / "card"), cache_folder()).unused == ("more.zip: unpack it",)


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "test"), [("Training", "Testing"), ("TRAIN", "TEST"), ("training", "Val")])
def test_folders_called_as_splits_are_are_splits_however_they_are_written(tmp_path, train, test):
    for number, name in enumerate(
        (f"{train}/ring/a.png", f"{train}/spot/a.png", f"{test}/ring/a.png", f"{test}/spot/a.png")
    ):
        save(tmp_path / name, picture(number))
    assert told(find(tmp_path)) == [(0, "ring"), (1, "spot")]
    assert told(find(tmp_path, split="validation" if test == "Val" else "test")) == [(2, "ring"), (3, "spot")]
    assert f"data.split may be {', '.join(sorted((train, test)))}" in complaint(tmp_path, split="extra")


def test_all_folders_and_files_that_mean_the_split_are_taken(tmp_path):
    for number, name in enumerate(("train/a.png", "Training/b.png", "test/c.png")):
        save(tmp_path / "folders" / name, picture(number))
    assert sorted(numbers(decode(find(tmp_path / "folders")))) == [0, 1]
    (tmp_path / "files").mkdir()
    for number, name in enumerate(("train-0", "training-extra", "test-0")):
        dataset("ab", [0, 1], start=2 * number).to_parquet(tmp_path / f"files/{name}.parquet")
    assert sorted(numbers(decode(find(tmp_path / "files")))) == [0, 1, 2, 3]
    assert open_stream(str(tmp_path / "files"), cache_folder()).counts.sum() == 4


def test_a_folder_called_as_a_split_beside_others_is_named(tmp_path):
    for name in ("Training/a.png", "extra/c.png"):
        save(tmp_path / name, picture(1))
    assert find(tmp_path).classes == ("Training", "extra")
    assert remarks(tmp_path) == "Training: read as a class, not as a split, because the folder extra is none"


def test_splits_that_another_folder_makes_classes_are_named(tmp_path):
    for name in ("train/a.png", "test/b.png", "extra/c.png"):
        save(tmp_path / name, picture(1))
    assert find(tmp_path).classes == ("extra", "test", "train")
    assert remarks(tmp_path) == "test, train: read as classes, not as splits, because the folder extra is none"


@pytest.mark.parametrize("names", [("part-0", "part-1", "extra-train"), ("a", "validation-of-b"), ("x/0", "x/test")])
def test_tables_of_which_not_all_name_a_split_are_all_train(tmp_path, names):
    for number, name in enumerate(names):
        dataset("ab", [0, 1], start=2 * number).to_parquet(tmp_path / f"{name}.parquet")
    assert sorted(numbers(decode(find(tmp_path)))) == list(range(2 * len(names)))
    stream = open_stream(str(tmp_path), cache_folder())
    assert stream.counts.sum() == 2 * len(names)
    said = remarks(tmp_path)
    assert stream.unused == tuple(said.splitlines())
    if names[-1] == "extra-train":
        assert said == ""
    else:
        assert "counts as train like all files, because" in said and "names no split" in said


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_tables_in_folders_of_splits_follow_the_folders(tmp_path, ending):
    for number, name in enumerate(("Training/test-1", "Testing/train-1")):
        rows = dataset("ab", [0, 1], start=2 * number)
        (tmp_path / name).parent.mkdir()
        if ending == "parquet":
            rows.to_parquet(tmp_path / f"{name}.parquet")
        else:
            rows.save_to_disk(tmp_path / "saved")
            next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / f"{name}.arrow")
            for file in (tmp_path / "saved").iterdir():
                file.unlink()
            (tmp_path / "saved").rmdir()
    assert numbers(decode(find(tmp_path))) == [0, 1]
    assert numbers(decode(find(tmp_path, split="test"))) == [2, 3]


def test_a_card_decides_what_it_declares(tmp_path):
    for number, name in enumerate("ab"):
        dataset("xy", [0, 1], start=2 * number).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: b.parquet\n---\n"
    )
    assert numbers(decode(find(tmp_path))) == [2, 3]
    (tmp_path / "README.md").write_text("# my tables\n\nconfigs: none\n")
    assert numbers(decode(find(tmp_path))) == [0, 1, 2, 3]
    assert "has no subset 'x'" in complaint(tmp_path, subset="x")


def test_a_card_that_names_no_files_decides_nothing(tmp_path):
    for number, name in enumerate(("data", "my-test")):  # the second of which datasets takes for another split
        dataset("xy", [0, 1], start=2 * number).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features: []\nconfigs:\n- config_name: x\n---\n\n- data_files: x\n"
    )
    assert numbers(decode(find(tmp_path))) == [0, 1, 2, 3]
    assert open_stream(str(tmp_path), cache_folder()).counts.sum() == 4


# --- columns of pictures ----------------------------------------------------------------------------------------------


def test_the_only_column_of_bytes_is_taken_and_several_are_asked_about(tmp_path):
    cells = [content(picture(n)) for n in range(2)]
    table(tmp_path / "a/train.parquet", jpg=pa.array(cells, pa.binary()), label=[0, 1])
    assert told(find(tmp_path / "a")) == [(0, "0"), (1, "1")]
    table(tmp_path / "b/train.parquet", jpg=pa.array(cells, pa.binary()), mask=pa.array(cells, pa.large_binary()))
    assert "2 columns of pictures, jpg, mask: name one by data.image_column" in complaint(tmp_path / "b")
    table(tmp_path / "c/train.parquet", image=plain(2), thumbnail=pa.array(cells, pa.binary()))
    assert find(tmp_path / "c").story.count("column image") == 1


@pytest.mark.parametrize("named", [None, "image"])
def test_a_struct_of_bytes_alone_is_a_picture(tmp_path, named):
    cells = pa.array([{"bytes": content(picture(n))} for n in range(2)], pa.struct([("bytes", pa.binary())]))
    table(tmp_path / "train.parquet", image=cells, label=[0, 1])
    assert told(find(tmp_path, image_column=named)) == [(0, "0"), (1, "1")]


# --- classes without pictures -----------------------------------------------------------------------------------------


def test_classes_that_are_declared_and_have_no_rows_are_known_to_a_stream(tmp_path):
    dataset(["cat", "dog", "wild"], [2, 0, 2]).to_parquet(tmp_path / "train.parquet")
    stream = open_stream(str(tmp_path), cache_folder())
    assert stream.classes == ("cat", "dog", "wild") and stream.absent == (1,)
    assert stream.open(0).labels.tolist() == [2, 0, 2]
    dataset("ab", [0, 1]).cast_column("label", datasets.Value("float32")).to_parquet(tmp_path / "train.parquet")
    floats = open_stream(str(tmp_path), cache_folder())
    assert floats.classes == ("0", "1") and floats.absent == () and floats.open(0).labels.tolist() == [0, 1]


def test_a_shard_remembers_few_endings(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as opened:
        for n in range(300):
            member = tarfile.TarInfo(f"a.{n}x")
            opened.addfile(member, io.BytesIO())
    assert "holds no pictures" in complaint(tmp_path / "x.tar")
