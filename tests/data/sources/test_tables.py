import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures_made import (
    SHARED,
    complaint,
    content,
    dataset,
    decode,
    find,
    numbers,
    picture,
    plain,
    save,
    stored,
    table,
    told,
)

ANIMALS = ("cat", "dog", "wild")


@pytest.fixture
def cifar(tmp_path):
    """As uoft-cs/cifar10 has it: columns img and label, files of two splits."""
    names = ("airplane", "automobile", "bird")
    dataset(names, [2, 0, 1, 2, 0], "img").to_parquet(tmp_path / "cifar/train-00000-of-00001.parquet")
    dataset(names, [1, 0], "img", start=100).to_parquet(tmp_path / "cifar/test-00000-of-00001.parquet")
    return tmp_path / "cifar"


def test_parquet_of_two_splits(cifar):
    found = find(cifar)
    assert found.shape == (3, 6, 6)
    expected = [(0, "bird"), (1, "airplane"), (2, "automobile"), (3, "bird"), (4, "airplane")]
    assert told(found) == expected
    assert told(find(cifar, split="test")) == [(100, "automobile"), (101, "airplane")]


def test_the_story_says_what_was_found(cifar):
    story = find(cifar, first=2).story
    for fact in ("2 of 5 pictures of train", "column img", "6 x 6", "RGB", "3 classes", "column label"):
        assert fact in story
    assert "labels not used" in find(cifar, labels=False).story


def test_several_files_are_one_split(tmp_path):
    dataset("ab", [0, 1]).to_parquet(tmp_path / "data/train-00000-of-00002.parquet")
    dataset("ab", [1, 1], start=2).to_parquet(tmp_path / "data/train-00001-of-00002.parquet")
    assert told(find(tmp_path)) == [(0, "a"), (1, "b"), (2, "b"), (3, "b")]


def test_a_single_parquet_file(cifar):
    assert told(find(cifar / "test-00000-of-00001.parquet")) == [(100, "automobile"), (101, "airplane")]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["cat", "dog", "cat"]),
        pa.array(["cat", "dog", "cat"], pa.large_string()),
        pa.array([30, 100, 30]),
        pa.array([0, 7, 0], pa.uint8()),
        pa.array([0, 7, 0], pa.uint16()),
        pa.array([False, True, False]),
    ],
    ids=lambda values: str(values.type),
)
@pytest.mark.parametrize("named", [False, True])
def test_parquet_that_others_wrote_with_labels_of_any_type(tmp_path, values, named):
    table(tmp_path / "train.parquet", image=plain(3), label=values)
    names = [str(value) for value in values.to_pylist()]
    found = find(tmp_path, label_column="label" if named else None)
    assert told(found) == list(enumerate(names))
    assert found.classes == (names[0], names[1])  # in order of value: 30 comes before 100


@pytest.mark.parametrize("values", [[[0], [1, 2]], [0.5, 0.25], [{"a": 1}, {"a": 2}]])
def test_a_column_called_label_that_holds_none_is_left_alone(tmp_path, values):
    table(tmp_path / "train.parquet", image=plain(2), label=values)
    assert decode(find(tmp_path)).labels is None
    said = complaint(tmp_path, label_column="label")
    assert "'label' (data.label_column) holds no labels" in said or "'label' holds 0.5, which is no class" in said


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_a_column_of_bytes_is_taken_where_it_is_named(tmp_path, kind):
    table(tmp_path / "train.parquet", jpg=pa.array([content(picture(n)) for n in range(3)], kind), cls=[5, 6, 5])
    found = find(tmp_path, image_column="jpg", label_column="cls")
    assert told(found) == [(0, "5"), (1, "6"), (2, "5")]


def test_columns_are_taken_by_name_where_there_are_several(tmp_path):
    numbered = [{"bytes": content(picture(n + 50)), "path": None} for n in range(2)]
    table(tmp_path / "train.parquet", image=plain(2), mask=numbered, label=[0, 1], fine=["x", "y"])
    assert told(find(tmp_path, image_column="mask", label_column="fine")) == [(50, "x"), (51, "y")]
    assert told(find(tmp_path, image_column="image")) == [(0, "0"), (1, "1")]


def test_more_pictures_than_are_read_at_a_time_stay_in_order(tmp_path):
    rows = [{"bytes": content(picture(n % 251, (2, 2))), "path": None} for n in range(700)]
    table(tmp_path / "train.parquet", image=rows, label=[n % 251 for n in range(700)])
    found = find(tmp_path)
    assert [str(number) for number, _ in told(found)] == [name for _, name in told(found)]
    assert [number for number, _ in told(found)] == [n % 251 for n in range(700)]


def test_saved_to_disk(tmp_path):
    dataset(ANIMALS, [1, 2]).save_to_disk(tmp_path / "one")
    assert told(find(tmp_path / "one")) == [(0, "dog"), (1, "wild")]
    splits = {"train": dataset(ANIMALS, [2]), "validation": dataset(ANIMALS, [0, 1], start=10)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert told(find(tmp_path / "two")) == [(0, "wild")]
    assert told(find(tmp_path / "two", split="validation")) == [(10, "cat"), (11, "dog")]
    file = next((tmp_path / "one").glob("*.arrow"))
    assert told(find(file)) == [(0, "dog"), (1, "wild")]


def test_a_subset_is_taken_by_name(tmp_path):
    dataset("ab", [0]).to_parquet(tmp_path / "a/train.parquet")
    dataset("ab", [1], start=9).to_parquet(tmp_path / "b/train.parquet")
    parts = [f"- config_name: {name}\n  data_files: {name[0]}/train.parquet\n" for name in ("apples", "bears")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(parts)}---\n")
    assert told(find(tmp_path, subset="bears")) == [(9, "b")]
    said = complaint(tmp_path)
    assert "data.subset" in said and "apples" in said and "bears" in said
    said = complaint(tmp_path, subset="beers")
    assert "beers" in said and "apples" in said and "bears" in said


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    assert f"data.source {tmp_path / 'train.parquet'} cannot be read" in complaint(tmp_path / "train.parquet")
    assert f"data.source {tmp_path} cannot be read" in complaint(tmp_path)


def test_a_split_that_is_not_there(cifar):
    said = complaint(cifar, split="validation")
    assert "no split 'validation'" in said and said.endswith("data.split may be test, train")


def test_no_column_of_pictures(tmp_path):
    table(tmp_path / "train.parquet", text=["a"], number=[1])
    assert complaint(tmp_path).endswith("no column of pictures: its columns are text, number")


def test_two_columns_of_pictures(tmp_path):
    table(tmp_path / "train.parquet", image=plain(1), mask=plain(1))
    said = complaint(tmp_path)
    assert "2 columns of pictures, image, mask" in said and "data.image_column" in said


@pytest.mark.parametrize("which", ["image_column", "label_column"])
def test_a_column_that_is_not_there(cifar, which):
    said = complaint(cifar, **{which: "picture"})
    assert f"no column 'picture' (data.{which}): its columns are img, label" in said


def test_a_column_that_holds_no_pictures(cifar):
    assert "'label' (data.image_column) holds no pictures; img would" in complaint(cifar, image_column="label")


def test_a_column_that_holds_no_labels(cifar):
    assert "'img' (data.label_column) holds no labels" in complaint(cifar, label_column="img")


def test_two_columns_of_labels(tmp_path):
    classes = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(img=datasets.Image(), fine=classes, coarse=classes)
    rows = datasets.Dataset.from_dict({"img": [picture(0)], "fine": [1], "coarse": [0]}, features)
    rows.to_parquet(tmp_path / "train.parquet")
    said = complaint(tmp_path)
    assert "2 columns of labels, fine, coarse" in said and "data.label_column" in said
    assert told(find(tmp_path, label_column="coarse")) == [(0, "a")]
    assert decode(find(tmp_path, labels=False)).labels is None  # then it does not matter


@pytest.mark.parametrize("labels", [[0, None, 1], [0, -1, 1], ["a", None, "b"]])
def test_a_row_without_a_label(tmp_path, labels):
    kind = datasets.Value("string") if "a" in labels else datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(image=datasets.Image(), label=kind)
    columns = {"image": [picture(n) for n in range(3)], "label": labels}
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "train.parquet")
    said = complaint(tmp_path)
    assert "row 1 has no label in column 'label'" in said and "data.labels false" in said
    for column in (None, "label"):
        assert numbers(decode(find(tmp_path, labels=False, label_column=column))) == [0, 1, 2]


def test_a_row_without_a_picture(tmp_path):
    features = datasets.Features(image=datasets.Image())
    rows = datasets.Dataset.from_dict({"image": [picture(0), None]}, features)
    rows.to_parquet(tmp_path / "a/train.parquet")
    table(tmp_path / "b/train.parquet", image=[*plain(1), {"bytes": None, "path": None}])
    for folder in "ab":
        assert "1 of 2 pictures cannot be used" in complaint(tmp_path / folder)
        assert "allows: picture 1 (the row is empty); " in complaint(tmp_path / folder)


def test_a_picture_that_a_table_only_points_to_is_named(tmp_path):
    table(tmp_path / "train.parquet", image=[{"bytes": None, "path": "gone/a.png"}])
    assert "gone/a.png (no such file or directory)" in complaint(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "fashion_mnist").is_dir(), reason="needs ../shared/data/fashion_mnist")
def test_fashion_mnist():
    source = str(SHARED / "fashion_mnist")
    found = find(source)
    assert len(found.rows) == 60_000 and found.shape == (1, 28, 28) and len(found.classes) == 10
    assert np.bincount(found.labels).tolist() == [6000] * 10
    test = find(source, split="test")
    assert np.bincount(test.labels).tolist() == [1000] * 10 and test.classes == found.classes
    images = decode(find(source, first=50, shape=(32, 32)), "keep", (0, 0, 0))
    assert images.pixels.shape == (50, 1, 32, 32) and images.pixels.max() == 255
    assert images.pixels[:, :, :2].max() == images.pixels[..., -2:].max() == 0


def points_to(folder, *files):
    """A table whose cells hold the paths of pictures."""
    return table(folder / "train.parquet", image=[{"bytes": None, "path": str(file)} for file in files])


def test_pictures_that_a_table_points_to_are_read_where_they_lie(tmp_path):
    for number in range(3):
        save(tmp_path / f"shots/{number}.png", picture(number))
    points_to(tmp_path / "t", *(tmp_path / f"shots/{number}.png" for number in (2, 0, 1)))
    found = find(tmp_path / "t")
    assert numbers(decode(found)) == [2, 0, 1]
    for gone in range(3):
        (tmp_path / f"shots/{gone}.png").unlink()
    assert numbers(decode(found)) == [2, 0, 1]  # they were decoded before


def test_a_picture_that_a_table_points_to_and_that_changed_is_looked_at_anew(tmp_path):
    save(tmp_path / "a.png", picture(1))
    points_to(tmp_path / "t", tmp_path / "a.png")
    assert numbers(decode(find(tmp_path / "t"))) == [1]
    save(tmp_path / "a.png", picture(2))
    assert numbers(decode(find(tmp_path / "t"))) == [2]


def test_bad_pictures_of_a_table_are_left_out_and_the_labels_of_others_are_right(tmp_path):
    rows = plain(6)
    rows[0] = {"bytes": b"junk", "path": "shots/0.png"}
    rows[3] = {"bytes": rows[3]["bytes"][:50], "path": None}
    rows[5] = {"bytes": None, "path": None}
    table(tmp_path / "train.parquet", image=rows, label=[5, 6, 5, 6, 5, 6])
    found = find(tmp_path, max_bad=0.9)
    made = stored(found, max_bad=0.9)
    assert numbers(made.images) == [1, 2, 4] and made.images.labels.tolist() == [1, 0, 0]
    assert [name for name, _ in (*found.bad, *made.bad)] == ["picture 0 (shots/0.png)", "picture 5", "picture 3"]


def test_rows_of_classes_are_read_one_by_one_where_they_do_not_follow_each_other(tmp_path):
    dataset("ab", [0, 1, 0, 0, 1, 1, 0]).to_parquet(tmp_path / "train.parquet")
    assert told(find(tmp_path, classes=["b"])) == [(1, "b"), (4, "b"), (5, "b")]


def test_the_users_tables_are_not_touched(tmp_path):
    dataset("ab", [0, 1]).to_parquet(tmp_path / "t/train.parquet")
    dataset("ab", [0, 1]).save_to_disk(tmp_path / "s")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    for name in "ts":
        decode(find(tmp_path / name))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == files
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before


def test_rows_that_hold_their_picture_are_looked_at_anew_beside_rows_that_point(tmp_path):
    save(tmp_path / "a.png", picture(1))

    def write(*, size):
        cells = [{"bytes": content(picture(7, size)), "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}]
        table(tmp_path / "t/train.parquet", image=cells)

    write(size=(6, 6))
    assert numbers(decode(find(tmp_path / "t"))) == [7, 1]
    save(tmp_path / "a.png", picture(1, (9, 9)))
    write(size=(9, 9))
    assert find(tmp_path / "t").shape == (3, 9, 9)


def test_a_label_that_is_of_no_class_is_said(tmp_path):
    dataset("ab", [0, 1]).cast_column("label", datasets.Value("int64")).to_parquet(tmp_path / "x.parquet")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    rows = pq.read_table(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").unlink()
    told = rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features.to_dict()}})})
    (tmp_path / "t").mkdir()
    pq.write_table(told, tmp_path / "t/train.parquet")
    assert "has the label 1, but names for only 1 classes" in complaint(tmp_path / "t")


def test_a_path_that_is_none_is_bad(tmp_path):
    table(tmp_path / "t/train.parquet", image=[*plain(1), {"bytes": None, "path": "a\0b.png"}])
    assert "(its path is invalid)" in complaint(tmp_path / "t")
