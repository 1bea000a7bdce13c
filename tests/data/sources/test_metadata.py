"""Folders with metadata: every row and every picture is used, or named."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures_made import complaint, decode, find, numbers, picture, save, told


def write(folder, rows, kind="csv"):
    """A metadata table of these rows, as dictionaries."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"metadata.{kind}"
    if kind == "csv":
        cells = [list(rows[0]), *(row.values() for row in rows)]
        file.write_text("".join(",".join(map(str, row)) + "\n" for row in cells))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.fixture
def photos(tmp_path):
    """Pictures whose names datasets takes for splits."""
    names = ["shot-1.png", "test-0.png", "train-2.png", "val.png"]
    for number, name in enumerate(names):
        save(tmp_path / name, picture(number))
    return tmp_path, [{"file_name": name, "label": "cat" if n % 2 else "dog"} for n, name in enumerate(names)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_names_of_files_are_no_splits(photos, kind):
    folder, rows = photos
    write(folder, rows[::-1], kind)
    found = find(folder)
    assert told(found) == [(0, "dog"), (1, "cat"), (2, "dog"), (3, "cat")] and found.unused == ()
    assert found.story.startswith("a folder of pictures with metadata: 4 pictures of train (by metadata)")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "Testing")])
def test_folders_are_splits_with_metadata_each_or_above(tmp_path, kind, train, test):
    for number, split in enumerate((train, test)):
        save(tmp_path / split / "test.png", picture(number))
        write(tmp_path / split, [{"file_name": "test.png", "label": "ab"[number]}], kind)
    assert told(find(tmp_path)) == [(0, "a")]
    assert told(find(tmp_path, split="test")) == [(1, "b")]
    for split in (train, test):
        (tmp_path / split / f"metadata.{kind}").unlink()
    write(
        tmp_path,
        [{"file_name": f"{train}/test.png", "label": "a"}, {"file_name": f"{test}/test.png", "label": "b"}],
        kind,
    )
    assert told(find(tmp_path)) == [(0, "a")]


def test_metadata_further_down_are_applied(tmp_path):
    for number, name in enumerate(("deep/a.png", "deep/er/b.png")):
        save(tmp_path / name, picture(number))
    write(tmp_path / "deep", [{"file_name": "a.png", "label": "x"}, {"file_name": "er/b.png", "label": "y"}])
    assert told(find(tmp_path)) == [(0, "x"), (1, "y")]


def test_pictures_that_no_row_lists_are_named_and_rows_without_a_picture_are_bad(photos):
    folder, rows = photos
    write(folder, [*rows[:2], {"file_name": "gone.png", "label": "cat"}])
    found = find(folder, max_bad=0.5)
    assert told(found, max_bad=0.5) == [(0, "dog"), (1, "cat")]
    assert found.unused == ("train-2.png and 1 more: not in metadata.csv: pictures that it does not list are not used",)
    assert [(name.rpartition("/")[2], why) for name, why in found.bad] == [("gone.png", "no such picture")]
    assert "no such picture" in complaint(folder)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a cat"}, "the column text: data.label_column text would make it the classes"),
        (
            {"split": "test", "label": "a"},
            "the column split: all rows are train; folders called train and test are splits",
        ),
        ({"Label": "a"}, "the column Label: data.label_column Label would make it the classes"),
    ],
)
def test_columns_that_are_not_used_are_named(tmp_path, row, said):
    save(tmp_path / "a.png", picture(0))
    write(tmp_path, [{"file_name": "a.png"} | row])
    assert find(tmp_path).unused == (said,)


def test_folders_that_are_no_classes_beside_metadata_are_named(tmp_path):
    for number, name in enumerate(("cat/a.png", "dog/b.png")):
        save(tmp_path / name, picture(number))
    write(tmp_path, [{"file_name": "cat/a.png"}, {"file_name": "dog/b.png"}])
    assert find(tmp_path).unused == ("the folders cat, dog: beside metadata, a column label makes the classes",)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["10", "9", "9", "10"], ("9", "10")), (["none", "null", "NA", "no"], ("NA", "no", "none", "null"))],
)
def test_classes_of_csv_are_called_as_written(photos, labels, classes):
    folder, rows = photos
    write(folder, [row | {"label": label} for row, label in zip(rows, labels, strict=True)])
    assert find(folder).classes == classes
    assert [name for _, name in told(find(folder))] == labels


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_row_without_a_label_is_named_by_its_picture(photos, kind):
    folder, rows = photos
    write(folder, [*rows[:3], {"file_name": "val.png", "label": "" if kind == "csv" else None}], kind)
    assert "val.png has no label in column 'label'" in complaint(folder)
    assert numbers(decode(find(folder, labels=False))) == [0, 1, 2, 3]


def test_a_picture_that_is_listed_again_counts_once_with_one_label(photos):
    folder, rows = photos
    write(folder, [*rows, rows[0]])
    assert len(find(folder).rows) == 4
    write(folder, [*rows, rows[0] | {"label": "cat"}])
    assert "its metadata list shot-1.png twice, with different labels" in complaint(folder)


def test_pictures_of_several_columns(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        save(tmp_path / name, picture(number))
    write(tmp_path, [{"file_name": "a.png", "mask_file_name": "b.png", "label": "x"}])
    for column, number in ((None, 0), ("image", 0), ("file_name", 0), ("mask", 1), ("mask_file_name", 1)):
        assert told(find(tmp_path, image_column=column)) == [(number, "x")]
    assert "has no column masks_file_name" in complaint(tmp_path, image_column="masks")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("csv", "name,label\na.png,x\n", "names no pictures: it has no column file_name, its columns are name, label"),
        ("csv", "file_name,label\na.png\n", "row 1 has 1 cells, and the header 2"),
        ("csv", "file_name;label\na.png;x\n", "its columns are file_name;label"),
        ("jsonl", '{"file_name": "a.png"\n', "cannot be read as a table"),
        ("parquet", "PAR1", "cannot be read as a table"),
        ("csv", "", "cannot be read as a table"),
    ],
)
def test_metadata_that_cannot_be_read_are_one_sentence(tmp_path, kind, text, said):
    save(tmp_path / "a.png", picture(0))
    (tmp_path / f"metadata.{kind}").write_text(text)
    assert said in complaint(tmp_path)


def test_two_tables_for_one_folder_are_refused(photos):
    folder, rows = photos
    write(folder, rows)
    write(folder, rows, "jsonl")
    assert "has 2 metadata tables in one folder: keep one of them" in complaint(folder)


def test_names_of_classes_that_parquet_declares_are_kept(photos):
    folder, rows = photos
    features = datasets.Features(file_name=datasets.Value("string"), label=datasets.ClassLabel(names=["x", "y", "z"]))
    columns = {"file_name": [row["file_name"] for row in rows], "label": [2, 0, 2, 0]}
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / "metadata.parquet")
    assert find(folder).classes == ("x", "y", "z") and told(find(folder))[0] == (0, "z")


def test_a_table_that_changed_is_read_again(photos):
    folder, rows = photos
    write(folder, rows)
    assert find(folder).classes == ("cat", "dog")
    write(folder, [row | {"label": "bird"} for row in rows])
    assert find(folder).classes == ("bird",)


def test_columns_are_those_of_all_rows(photos):
    folder, rows = photos
    first = {"file_name": rows[0]["file_name"]}
    write(folder, [first, *rows[1:]], "jsonl")
    assert "shot-1.png has no label in column 'label'" in complaint(folder)
    write(folder, [first | {"label": "owl"}, *rows[1:3], {"label": "owl", "file_name": "val.png", "more": 1}], "jsonl")
    assert told(find(folder)) == [(0, "owl"), (1, "cat"), (2, "dog"), (3, "owl")]


def test_a_picture_that_is_listed_again_has_one_label_in_the_column_that_is_used(photos):
    folder, rows = photos
    rows = [row | {"species": "felis"} for row in rows]
    write(folder, [*rows, rows[0] | {"species": "canis"}])
    assert "shot-1.png twice, with different labels" in complaint(folder, label_column="species")
    assert len(find(folder).rows) == 4  # labels are those of another column
    write(folder, [*rows, rows[0] | {"label": "owl"}])
    assert find(folder, label_column="species").classes == ("felis",)
    assert len(find(folder, labels=False).rows) == 4


def test_a_column_of_a_type_that_is_not_read_is_no_label(photos):
    folder, rows = photos
    kind = pa.map_(pa.string(), pa.string())
    for column, classes, said in (
        ("more", ("cat", "dog"), []),
        ("label", (), ["the column label: map<string, string"]),
    ):
        cells = {"file_name": [row["file_name"] for row in rows], "label": [row["label"] for row in rows]}
        cells[column] = pa.array([[("a", "b")]] * 4, kind)
        pq.write_table(pa.table(cells), folder / "metadata.parquet")
        found = find(folder)
        assert found.classes == classes and [line.split(" (")[0] for line in found.unused] == said


def test_a_name_of_two_lines_is_said_in_one(tmp_path):
    save(tmp_path / "two\nlines.png", picture(0))
    save(tmp_path / "b.png", picture(1))
    write(tmp_path, [{"file_name": "two\nlines.png"}, {"file_name": "b.png", "label": "x"}], "jsonl")
    assert r"two\nlines.png has no label" in complaint(tmp_path)
    rows = [{"file_name": "two\nlines.png", "label": label} for label in "ab"]
    write(tmp_path, rows, "jsonl")
    assert r"two\nlines.png twice" in complaint(tmp_path)
