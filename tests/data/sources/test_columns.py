"""Columns of arrays in tables; what the listing hands on is read back by numpy, and held against `datasets`."""

import io

import datasets
import numpy as np
import pytest
from pictures_made import complaint, decode, find, numbers, picture

from flowimg.data.cache import cache_folder
from flowimg.data.listing import Request
from flowimg.data.pictures import BadPictureError, read_bytes
from flowimg.data.sources.recognise import recognise
from flowimg.data.sources.streams import open_stream


def arrays(feature, rows, **columns):
    """A table with a column of arrays, and its rows as the lists of `datasets`, whose own arrays have other types."""
    features = datasets.Features({"pixels": feature} | {name: kind for name, (kind, _) in columns.items()})
    cells = {"pixels": rows} | {name: cells for name, (_, cells) in columns.items()}
    made = datasets.Dataset.from_dict(cells, features)
    return made, np.array(made["pixels"][:], feature.dtype)


def read_back(source, rows=None, **asked):
    """The pictures of a listing, as numpy reads them."""
    listing = recognise(str(source), cache_folder(), Request(**asked)).list()
    found = listing.read(np.arange(listing.count) if rows is None else np.array(rows))
    return listing, [np.load(io.BytesIO(read_bytes(one)), allow_pickle=False) for one in found]


def random(*shape, dtype):
    return (np.random.default_rng(len(shape)).random(shape) * 200).astype(dtype)


def write_form(made, folder, form):
    """A table as a parquet file, as an arrow file, or as a folder saved by `datasets`."""
    if form == "parquet":
        made.to_parquet(folder / "x.parquet")
        return folder / "x.parquet"
    made.save_to_disk(folder / "saved")
    return next((folder / "saved").glob("*.arrow")) if form == "arrow" else folder / "saved"


@pytest.mark.parametrize("form", ["parquet", "arrow", "saved"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64", "bool"])
def test_columns_of_arrays_hold_pictures(tmp_path, form, dtype):
    kinds = datasets.ClassLabel(names=["ant", "bee"])
    made, rows = arrays(datasets.Array3D((5, 4, 3), dtype), random(6, 5, 4, 3, dtype=dtype), label=(kinds, [0, 1] * 3))
    file = write_form(made, tmp_path, form)
    listing, found = read_back(file)
    assert np.array_equal(found, rows) and {one.dtype for one in found} == {np.dtype(dtype)}
    assert listing.classes == ("ant", "bee") and listing.labels.tolist() == [0, 1] * 3 and listing.unused == ()
    assert listing.origin == ("column pixels", "column label") and listing.name(4) == "picture 4"
    assert listing.bytes.tolist() == [rows[0].nbytes] * 6 and listing.stamps is None
    assert np.array_equal(read_back(file, [4, 1, 5])[1], rows[[4, 1, 5]])


@pytest.mark.parametrize("feature", [datasets.Array2D((5, 4), "uint16"), datasets.Array3D((3, 5, 4), "uint16")])
def test_arrays_without_colour_and_with_colour_first(tmp_path, feature):
    made, rows = arrays(feature, random(3, *feature.shape, dtype=np.uint16))
    made.to_parquet(tmp_path / "x.parquet")
    assert np.array_equal(read_back(tmp_path / "x.parquet")[1], rows)


def test_arrays_of_several_sizes(tmp_path):
    wanted = [random(height, 4, 3, dtype=np.float32) for height in (5, 2, 7)]
    made = datasets.Dataset.from_dict(
        {"pixels": wanted}, datasets.Features(pixels=datasets.Array3D((None, 4, 3), "float32"))
    )
    made.to_parquet(tmp_path / "x.parquet")
    listing, found = read_back(tmp_path / "x.parquet")
    assert listing.bytes is None
    assert all(np.array_equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_more_arrays_than_a_file_has_in_a_piece_stay_in_order(tmp_path):
    made, rows = arrays(datasets.Array3D((2, 2, 1), "int32"), np.arange(2800, dtype=np.int32).reshape(700, 2, 2, 1))
    made.to_parquet(tmp_path / "x.parquet", batch_size=64)
    assert np.array_equal(read_back(tmp_path / "x.parquet")[1], rows)
    assert np.array_equal(read_back(tmp_path / "x.parquet", [600, 3, 64, 63])[1], rows[[600, 3, 64, 63]])


def test_a_row_without_an_array_is_empty_and_one_of_another_size_is_left_to_the_decoder(tmp_path):
    features = datasets.Features(pixels=datasets.Array2D((2, 2), "uint8"))
    made = datasets.Dataset.from_dict({"pixels": [[[1, 2], [3, 4]], None, [[1, 2, 3]]]}, features)
    made.to_parquet(tmp_path / "x.parquet")
    listing, (first, last) = read_back(tmp_path / "x.parquet", [0, 2])
    assert first.tolist() == [[1, 2], [3, 4]] and last.tolist() == [1, 2, 3]
    with pytest.raises(BadPictureError, match="the row is empty"):
        read_bytes(listing.read(np.array([1]))[0])
    assert listing.name(1) == "picture 1"


def test_a_column_of_pictures_comes_before_one_of_arrays_which_may_be_named(tmp_path):
    made, rows = arrays(datasets.Array3D((5, 4, 3), "uint8"), random(2, 5, 4, 3, dtype=np.uint8),
                        image=(datasets.Image(), [picture(3), picture(4)]))  # fmt: skip
    made.to_parquet(tmp_path / "x.parquet")
    assert numbers(decode(find(tmp_path / "x.parquet"))) == [3, 4]
    listing, found = read_back(tmp_path / "x.parquet", image_column="pixels")
    assert np.array_equal(found, rows) and listing.origin[0] == "column pixels"


def test_a_column_of_arrays_comes_before_one_of_bytes(tmp_path):
    made, rows = arrays(datasets.Array2D((5, 4), "uint8"), random(1, 5, 4, dtype=np.uint8),
                        raw=(datasets.Value("binary"), [b"x"]))  # fmt: skip
    made.to_parquet(tmp_path / "x.parquet")
    assert np.array_equal(read_back(tmp_path / "x.parquet")[1], rows)


def test_arrays_are_no_labels_and_several_columns_of_them_are_named(tmp_path):
    square = datasets.Array2D((2, 2), "uint8")
    made, rows = arrays(square, [[[1, 2], [3, 4]]], label=(square, [[[5, 6], [7, 8]]]))
    made.to_parquet(tmp_path / "x.parquet")
    assert "2 columns of pictures, pixels, label: name one by data.image_column" in complaint(tmp_path / "x.parquet")
    listing, found = read_back(tmp_path / "x.parquet", image_column="pixels")
    assert np.array_equal(found, rows) and listing.labels is None
    assert listing.unused == ("the column label: Array2D(shape=(2, 2), dtype='uint8') is no type of labels",)
    said = complaint(tmp_path / "x.parquet", image_column="pixels", label_column="label")
    assert "column 'label' (data.label_column) holds no labels, but Array2D" in said


@pytest.mark.parametrize(
    ("feature", "row"),
    [(datasets.Array2D((1, 2), "string"), [["a", "b"]]), (datasets.Array4D((1, 1, 1, 2), "uint8"), [[[[1, 2]]]])],
    ids=["texts", "four dimensions"],
)
def test_arrays_that_can_be_no_pictures(tmp_path, feature, row):
    datasets.Dataset.from_dict({"pixels": [row]}, datasets.Features(pixels=feature)).to_parquet(tmp_path / "x.parquet")
    assert "no column of pictures: its columns are pixels" in complaint(tmp_path / "x.parquet")


def test_columns_of_arrays_are_streamed_too(tmp_path):
    made, rows = arrays(datasets.Array3D((5, 4, 3), "float32"), random(9, 5, 4, 3, dtype=np.float32),
                        label=(datasets.Value("int64"), [7, 8, 9] * 3))  # fmt: skip
    made.to_parquet(tmp_path / "x.parquet", batch_size=4)
    for _ in range(2):  # the second time, what is known of the file is from the cache
        stream = open_stream(str(tmp_path / "x.parquet"), cache_folder())
        assert stream.counts.sum() == 9 and stream.classes == ("7", "8", "9") and len(stream.counts) == 3
        shards = [stream.open(number) for number in range(3)]
        places = [(shard, row) for shard, count in zip(shards, stream.counts, strict=True) for row in range(count)]
        found = [np.load(io.BytesIO(read_bytes(shard.picture(row)))) for shard, row in places]
        assert np.array_equal(found, rows)
        assert shards[1].name(2).startswith("picture 2 of row group 1 of ")
