"""Files of NumPy as sources; what the listing hands on is read back by numpy itself."""

import io
import tracemalloc

import numpy as np
import pytest
from pictures_made import content, picture, save, tar

from flowimg.data.cache import cache_folder
from flowimg.data.listing import Request
from flowimg.data.pictures import read_bytes
from flowimg.data.sources.arrays import as_npy, split_in
from flowimg.data.sources.recognise import recognise
from flowimg.data.sources.streams import open_stream
from flowimg.errors import DataError


def source(path, **asked):
    return recognise(str(path), cache_folder(), Request(**asked))


def listed(path, **asked):
    return source(path, **asked).list()


def rows_of(listing, rows=None):
    """The pictures of a listing, as numpy reads them."""
    found = listing.read(np.arange(listing.count) if rows is None else np.array(rows))
    return [np.load(io.BytesIO(read_bytes(one)), allow_pickle=False) for one in found]


def labels_of(listing):
    return [listing.classes[number] for number in listing.labels]


def complaint(path, **asked):
    with pytest.raises(DataError) as caught:
        rows_of(listed(path, **asked))
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"data.source {path}")
    return said.removeprefix(f"data.source {path}").lstrip(": ")


def noise(*shape, dtype=np.uint8):
    return (np.random.default_rng(len(shape)).random(shape) * 200).astype(dtype)


def equal(found, wanted):
    return len(found) == len(wanted) and all(
        one.dtype == two.dtype and np.array_equal(one, two) for one, two in zip(found, wanted, strict=True)
    )


KINDS = [np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64, np.bool_, ">u2", ">f4"]


# --- one picture as bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_reads_what_was_written(dtype, order):
    array = np.asarray(noise(5, 4, 3, dtype=dtype), order=order)
    written = as_npy(array)
    assert written.startswith(b"\x93NUMPY")
    assert equal([np.load(io.BytesIO(written), allow_pickle=False)], [array])


def test_equal_pictures_have_equal_bytes_however_they_lie_in_memory():
    array = noise(5, 4, 3)
    assert as_npy(array) == as_npy(np.asfortranarray(array)) == as_npy(np.repeat(array, 2, axis=0)[::2])


# --- x.npy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 3), (7, 3, 5, 4)])
@pytest.mark.parametrize("dtype", KINDS)
def test_a_file_of_one_array_is_its_rows(tmp_path, shape, dtype):
    array = noise(*shape, dtype=dtype)
    np.save(tmp_path / "x.npy", array)
    listing = listed(tmp_path / "x.npy")
    assert (listing.count, listing.labels, listing.classes) == (7, None, ())
    assert equal(rows_of(listing), list(array)) and equal(rows_of(listing, [6, 0, 3]), [array[n] for n in (6, 0, 3)])
    assert listing.bytes.tolist() == [row.nbytes for row in array]
    assert listing.name(2) == f"{tmp_path / 'x.npy'}[2]"


def test_only_the_rows_that_are_asked_for_are_read(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (2000, 512, 512))  # two GB of holes
    array[1500] = 7
    array.flush()
    assert (tmp_path / "x.npy").stat().st_blocks * 512 < 10**8
    tracemalloc.start()
    try:
        assert (rows_of(listed(tmp_path / "x.npy"), [1500])[0] == 7).all()
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_the_ending_may_be_in_capitals_and_the_file_in_the_order_of_fortran(tmp_path):
    array = noise(3, 5, 4)
    with (tmp_path / "X.NPY").open("wb") as file:
        np.save(file, np.asfortranarray(array))
    assert equal(rows_of(listed(tmp_path / "X.NPY")), list(array))


@pytest.mark.parametrize("shape", [(), (4,), (5, 4), (2, 2, 5, 4, 3)])
def test_an_array_of_another_shape_is_refused(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    assert complaint(tmp_path / "x.npy").startswith(
        f"has the shape {shape}, and pictures are of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
    )


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([[[{"a": 1}]]], dtype=object), "holds Python objects, which are not read"),
        (np.zeros((2, 3, 3), complex), "holds complex128, and pictures are numbers"),
        (np.zeros((2, 3, 3), "U2"), "holds <U2, and pictures are numbers"),
        (np.zeros((2, 3, 3), [("r", "u1")]), "holds [('r', 'u1')], and pictures are numbers"),
    ],
)
def test_what_holds_no_numbers_is_refused(tmp_path, array, said):
    np.save(tmp_path / "x.npy", array)
    assert complaint(tmp_path / "x.npy").startswith(said)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("harm", [lambda all: b"", lambda all: b"not an array", lambda all: all[: len(all) // 2]])
def test_a_broken_file_is_one_sentence(tmp_path, name, harm):
    if name == "x.npy":
        np.save(tmp_path / name, noise(9, 8, 8))
    else:
        np.savez_compressed(tmp_path / name, images=noise(9, 8, 8))
    (tmp_path / name).write_bytes(harm((tmp_path / name).read_bytes()))
    said = complaint(tmp_path / name)
    assert said.startswith("cannot be read as arrays of NumPy (") and said.endswith("): save it again")


def test_pixels_that_are_damaged_inside_an_npz_file_are_one_sentence(tmp_path):
    np.savez(tmp_path / "x.npz", images=noise(9, 80, 80))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "x.npz").write_bytes(content)
    assert listed(tmp_path / "x.npz").count == 9
    assert "cannot be read as arrays of NumPy (Bad CRC-32" in complaint(tmp_path / "x.npz")


def test_one_array_has_neither_splits_nor_labels(tmp_path):
    np.save(tmp_path / "x.npy", noise(2, 3, 3))
    assert complaint(tmp_path / "x.npy", split="test") == "has no split 'test': data.split may be train"
    assert listed(tmp_path / "x.npy", split="Training").count == 2
    assert "is one array, without 'y' (data.label_column)" in complaint(tmp_path / "x.npy", label_column="y")
    assert listed(tmp_path / "x.npy", label_column="y", labels=False).count == 2


def test_no_pictures_are_no_error_here(tmp_path):
    np.save(tmp_path / "x.npy", noise(0, 3, 3))
    np.savez(tmp_path / "x.npz", images=noise(0, 3, 3), labels=np.zeros(0, int))
    assert listed(tmp_path / "x.npy").count == listed(tmp_path / "x.npz").count == 0


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_the_signature_follows_the_file(tmp_path, name):
    def write(count):
        np.save(tmp_path / name, noise(count, 3, 3)) if name == "x.npy" else np.savez(
            tmp_path / name, images=noise(count, 3, 3)
        )

    write(2)
    first = source(tmp_path / name).signature
    assert first is not None and source(tmp_path / name).signature == first
    write(3)
    assert source(tmp_path / name).signature != first
    assert source(tmp_path / name).kind == f"an {name[2:]} file"


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_are_not_streamed_which_is_said_with_the_way_out(tmp_path, name):
    np.save(tmp_path / "x.npy", noise(2, 3, 3))
    np.savez(tmp_path / "x.npz", images=noise(2, 3, 3))
    with pytest.raises(DataError, match=r"holds neither tar shards nor parquet.*: leave data.stream out"):
        open_stream(str(tmp_path / name), cache_folder())


# --- x.npz ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["label", "labels", "class", "Labels"])
def test_pictures_and_labels_of_one_file(tmp_path, save, name):
    array = noise(6, 5, 4, 3)
    save(tmp_path / "x.npz", **{"whatever": array, name: np.array([10, 9, 10, 2, 9, 9]), "mean": np.zeros(3)})
    listing = listed(tmp_path / "x.npz")
    assert equal(rows_of(listing), list(array)) and equal(rows_of(listing, [4, 1]), [array[4], array[1]])
    assert listing.classes == ("2", "9", "10")  # in order of value
    assert labels_of(listing) == ["10", "9", "10", "2", "9", "9"] and listing.labels.dtype == np.int64
    assert listing.origin == ("array whatever", f"array {name}") and listing.unused == ()
    assert listing.name(3) == f"{tmp_path / 'x.npz'}:whatever[3]"
    assert listing.bytes.tolist() == [60] * 6
    without = listed(tmp_path / "x.npz", labels=False)
    assert without.labels is None and without.unused == ()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.array([[3], [1], [3]], np.uint8), ["3", "1", "3"]),
        (np.array([3.0, 1.0, 3.0]), ["3", "1", "3"]),
        (np.array(["dog", "cat", "dog"]), ["dog", "cat", "dog"]),
        (np.array(["é".encode(), b"cat", b"cat"]), ["é", "cat", "cat"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
        (np.array(["2", "2.0", "10"]), ["2", "2", "10"]),
    ],
)
def test_labels_of_any_type(tmp_path, values, names):
    np.savez(tmp_path / "x.npz", images=noise(3, 5, 4), labels=values)
    listing = listed(tmp_path / "x.npz")
    assert labels_of(listing) == names
    assert listing.classes == tuple(sorted(set(names), key=lambda name: (len(name) * name.isdigit(), name)))


def test_an_npz_file_is_read_once_and_only_when_a_row_is(tmp_path, monkeypatch):
    array = noise(6, 5, 4)
    np.savez_compressed(tmp_path / "x.npz", images=array)
    listing, opened, load = listed(tmp_path / "x.npz"), [], np.load

    def counted(file, **more):
        opened.append(file)
        return load(file, **more)

    monkeypatch.setattr(np, "load", counted)
    assert not opened
    found = [listing.read(np.array([row]))[0].content for row in range(6)]
    monkeypatch.undo()
    assert len(opened) == 1 and equal([np.load(io.BytesIO(one)) for one in found], list(array))


def medmnist(path, **more):
    """A file as MedMNIST publishes them."""
    arrays = {}
    for number, (split, count) in enumerate([("train", 5), ("val", 3), ("test", 4)]):
        arrays[f"{split}_images"] = noise(count, 28, 28, 3) + np.uint8(number)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % (number + 2))[:, None]
    np.savez_compressed(path, **arrays | more)
    return arrays | more


@pytest.mark.parametrize(
    ("split", "word"),
    [
        ("train", "train"),
        ("val", "val"),
        ("validation", "val"),
        ("valid", "val"),
        ("Test", "test"),
        ("testing", "test"),
    ],
)
def test_the_splits_of_medmnist(tmp_path, split, word):
    arrays = medmnist(tmp_path / "x.npz")
    for named in ({}, {"image_column": "images", "label_column": "labels"}, {"image_column": f"{word}_images"}):
        listing = listed(tmp_path / "x.npz", split=split, **named)
        assert equal(rows_of(listing), list(arrays[f"{word}_images"]))
        assert labels_of(listing) == [str(number) for number in arrays[f"{word}_labels"].ravel()]
        assert listing.unused == ()


def test_a_split_that_is_not_there(tmp_path):
    medmnist(tmp_path / "x.npz")
    assert complaint(tmp_path / "x.npz", split="extra") == "has no split 'extra': data.split may be test, train, val"
    np.savez(tmp_path / "y.npz", images=noise(2, 3, 3))
    assert complaint(tmp_path / "y.npz", split="test") == "has no split 'test': data.split may be train"


def test_many_labels_a_picture_are_no_class(tmp_path):
    """As ChestMNIST has them."""
    medmnist(tmp_path / "x.npz", train_labels=np.zeros((5, 14), np.uint8))
    listing = listed(tmp_path / "x.npz")
    assert listing.labels is None and listing.count == 5
    assert listing.unused == ("the array train_labels (5, 14) uint8: not one label for each of 5 pictures",)
    said = complaint(tmp_path / "x.npz", label_column="labels")
    assert said.startswith(
        "array 'labels' (data.label_column) holds no labels: 5 pictures need a number or a text each"
    )
    assert "(5, 14)" in said


def test_the_split_may_come_first_or_last_and_labels_be_named_without_it(tmp_path):
    """As Keras has MNIST."""
    arrays = {
        f"{name}_{split}": noise(4, 8, 8) + np.uint8(split == "test") for split in ("train", "test") for name in "x"
    }
    arrays |= {"y_train": np.array([5, 0, 4, 1]), "y_test": np.array([7, 2, 1, 0])}
    np.savez(tmp_path / "x.npz", **arrays)
    for split in ("train", "test"):
        listing = listed(tmp_path / "x.npz", split=split, label_column="y")
        assert equal(rows_of(listing), list(arrays[f"x_{split}"]))
        assert labels_of(listing) == [str(number) for number in arrays[f"y_{split}"]]
    said = listed(tmp_path / "x.npz", split="test").unused
    assert said == ("the array y_test: data.label_column y_test would make it the classes",)
    assert listed(tmp_path / "x.npz", split="test", labels=False).unused == ()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("train_images", ("train", "images")),
        ("x_test", ("test", "x")),
        ("Valid-some_images", ("valid", "some_images")),
        ("some_images.VAL", ("val", "some_images")),
        ("test", ("test", "")),
        ("images", ("", "images")),
        ("training2", ("", "training2")),
        ("train2_images", ("", "train2_images")),
        ("images_2test", ("", "images_2test")),
        ("contest_images", ("", "contest_images")),
    ],
)
def test_the_split_that_a_name_tells(name, parts):
    assert split_in(name) == parts


def test_arrays_called_as_splits_alone_are_splits(tmp_path):
    arrays = {"train": noise(4, 5, 5), "test": noise(2, 6, 6)}
    np.savez(tmp_path / "x.npz", **arrays)
    for split, array in arrays.items():
        assert equal(rows_of(listed(tmp_path / "x.npz", split=split)), list(array))


@pytest.mark.parametrize("labels", [None, [3, 3, 5]])
def test_samples_that_we_wrote(tmp_path, labels):
    more = {} if labels is None else {"labels": np.array(labels, np.int64)}
    array = noise(3, 8, 8, 1)
    np.savez(tmp_path / "samples.npz", samples=array, seeds=np.array([0, 1, 2]), **more)
    listing = listed(tmp_path / "samples.npz")
    assert equal(rows_of(listing), list(array)) and listing.unused == ()
    assert labels is None or labels_of(listing) == ["3", "3", "5"]
    assert (listing.labels is None) == (labels is None)


def test_several_candidates_are_named_with_the_setting_that_chooses(tmp_path):
    arrays = {"a": noise(2, 3, 3), "b": noise(2, 4, 4), "label": np.array([0, 1]), "class": np.array([5, 6])}
    np.savez(tmp_path / "x.npz", **arrays)
    assert complaint(tmp_path / "x.npz") == "has 2 arrays of pictures, a, b: name one by data.image_column"
    said = complaint(tmp_path / "x.npz", image_column="b")
    assert said == "has 2 arrays of labels, label, class: name one by data.label_column"
    listing = listed(tmp_path / "x.npz", image_column="b", label_column="class")
    assert equal(rows_of(listing), list(arrays["b"])) and labels_of(listing) == ["5", "6"]
    assert listed(tmp_path / "x.npz", image_column="b", labels=False).labels is None


def test_labels_of_another_split_are_no_candidates(tmp_path):
    np.savez(
        tmp_path / "x.npz", images=noise(3, 4, 4), train_labels=np.array([5, 6, 7]), test_labels=np.array([0, 0, 1])
    )
    assert labels_of(listed(tmp_path / "x.npz")) == ["5", "6", "7"]


def test_the_very_name_comes_before_that_of_a_split(tmp_path):
    arrays = {"images": noise(2, 4, 4), "train_images": noise(2, 5, 5)}
    np.savez(tmp_path / "x.npz", **arrays)
    for name, array in arrays.items():
        assert equal(rows_of(listed(tmp_path / "x.npz", image_column=name)), list(array))


def test_an_array_of_no_split_beside_those_of_splits(tmp_path):
    arrays = medmnist(tmp_path / "x.npz", average=noise(28, 28, 3))
    assert "has 4 arrays of pictures, train_images, " in complaint(tmp_path / "x.npz")
    found = rows_of(listed(tmp_path / "x.npz", split="test", image_column="images"))
    assert equal(found, list(arrays["test_images"]))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"image_column": "c"},
            "has no array 'c' (data.image_column): its arrays are a (2, 3, 3) uint8, b (2, 5) int64",
        ),
        (
            {"image_column": "b"},
            "array 'b' (data.image_column) has the shape (2, 5), and pictures are of shape (N, H, W)",
        ),
        ({"label_column": "c"}, "has no array 'c' (data.label_column): its arrays are a (2, 3, 3) uint8, b (2, 5)"),
        (
            {"label_column": "b"},
            "array 'b' (data.label_column) holds no labels: 2 pictures need a number or a text each",
        ),
    ],
)
def test_an_array_that_is_named_in_vain(tmp_path, asked, said):
    np.savez(tmp_path / "x.npz", a=noise(2, 3, 3), b=noise(2, 5, dtype=np.int64))
    assert complaint(tmp_path / "x.npz", **asked).startswith(said)


def test_a_file_without_pictures(tmp_path):
    np.savez(
        tmp_path / "x.npz", a=np.zeros((2, 5)), images=np.array([{"a": 1}], dtype=object), b=np.zeros((1, 2, 3, 4, 5))
    )
    said = complaint(tmp_path / "x.npz")
    assert said.startswith(
        "has no array of pictures, of shape (N, H, W), (N, H, W, C) or (N, C, H, W): its arrays are a (2"
    )
    assert "images (1,) object" in said and "b (1, 2, 3, 4, 5) float64" in said
    assert "holds Python objects" in complaint(tmp_path / "x.npz", image_column="images")


@pytest.mark.parametrize("values", [[0, -1, 1], [0, np.nan, 1], ["a", "", "b"]])
def test_a_picture_without_a_label(tmp_path, values):
    np.savez(tmp_path / "x.npz", a=noise(3, 5, 5), labels=np.array(values))
    said = complaint(tmp_path / "x.npz")
    assert "picture 1 has no label in array 'labels'" in said and "data.labels false" in said
    assert listed(tmp_path / "x.npz", labels=False).count == 3


def test_fractions_are_no_classes(tmp_path):
    np.savez(tmp_path / "x.npz", a=noise(3, 5, 5), labels=np.array([0.5, 1, 2]))
    listing = listed(tmp_path / "x.npz")
    assert listing.labels is None and listing.unused == ("the array labels: 0.5 is no class",)
    assert "array 'labels' holds 0.5, which is no class" in complaint(tmp_path / "x.npz", label_column="labels")


# --- .npy files in folders and tar shards -----------------------------------------------------------------------------


def put(folder, *names):
    """Files of one picture each, by name."""
    made = {}
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        made[name] = noise(5, 4, 3, dtype=np.float32) + number
        with (folder / name).open("wb") as file:
            np.save(file, made[name])
    return made


def test_each_file_of_a_folder_is_a_picture_and_its_folder_the_class(tmp_path):
    made = put(tmp_path, "wild/b.npy", "cat/z.npy", "dog/deep/er/a.NPY", "cat/a.npy")
    assert source(tmp_path).kind == "a folder of pictures"
    listing = listed(tmp_path)
    names = ["cat/a.npy", "cat/z.npy", "dog/deep/er/a.NPY", "wild/b.npy"]
    assert equal(rows_of(listing), [made[name] for name in names])
    assert labels_of(listing) == ["cat", "cat", "dog", "wild"] and listing.unused == ()
    assert listing.bytes.tolist() == [(tmp_path / name).stat().st_size for name in names]


def test_folders_of_arrays_have_splits_and_metadata(tmp_path):
    made = put(tmp_path, "train/a.npy", "train/b.npy", "test/c.npy")
    assert equal(rows_of(listed(tmp_path, split="test")), [made["test/c.npy"]])
    (tmp_path / "train/metadata.csv").write_text("file_name,label\nb.npy,x\na.npy,y\n")
    listing = listed(tmp_path)
    assert equal(rows_of(listing), [made["train/a.npy"], made["train/b.npy"]]) and labels_of(listing) == ["y", "x"]


def test_arrays_beside_other_pictures_are_named_and_leave_their_classes_as_they_are(tmp_path):
    put(tmp_path, "labels.npy", "a/0.npy")
    for name in ("a/0.png", "b/1.png"):
        save(tmp_path / name, picture(1))
    listing = listed(tmp_path)
    assert [listing.name(row) for row in range(listing.count)] == [str(tmp_path / n) for n in ("a/0.png", "b/1.png")]
    assert labels_of(listing) == ["a", "b"]
    assert listing.unused == ("a/0.npy and 1 more: arrays are read in a folder without other pictures",)


def test_a_folder_that_holds_only_an_npz_file_gets_a_hint(tmp_path):
    np.savez(tmp_path / "x.npz", images=noise(2, 3, 3))
    assert complaint(tmp_path).endswith("no tar shards; x.npz: arrays are read if data.source names their file")
    assert listed(tmp_path / "x.npz").count == 2


def test_arrays_in_shards_are_pictures_only_if_they_are_named(tmp_path):
    made = [noise(5, 4, 3) + np.uint8(number) for number in range(3)]
    files = [
        pair for n, one in enumerate(made) for pair in ((f"{n}.png", content(picture(n))), (f"{n}.npy", as_npy(one)))
    ]
    shard = tar(tmp_path / "x.tar", files)
    assert [listed(shard).name(row) for row in range(3)] == [f"{shard}:{number}.png" for number in range(3)]
    assert equal(rows_of(listed(shard, image_column="npy")), made)
    shard = tar(tmp_path / "y.tar", [file for file in files if file[0].endswith(".npy")])
    assert complaint(shard).endswith("end in jpg, png, ...; arrays are read if data.image_column is npy")
