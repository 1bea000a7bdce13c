"""Sources of pictures: what is found, what is decoded, and what is said where something is wrong.

Every picture made here tells its number by its pixels, so that a label can be held against the picture it came with.
"""

import io
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from sklearn.datasets import load_digits

from flowimg.data.pictures import RESIZES
from flowimg.data.sources import NAMED, DataError, decode, find

few = settings(max_examples=40, deadline=None, derandomize=True)
SHARED = Path(__file__).parents[3] / "shared/data"
ANIMALS = ("cat", "dog", "wild")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """datasets keeps what it reads in a folder of this test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(number, size=(6, 6), mode="RGB"):
    """An even picture whose brightness is its number."""
    return Image.new("RGB", size, (number, number, number)).convert(mode)


def content(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def numbers(images):
    """The numbers of pictures, from their pixels."""
    flat = images.pixels.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def told(found):
    """(number, name of the class) of every picture."""
    images = decode(found)
    assert images.classes == found.classes
    return list(zip(numbers(images), [images.classes[label] for label in images.labels], strict=True))


def complaint(source, **asked):
    """The one sentence that is said."""
    with pytest.raises(DataError) as caught:
        decode(find(str(source), **asked))
    said = str(caught.value)
    assert "\n" not in said and "<" not in said and not said.endswith(": ")
    return said


def dataset(names, labels, image="image", label="label", start=0):
    """Pictures numbered from `start`, with labels that are classes."""
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    pictures = [picture(start + n) for n in range(len(labels))]
    return datasets.Dataset.from_dict({image: pictures, label: labels}, features)


def table(path, **columns):
    """A parquet file that datasets knows nothing of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def plain(count, size=(6, 6)):
    return [{"bytes": content(picture(n, size)), "path": None} for n in range(count)]


# --- collections known by name ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return decode(find("digits"))


@pytest.mark.parametrize("name", NAMED)
def test_every_collection_is_uint8_pictures_with_one_label_each(name):
    found = find(name)
    pixels, labels, classes = decode(found)
    assert pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3)
    assert pixels.shape == (len(found.rows), *found.shape)
    assert labels.dtype == torch.int64 and labels.shape == pixels.shape[:1]
    assert labels.unique().tolist() == list(range(len(classes)))
    assert len(set(classes)) == len(classes)


def test_digits_are_1797_small_grey_pictures_of_ten_classes(digits):
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_keep_their_17_grey_levels_over_the_whole_range(digits):
    levels = digits.pixels.unique()
    assert len(levels) == 17 and levels[0] == 0 and levels[-1] == 255
    bunch = load_digits()
    exact = torch.from_numpy(bunch.images) * 255 / 16
    assert (digits.pixels[:, 0].double() - exact).abs().max() <= 0.5  # rounded, not cut
    assert digits.labels.tolist() == bunch.target.tolist()


def test_digits_are_drawn_in_white_on_black_the_right_way_up(digits):
    # the first one of all, a 0: dark in its middle and its corners, light around
    first = digits.pixels[0, 0]
    assert first[3:5, 3:5].max() < 100 and first[0, 0] == first[7, 7] == 0
    # a 7 is heavier at its top, a mean over all of them
    seven = digits.pixels[digits.labels == 7, 0].float().mean(0)
    assert seven[:3].sum() > seven[-3:].sum()


def test_labels_are_left_out_where_they_are_not_asked_for(digits):
    images = decode(find("digits", labels=False))
    assert images.labels is None and images.classes == ()
    assert torch.equal(images.pixels, digits.pixels)


def test_two_classes_of_the_digits_are_numbered_afresh_in_their_old_order(digits):
    images = decode(find("digits", classes=["7", "3"]))
    assert images.classes == ("3", "7")
    chosen = (digits.labels == 3) | (digits.labels == 7)
    assert torch.equal(images.pixels, digits.pixels[chosen])
    assert torch.equal(images.labels, (digits.labels[chosen] == 7).long())


@pytest.mark.parametrize("name", ["digit", "Digits", "dgits"])
def test_a_name_close_to_a_known_one_is_answered_with_it(name):
    assert "did you mean 'digits'?" in complaint(name)


# --- parquet and arrow -----------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path):
    """As uoft-cs/cifar10 has it: columns img and label, files of two splits."""
    names = ("airplane", "automobile", "bird")
    dataset(names, [2, 0, 1, 2, 0], "img").to_parquet(tmp_path / "cifar/train-00000-of-00001.parquet")
    dataset(names, [1, 0], "img", start=100).to_parquet(tmp_path / "cifar/test-00000-of-00001.parquet")
    return tmp_path / "cifar"


def test_parquet_of_two_splits(cifar):
    found = find(str(cifar))
    assert found.shape == (3, 6, 6)
    expected = [(0, "bird"), (1, "airplane"), (2, "automobile"), (3, "bird"), (4, "airplane")]
    assert told(found) == expected
    assert told(find(str(cifar), split="test")) == [(100, "automobile"), (101, "airplane")]


def test_the_story_says_what_was_found(cifar):
    story = find(str(cifar), first=2).story
    for fact in ("2 of 5 pictures of train", "column img", "6 x 6", "RGB", "3 classes", "column label"):
        assert fact in story
    assert "labels not used" in find(str(cifar), labels=False).story


def test_several_files_are_one_split(tmp_path):
    dataset("ab", [0, 1]).to_parquet(tmp_path / "data/train-00000-of-00002.parquet")
    dataset("ab", [1, 1], start=2).to_parquet(tmp_path / "data/train-00001-of-00002.parquet")
    assert told(find(str(tmp_path))) == [(0, "a"), (1, "b"), (2, "b"), (3, "b")]


@pytest.fixture
def animals(tmp_path):
    """As AFHQ has it: three classes, sorted, in one split."""
    dataset(ANIMALS, [0, 0, 1, 1, 1, 2, 0, 2]).to_parquet(tmp_path / "afhq/train-00000-of-00001.parquet")
    return tmp_path / "afhq"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"classes": ["wild"]}, [(5, "wild"), (7, "wild")]),
        ({"classes": ["wild", "dog"]}, [(2, "dog"), (3, "dog"), (4, "dog"), (5, "wild"), (7, "wild")]),
        ({"classes": ["cat"], "first": 2}, [(0, "cat"), (1, "cat")]),
        ({"first": 3}, [(0, "cat"), (1, "cat"), (2, "dog")]),
        ({"first": 100, "classes": ["dog"]}, [(2, "dog"), (3, "dog"), (4, "dog")]),
    ],
)
def test_classes_and_first_choose_pictures_with_their_labels(animals, asked, expected):
    found = find(str(animals), **asked)
    assert told(found) == expected
    assert set(found.classes) == set(asked.get("classes", ANIMALS))


def test_classes_choose_pictures_where_labels_are_not_kept(animals):
    images = decode(find(str(animals), classes=["wild"], labels=False))
    assert numbers(images) == [5, 7]
    assert images.labels is None and images.classes == ()


def test_a_single_parquet_file(cifar):
    assert told(find(str(cifar / "test-00000-of-00001.parquet"))) == [(100, "automobile"), (101, "airplane")]


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
    found = find(str(tmp_path), label_column="label" if named else None)
    assert told(found) == list(enumerate(names))
    assert found.classes == (names[0], names[1])  # in order of value: 30 comes before 100


@pytest.mark.parametrize("values", [[[0], [1, 2]], [0.5, 0.25], [{"a": 1}, {"a": 2}]])
def test_a_column_called_label_that_holds_none_is_left_alone(tmp_path, values):
    table(tmp_path / "train.parquet", image=plain(2), label=values)
    assert decode(find(str(tmp_path))).labels is None
    assert "'label' (data.label_column) holds no labels" in complaint(tmp_path, label_column="label")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_a_column_of_bytes_is_taken_where_it_is_named(tmp_path, kind):
    table(tmp_path / "train.parquet", jpg=pa.array([content(picture(n)) for n in range(3)], kind), cls=[5, 6, 5])
    found = find(str(tmp_path), image_column="jpg", label_column="cls")
    assert told(found) == [(0, "5"), (1, "6"), (2, "5")]


def test_columns_are_taken_by_name_where_there_are_several(tmp_path):
    numbered = [{"bytes": content(picture(n + 50)), "path": None} for n in range(2)]
    table(tmp_path / "train.parquet", image=plain(2), mask=numbered, label=[0, 1], fine=["x", "y"])
    assert told(find(str(tmp_path), image_column="mask", label_column="fine")) == [(50, "x"), (51, "y")]
    assert told(find(str(tmp_path), image_column="image")) == [(0, "0"), (1, "1")]


def test_more_pictures_than_are_read_at_a_time_stay_in_order(tmp_path):
    rows = [{"bytes": content(picture(n % 251, (2, 2))), "path": None} for n in range(700)]
    table(tmp_path / "train.parquet", image=rows, label=[n % 251 for n in range(700)])
    found = find(str(tmp_path))
    assert [str(number) for number, _ in told(found)] == [name for _, name in told(found)]
    assert [number for number, _ in told(found)] == [n % 251 for n in range(700)]


def test_saved_to_disk(tmp_path):
    dataset(ANIMALS, [1, 2]).save_to_disk(tmp_path / "one")
    assert told(find(str(tmp_path / "one"))) == [(0, "dog"), (1, "wild")]
    splits = {"train": dataset(ANIMALS, [2]), "validation": dataset(ANIMALS, [0, 1], start=10)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert told(find(str(tmp_path / "two"))) == [(0, "wild")]
    assert told(find(str(tmp_path / "two"), split="validation")) == [(10, "cat"), (11, "dog")]
    file = next((tmp_path / "one").glob("*.arrow"))
    assert told(find(str(file))) == [(0, "dog"), (1, "wild")]


def test_a_subset_is_taken_by_name(tmp_path):
    dataset("ab", [0]).to_parquet(tmp_path / "a/train.parquet")
    dataset("ab", [1], start=9).to_parquet(tmp_path / "b/train.parquet")
    parts = [f"- config_name: {name}\n  data_files: {name[0]}/train.parquet\n" for name in ("apples", "bears")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(parts)}---\n")
    assert told(find(str(tmp_path), subset="bears")) == [(9, "b")]
    said = complaint(tmp_path)
    assert "data.subset" in said and "apples" in said and "bears" in said
    said = complaint(tmp_path, subset="beers")
    assert "beers" in said and "apples" in said and "bears" in said


# --- folders of pictures ---------------------------------------------------------------------------------------------


def test_a_folder_a_class(tmp_path):
    for number, name in enumerate(["wild/b.png", "cat/z.png", "dog/deep/er/a.png", "cat/A.PNG"]):
        save(tmp_path / name, picture(number))
    found = find(str(tmp_path))
    assert sorted(told(found)) == [(0, "wild"), (1, "cat"), (2, "dog"), (3, "cat")]
    assert found.classes == ("cat", "dog", "wild")


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["deep/a.png", "deep/b.png"], ["a.png", "cat/b.png"]])
def test_pictures_that_do_not_all_lie_in_class_folders_have_no_classes(tmp_path, names):
    for number, name in enumerate(names):
        save(tmp_path / name, picture(number))
    images = decode(find(str(tmp_path)))
    assert images.labels is None and images.classes == () and numbers(images) == [0, 1]


def test_folders_of_splits_with_folders_of_classes(tmp_path):
    names = ["train/cat/a.png", "train/dog/a.png", "test/cat/x.png", "test/dog/x.png", "test/wild/x.png"]
    for number, name in enumerate(names):
        save(tmp_path / name, picture(number))
    assert told(find(str(tmp_path))) == [(0, "cat"), (1, "dog")]
    assert told(find(str(tmp_path), split="test")) == [(2, "cat"), (3, "dog"), (4, "wild")]


@pytest.mark.parametrize("splits", [["train", "test"], ["train", "val"], ["train", "valid", "test"]])
def test_folders_of_splits_without_classes(tmp_path, splits):
    for number, split in enumerate(splits):
        save(tmp_path / split / "a.png", picture(number))
    for number, split in enumerate(splits):
        images = decode(find(str(tmp_path), split=split))
        assert numbers(images) == [number] and images.labels is None


def test_a_class_called_test_next_to_others_is_a_class(tmp_path):
    for number, name in enumerate(["exam", "test", "train"]):
        save(tmp_path / name / "a.png", picture(number))
    assert told(find(str(tmp_path))) == [(0, "exam"), (1, "test"), (2, "train")]


@pytest.mark.parametrize("folder", ["", "a", "train-station", "test"])
def test_names_of_files_and_folders_above_make_no_splits(tmp_path, folder):
    # datasets' own reader of folders takes test-tube.png, and all below a folder called test, for another split
    names = ["test-tube.png", "train.png", "validation_1.png", "dev.png", "eval.png", "test.png"]
    root = tmp_path / "test"
    for number, name in enumerate(names):
        save(root / "things" / folder / name, picture(number))
        save(root / "others" / folder / name, picture(number + 10))
    found = find(str(root))
    assert sorted(told(found)) == [(n, "things") for n in range(6)] + [(n + 10, "others") for n in range(6)]


@pytest.mark.parametrize("extra", ["metadata.json", "README.md", "list.txt", ".cache/x.parquet", "cat/.x.arrow"])
def test_files_that_are_no_pictures_change_nothing(tmp_path, extra):
    for number, name in enumerate(["cat/test-1.png", "cat/train-1.png", "dog/test-2.png"]):
        save(tmp_path / name, picture(number))
    (tmp_path / extra).parent.mkdir(exist_ok=True)
    (tmp_path / extra).write_text("{}")
    assert told(find(str(tmp_path))) == [(0, "cat"), (1, "cat"), (2, "dog")]


def test_hidden_files_are_left_out_and_hidden_folders_above_are_not(tmp_path):
    root = tmp_path / ".store" / "pictures"
    for number, name in enumerate(["cat/a.png", "dog/a.png"]):
        save(root / name, picture(number))
    for name in (".hidden.png", "cat/._a.png", ".thumbnails/a.png", "dog/.old/a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"junk")
    assert told(find(str(root))) == [(0, "cat"), (1, "dog")]


def test_the_users_files_are_not_touched(tmp_path, monkeypatch):
    save(tmp_path / "pictures/a.png", picture(1))
    before = sorted((file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*"))
    decode(find(str(tmp_path / "pictures")))
    assert sorted((file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*")) == before
    monkeypatch.setenv("HOME", str(tmp_path))
    assert numbers(decode(find("~/pictures"))) == [1]
    monkeypatch.chdir(tmp_path)
    assert numbers(decode(find("pictures"))) == [1]  # a folder here comes before the hub


# --- channels and sizes ----------------------------------------------------------------------------------------------

GREY = {"1", "L", "LA", "I;16"}


def typed(mode, size=(6, 4)):
    """A picture of a mode, half transparent where it can be."""
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 30_000, dtype=np.uint16))
    if mode == "LA":
        return Image.new("LA", size, (100, 128))
    if mode == "RGBA":
        return Image.new("RGBA", size, (100, 90, 80, 128))
    return Image.new("RGB", size, (100, 90, 80)).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "RGB", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("asked", ["auto", "grey", "rgb"])
def test_channels_are_as_asked_and_auto_goes_by_colour(tmp_path, mode, asked):
    save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), typed(mode))
    found = find(str(tmp_path), channels=asked)
    expected = {"grey": 1, "rgb": 3, "auto": 1 if mode in GREY else 3}[asked]
    assert found.shape == (expected, 4, 6)
    assert decode(found).pixels.shape == (1, expected, 4, 6)


def test_one_coloured_picture_makes_all_rgb(tmp_path):
    for name, mode in [("a", "L"), ("b", "RGB"), ("c", "1")]:
        save(tmp_path / f"{name}.png", typed(mode))
    assert find(str(tmp_path)).shape[0] == 3
    (tmp_path / "b.png").unlink()
    assert find(str(tmp_path)).shape[0] == 1


def test_a_coloured_background_under_grey_pictures_makes_them_rgb(tmp_path):
    save(tmp_path / "a.png", Image.new("LA", (2, 2), (100, 0)))
    found = find(str(tmp_path), background=(255, 0, 0))
    assert found.shape[0] == 3
    assert decode(found, background=(255, 0, 0)).pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    found = find(str(tmp_path), background=(9, 9, 9))
    assert found.shape[0] == 1
    assert numbers(decode(found, background=(9, 9, 9))) == [9]
    save(tmp_path / "a.png", Image.new("L", (2, 2), 100))  # nothing to see through
    assert find(str(tmp_path), background=(255, 0, 0)).shape[0] == 1


@few
@given(
    modes=st.lists(st.sampled_from(["L", "LA", "RGB", "RGBA", "P", "I;16"]), min_size=1, max_size=3),
    width=st.integers(1, 12),
    height=st.integers(1, 12),
    note=st.integers(0, 9),
    kind=st.sampled_from(["PNG", "TIFF"]),
    size=st.none() | st.integers(2, 12),
    channels=st.sampled_from(["auto", "grey", "rgb"]),
    resize=st.sampled_from(RESIZES),
)
def test_what_is_found_is_what_is_decoded(modes, width, height, note, kind, size, channels, resize):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    files = [{"bytes": content(typed(mode, (width, height)), kind, exif=exif), "path": None} for mode in modes]
    rows = datasets.Dataset.from_dict({"image": files}, datasets.Features(image=datasets.Image()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NAMED, "made", lambda: rows)
        found = find("made", size=size, channels=channels)
    across, down = (height, width) if note in (5, 6, 7, 8) else (width, height)
    assert found.shape[1:] == ((down, across) if size is None else (size, size))
    assert decode(found, resize).pixels.shape == (len(modes), *found.shape)


def test_photos_that_stand_and_lie_have_one_size_once_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = np.zeros((8, 16), dtype=np.uint8)
    stored[:, :8] = 255  # stored lying: its left half is the upper one
    Image.fromarray(stored).save(tmp_path / "lying.png", exif=exif)
    Image.fromarray(np.rot90(stored, -1)).save(tmp_path / "upright.png")
    found = find(str(tmp_path))
    assert found.shape == (1, 16, 8)
    lying, upright = decode(found).pixels
    assert torch.equal(lying, upright) and (upright[0, :8] == 255).all() and (upright[0, 8:] == 0).all()


def test_size_and_resize_reach_the_pictures(tmp_path):
    save(tmp_path / "wide.png", picture(7, (8, 4)))
    save(tmp_path / "tall.png", picture(7, (4, 8)))
    found = find(str(tmp_path), size=8)
    assert found.shape == (3, 8, 8)
    tall, wide = decode(found, "pad", (200, 200, 200)).pixels
    assert (wide[:, 2:6] == 7).all() and (wide[:, :2] == 200).all() and (wide[:, 6:] == 200).all()
    assert torch.equal(tall, wide.transpose(1, 2))
    assert numbers(decode(found)) == [7, 7]  # by default cut, without margins


# --- what is said where something is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "../nowhere"])
def test_a_path_that_does_not_exist(source):
    assert complaint(source) == f"data.source {source} does not exist: there is no such file or folder"


@pytest.mark.parametrize("source", ["someone/pictures", "zebra"])
def test_a_dataset_of_the_hub_without_network(source, capsys):
    said = complaint(source)
    assert said.startswith(f"data.source {source} is no folder here, and the hub cannot be reached")
    assert "network" in said and "local copy" in said and "did you mean" not in said
    assert f"looking for {source} on the Hugging Face hub" in capsys.readouterr().err


def test_a_dataset_that_the_hub_does_not_have(monkeypatch):
    def load(source, subset):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{source}' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = complaint("someone/pictures")
    assert "someone/pictures: no such folder here and no such dataset on the hub" in said and "log in" in said
    assert "did you mean 'digits'?" in complaint("digts")


def test_whatever_a_reader_raises_is_one_line(monkeypatch):
    def load(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert complaint("someone/pictures") == "data.source someone/pictures cannot be read: first line"


def test_a_file_of_another_kind(tmp_path):
    save(tmp_path / "a.png", picture(0))
    assert "neither parquet nor arrow: name such a file, or a folder" in complaint(tmp_path / "a.png")


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    assert f"data.source {tmp_path / 'train.parquet'} cannot be read" in complaint(tmp_path / "train.parquet")
    assert f"data.source {tmp_path} cannot be read" in complaint(tmp_path)


@pytest.mark.parametrize("extra", [None, "notes.txt", ".hidden.png"])
def test_an_empty_folder(tmp_path, extra):
    if extra:
        (tmp_path / extra).write_bytes(content(picture(0)))
    assert "holds no pictures and no parquet or arrow files" in complaint(tmp_path)


def test_a_split_that_is_not_there(cifar):
    said = complaint(cifar, split="validation")
    assert "no split 'validation'" in said and said.endswith("data.split may be train, test")


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
    assert told(find(str(tmp_path), label_column="coarse")) == [(0, "a")]
    assert decode(find(str(tmp_path), labels=False)).labels is None  # then it does not matter


@pytest.mark.parametrize(("name", "hint"), [("dogs", "did you mean 'dog'?"), ("zebra", "there are cat, dog, wild")])
def test_a_class_that_is_not_there(animals, name, hint):
    said = complaint(animals, classes=["cat", name])
    assert f"no class {name!r} (data.classes)" in said and said.endswith(hint)


def test_classes_of_pictures_that_have_none(tmp_path):
    save(tmp_path / "a.png", picture(0))
    assert "no labels to keep data.classes by" in complaint(tmp_path, classes=["cat"])


def test_a_class_that_this_split_has_none_of(tmp_path):
    dataset(ANIMALS, [0, 1]).to_parquet(tmp_path / "train.parquet")
    assert "split 'train' holds no picture that is asked for" in complaint(tmp_path, classes=["wild"])


def test_pictures_of_several_sizes(tmp_path):
    for number, size in enumerate([(6, 4), (6, 4), (4, 6)]):
        save(tmp_path / f"{number}.png", picture(number, size))
    said = complaint(tmp_path)
    assert "2 sizes, 6 x 4 (2), 4 x 6 (1)" in said and "data.size" in said
    assert find(str(tmp_path), size=5).shape == (3, 5, 5)
    assert find(str(tmp_path), first=2).shape == (3, 4, 6)  # those that are kept are of one size


@pytest.mark.parametrize("labels", [[0, None, 1], [0, -1, 1], ["a", None, "b"]])
def test_a_row_without_a_label(tmp_path, labels):
    kind = datasets.Value("string") if "a" in labels else datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(image=datasets.Image(), label=kind)
    columns = {"image": [picture(n) for n in range(3)], "label": labels}
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "train.parquet")
    said = complaint(tmp_path)
    assert "row 1 has no label in column 'label'" in said and "data.labels false" in said
    for column in (None, "label"):
        assert numbers(decode(find(str(tmp_path), labels=False, label_column=column))) == [0, 1, 2]


def test_a_row_without_a_picture(tmp_path):
    features = datasets.Features(image=datasets.Image())
    rows = datasets.Dataset.from_dict({"image": [picture(0), None]}, features)
    rows.to_parquet(tmp_path / "a/train.parquet")
    table(tmp_path / "b/train.parquet", image=[*plain(1), {"bytes": None, "path": None}])
    for folder in "ab":
        assert complaint(tmp_path / folder).endswith("picture 1 is no picture: the row is empty")


def test_a_file_that_is_no_picture_is_named(tmp_path):
    save(tmp_path / "a.png", picture(0))
    (tmp_path / "b.png").write_bytes(b"no picture at all")
    assert f"{tmp_path / 'b.png'} is no picture" in complaint(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_broken_picture_is_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(tmp_path / f"a.{kind}", Image.fromarray(noise))
    whole = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / f"b.{kind}").write_bytes(whole[: len(whole) // 2])
    assert f"{tmp_path / f'b.{kind}'} " in complaint(tmp_path)
    broken = {"bytes": whole[: len(whole) // 2], "path": "shots/b.png"}
    table(tmp_path / "parquet/train.parquet", image=[{"bytes": whole, "path": None}] * 300 + [broken])
    assert "picture 300 (shots/b.png) " in complaint(tmp_path / "parquet")


def test_a_picture_that_a_table_only_points_to_is_named(tmp_path):
    table(tmp_path / "train.parquet", image=[{"bytes": None, "path": "gone/a.png"}])
    assert "gone/a.png is no picture" in complaint(tmp_path)


# --- real pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "fashion_mnist").is_dir(), reason="needs ../shared/data/fashion_mnist")
def test_fashion_mnist():
    source = str(SHARED / "fashion_mnist")
    found = find(source)
    assert len(found.rows) == 60_000 and found.shape == (1, 28, 28) and len(found.classes) == 10
    assert torch.bincount(found.labels).tolist() == [6000] * 10
    test = find(source, split="test")
    assert torch.bincount(test.labels).tolist() == [1000] * 10 and test.classes == found.classes
    images = decode(find(source, first=50, size=32), "keep", (0, 0, 0))
    assert images.pixels.shape == (50, 1, 32, 32) and images.pixels.max() == 255
    assert images.pixels[:, :, :2].max() == images.pixels[..., -2:].max() == 0


@pytest.mark.skipif(not (SHARED / "emoji").is_dir(), reason="needs ../shared/data/emoji")
def test_emoji_are_all_in_one_split():
    source = SHARED / "emoji"
    found = find(str(source))
    assert len(found.rows) == 1906 and found.shape == (3, 64, 64)
    folders = {folder.name: len(list(folder.iterdir())) for folder in source.iterdir()}
    assert len(folders) == 9 and dict(zip(found.classes, torch.bincount(found.labels).tolist(), strict=True)) == folders
    assert re.search(r"\bLA\b", found.story) and re.search(r"\bRGBA\b", found.story)
    images = decode(find(str(source), classes=["flags"], first=20))
    assert images.pixels.shape == (20, 3, 64, 64) and images.classes == ("flags",)
    assert (images.pixels[:, :, 0, 0] == 255).all()  # transparent corners, over white
