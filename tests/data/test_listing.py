"""Labels mean the same wherever they are from."""

import json
import math

import datasets
import pytest
from pictures_made import complaint, content, dataset, find, picture, plain, samples, save, table, tar, told

from flowimg.data.cache import cache_folder
from flowimg.data.listing import label_of
from flowimg.data.sources.streams import open_stream
from flowimg.errors import DataError


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (2, "2"), (2.0, "2"), ("2.0", "2"), (" 2\n", "2"), ("01", "01"), ("1e3", "1e3"), ("1:30", "1:30"),
        ("none", "none"), (True, "True"), ("true", "true"), ("a b ", "a b "), (" 01", "01"), ("1.0.2", "1.0.2"),
        (None, None), (-1, None), (-1.0, None), ("-1", None), ("-1.0", None), (math.nan, None), ("nan", None),
        ("NaN", None), ("", None), (" \n", None), ([2], None), ({"a": 2}, None), (b"2", None),
        (0.5, 0.5), ("0.5", 0.5), ("-2.50", -2.5), (math.inf, math.inf),
    ],
)  # fmt: skip
def test_a_label_is_a_text_or_none_or_a_fraction(value, label):
    assert label_of(value) == label and type(label_of(value)) is type(label)


def csv(folder, labels):
    for number in range(len(labels)):
        save(folder / f"{number}.png", picture(number))
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    return folder, "label"


def jsonl(folder, labels):
    csv(folder, labels)
    (folder / "metadata.csv").unlink()
    rows = [json.dumps({"file_name": f"{number}.png", "label": label}) for number, label in enumerate(labels)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder, "label"


def tables(folder, labels):
    table(folder / "train.parquet", image=plain(len(labels)), label=labels)
    return folder, "label"


def shards(folder, labels):
    tar(folder / "x.tar", samples(0, len(labels), labels))
    return folder, "cls"


def shards_of_json(folder, labels):
    files = []
    for number, label in enumerate(labels):
        files += [(f"{number}.png", content(picture(number))), (f"{number}.json", json.dumps({"k": label}).encode())]
    tar(folder / "x.tar", files)
    return folder, "json.k"


@pytest.fixture(params=[csv, jsonl, tables, shards, shards_of_json])
def write(request, tmp_path):
    return lambda labels: request.param(tmp_path, labels)


def streamed(folder, **asked):
    """A source as a stream, if it can be streamed."""
    if any(folder.glob("metadata.*")):
        return None
    return open_stream(str(folder), cache_folder(), **asked)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["2", "2.0", "10"], ("2", "10")), (["01", "1", "01"], ("01", "1")), (["2.0", "cat", "cat"], ("2", "cat")),
        (["010", "9"], ("010", "9")), (["none", "NA"], ("NA", "none")),
    ],
)  # fmt: skip
def test_one_text_is_one_class_in_every_kind_of_source(write, labels, classes):
    folder, column = write(labels)
    expected = [(number, label_of(label)) for number, label in enumerate(labels)]
    assert told(find(folder, label_column=column)) == expected and find(folder, label_column=column).classes == classes
    if (stream := streamed(folder, label_column=column)) is not None:
        assert stream.classes == classes
        assert [classes[number] for number in stream.open(0).labels] == [label for _, label in expected]


@pytest.mark.parametrize("none", ["-1", "", "nan", "NaN", "-1.0"])
@pytest.mark.parametrize("others", [["a"], []])
def test_no_label_is_said_in_every_kind_of_source(write, none, others):
    folder, column = write([none, *others])
    asked = {} if column != "json.k" else {"label_column": column}
    said = complaint(folder, **asked)
    assert f"has no label in column '{column}'" in said or f"not every picture has a label {column}" in said
    assert find(folder, labels=False).classes == ()
    if not any(folder.glob("metadata.*")):
        with pytest.raises(DataError, match=r"has no label in column|not every picture has a label"):
            streamed(folder, **asked)


def test_a_fraction_is_no_class_in_any_kind_of_source(write):
    folder, column = write(["0.5", "1"])
    assert f"{column}' holds 0.5" in (said := complaint(folder, label_column=column)) or f"{column} holds 0.5" in said
    if column != "json.k":
        (said,) = find(folder).unused
        assert find(folder).classes == () and said.endswith(": 0.5 is no class") and column in said
        if (stream := streamed(folder)) is not None:
            assert stream.classes == () and stream.unused == (said,)


@pytest.mark.parametrize("value", [[1], {"a": 1}, None])
def test_what_is_no_text_and_no_number_is_no_label_in_json(tmp_path, value):
    folder, column = shards_of_json(tmp_path, ["a", value])
    assert "not every picture has a label json.k" in complaint(folder, label_column=column)


# --- class names that a table declares ------------------------------------------------------------------------------


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    dataset(["cat", "dog"], [0, 1]).to_parquet(tmp_path / "a.parquet")
    dataset(["dog", "cat"], [0, 1], start=2).to_parquet(tmp_path / "b.parquet")
    said = "do not have the same class names, in the same order, in column 'label'"
    assert said in complaint(tmp_path)
    with pytest.raises(DataError, match=said):
        streamed(tmp_path)
    with pytest.raises(DataError, match=said):
        streamed(tmp_path)  # as it is kept in the cache
    assert len(find(tmp_path, labels=False).rows) == 4
    dataset(["cat", "dog"], [1, 0], start=2).to_parquet(tmp_path / "b.parquet")
    assert told(find(tmp_path)) == [(0, "cat"), (1, "dog"), (2, "dog"), (3, "cat")]


def test_metadata_that_number_their_classes_differently_are_refused(tmp_path):
    for part, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        save(tmp_path / part / "x.png", picture(1))
        kinds = datasets.Features(file_name=datasets.Value("string"), label=datasets.ClassLabel(names=names))
        rows = {"file_name": ["x.png"], "label": [0]}
        datasets.Dataset.from_dict(rows, kinds).to_parquet(tmp_path / part / "metadata.parquet")
    assert "do not have the same class names" in complaint(tmp_path)
    assert len(find(tmp_path, labels=False).rows) == 2
