import os

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import complaint, content, dataset, decode, find, listing, numbers, picture, save, told
from PIL import ExifTags, Image

import flowimg.data.store
from flowimg.data.pictures import RESIZES
from flowimg.data.sources.known import NAMED
from flowimg.spaces.depth import WORDS

few = settings(max_examples=40, deadline=None, derandomize=True)
ANIMALS = ("cat", "dog", "wild")


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
    found = find(animals, **asked)
    assert told(found) == expected
    assert set(found.classes) == set(asked.get("classes", ANIMALS))


def test_classes_choose_pictures_where_labels_are_not_kept(animals):
    images = decode(find(animals, classes=["wild"], labels=False))
    assert numbers(images) == [5, 7]
    assert images.labels is None and images.classes == ()


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
    found = find(tmp_path, channels=asked)
    expected = {"grey": 1, "rgb": 3, "auto": 1 if mode in GREY else 3}[asked]
    assert found.shape == (expected, 4, 6)
    assert decode(found).pixels.shape == (1, expected, 4, 6)


def test_one_coloured_picture_makes_all_rgb(tmp_path):
    for name, mode in [("a", "L"), ("b", "RGB"), ("c", "1")]:
        save(tmp_path / f"{name}.png", typed(mode))
    assert find(tmp_path).shape[0] == 3
    (tmp_path / "b.png").unlink()
    assert find(tmp_path).shape[0] == 1


def test_a_coloured_background_under_grey_pictures_makes_them_rgb(tmp_path):
    save(tmp_path / "a.png", Image.new("LA", (2, 2), (100, 0)))
    found = find(tmp_path, background=(255, 0, 0))
    assert found.shape[0] == 3
    assert decode(found, background=(255, 0, 0)).pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    found = find(tmp_path, background=(9, 9, 9))
    assert found.shape[0] == 1
    assert numbers(decode(found, background=(9, 9, 9))) == [9]
    save(tmp_path / "a.png", Image.new("L", (2, 2), 100))  # nothing to see through
    assert find(tmp_path, background=(255, 0, 0)).shape[0] == 1


@few
@given(
    modes=st.lists(st.sampled_from(["L", "LA", "RGB", "RGBA", "P", "I;16"]), min_size=1, max_size=3),
    width=st.integers(1, 12),
    height=st.integers(1, 12),
    note=st.integers(0, 9),
    kind=st.sampled_from(["PNG", "TIFF"]),
    shape=st.none() | st.tuples(st.integers(2, 12), st.integers(2, 12)),
    channels=st.sampled_from(["auto", "grey", "rgb"]),
    resize=st.sampled_from(RESIZES),
)
def test_what_is_found_is_what_is_decoded(modes, width, height, note, kind, shape, channels, resize):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    files = [content(typed(mode, (width, height)), kind, exif=exif) for mode in modes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NAMED, "made", lambda: listing(files))
        found = find("made", shape=shape, channels=channels)
    across, down = (height, width) if note in (5, 6, 7, 8) else (width, height)
    assert found.shape[1:] == (shape or (down, across))
    assert decode(found, resize).pixels.shape == (len(modes), *found.shape)


def test_photos_that_stand_and_lie_have_one_size_once_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = np.zeros((8, 16), dtype=np.uint8)
    stored[:, :8] = 255  # stored lying: its left half is the upper one
    Image.fromarray(stored).save(tmp_path / "lying.png", exif=exif)
    Image.fromarray(np.rot90(stored, -1)).save(tmp_path / "upright.png")
    found = find(tmp_path)
    assert found.shape == (1, 16, 8)
    lying, upright = decode(found).pixels
    assert torch.equal(lying, upright) and (upright[0, :8] == 255).all() and (upright[0, 8:] == 0).all()


def test_size_and_resize_reach_the_pictures(tmp_path):
    save(tmp_path / "wide.png", picture(7, (8, 4)))
    save(tmp_path / "tall.png", picture(7, (4, 8)))
    found = find(tmp_path, shape=(8, 8))
    assert found.shape == (3, 8, 8)
    tall, wide = decode(found, "pad", (200, 200, 200)).pixels
    assert (wide[:, 2:6] == 7).all() and (wide[:, :2] == 200).all() and (wide[:, 6:] == 200).all()
    assert torch.equal(tall, wide.transpose(1, 2))
    assert numbers(decode(found)) == [7, 7]  # by default cut, without margins


@pytest.mark.parametrize(("name", "hint"), [("dogs", "did you mean 'dog'?"), ("zebra", "there are cat, dog, wild")])
def test_a_class_that_is_not_there(animals, name, hint):
    said = complaint(animals, classes=["cat", name])
    assert f"no class {name!r} (data.classes)" in said and said.endswith(hint)


def test_classes_of_pictures_that_have_none(tmp_path):
    save(tmp_path / "a.png", picture(0))
    assert "no labels to choose data.classes by" in complaint(tmp_path, classes=["cat"])


def test_a_class_that_this_split_has_none_of(tmp_path):
    dataset(ANIMALS, [0, 1]).to_parquet(tmp_path / "train.parquet")
    assert "split 'train' holds none of the requested pictures" in complaint(tmp_path, classes=["wild"])


def test_pictures_of_several_sizes(tmp_path):
    for number, size in enumerate([(6, 4), (6, 4), (4, 6)]):
        save(tmp_path / f"{number}.png", picture(number, size))
    said = complaint(tmp_path)
    assert "2 sizes, 6 x 4 (2), 4 x 6 (1), width x height: give" in said and "data.size, a side or a height and" in said
    assert "2 sizes (width x height) from 6 x 4 to 4 x 6" in find(tmp_path, shape=(5, 5)).story
    assert find(tmp_path, shape=(5, 5)).shape == (3, 5, 5)
    assert find(tmp_path, first=2).shape == (3, 4, 6)  # those that are kept are of one size


# --- bad ones --------------------------------------------------------------------------------------------------------


def spoilt(tmp_path, bad, count=20):
    """Numbered pictures, some of which are none."""
    for number in range(count):
        save(tmp_path / f"{number:03d}.png", picture(number))
    for number in bad:
        (tmp_path / f"{number:03d}.png").write_bytes(b"junk")
    return tmp_path


def test_so_many_bad_pictures_are_left_out_and_no_more(tmp_path):
    folder = spoilt(tmp_path, [3, 7])
    found = find(folder, max_bad=0.1)
    assert found.rows.tolist() == [n for n in range(20) if n not in (3, 7)]
    assert [name for name, _ in found.bad] == [str(folder / "003.png"), str(folder / "007.png")]
    assert "18 of 20 pictures of train" in found.story and "2 bad left out" in found.story
    assert "2 of 20 pictures cannot be used, more than data.max_bad 0.09 allows" in complaint(folder, max_bad=0.09)
    assert "2 of 20" in complaint(folder, max_bad=0)


def test_one_in_a_hundred_is_let_pass_by_default(tmp_path):
    folder = spoilt(tmp_path, [50], 100)
    assert len(find(folder).rows) == 99
    (folder / "099.png").unlink()
    assert "1 of 99 pictures cannot be used" in complaint(folder)


def test_the_first_are_the_first_good_ones_and_bad_ones_after_them_do_not_count(tmp_path):
    folder = spoilt(tmp_path, [1, 15])
    found = find(folder, first=4, max_bad=0.2)
    assert found.rows.tolist() == [0, 2, 3, 4] and len(found.bad) == 1
    assert find(folder, first=1, max_bad=0).rows.tolist() == [0]
    assert find(folder, first=100, max_bad=0.2).rows.tolist() == [n for n in range(20) if n not in (1, 15)]


@few
@given(bad=st.lists(st.booleans(), min_size=1, max_size=12), first=st.integers(1, 14))
def test_the_first_good_ones_are_found_whichever_are_bad(bad, first):
    files = [b"junk" if wrong else content(picture(number)) for number, wrong in enumerate([*bad, False])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NAMED, "made", lambda: listing(files))
        found = find("made", first=first, max_bad=0.99)
    good = [number for number, wrong in enumerate([*bad, False]) if not wrong]
    assert found.rows.tolist() == good[:first] and numbers(decode(found, max_bad=0.99)) == good[:first]


def test_bad_pictures_of_other_classes_do_not_count(tmp_path):
    for number, name in enumerate(["cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png"]):
        save(tmp_path / name, picture(number))
    (tmp_path / "dog/3.png").write_bytes(b"junk")
    assert told(find(tmp_path, classes=["cat"], max_bad=0)) == [(0, "cat"), (1, "cat")]
    assert "1 of 2 pictures cannot be used" in complaint(tmp_path, classes=["dog"])


def test_bad_pictures_have_no_say_in_size_and_colour(tmp_path):
    save(tmp_path / "a.png", picture(1, mode="L"))
    (tmp_path / "b.png").write_bytes(b"junk")
    assert find(tmp_path, max_bad=0.5).shape == (1, 6, 6)


def test_where_all_are_bad_there_is_nothing(tmp_path):
    folder = spoilt(tmp_path, range(4), 4)
    assert "4 of 4 pictures cannot be used" in complaint(folder, max_bad=0.9)


def test_a_disk_that_fails_is_said_and_nothing_of_it_is_kept(tmp_path, monkeypatch):
    for number in range(4):
        save(tmp_path / f"p/{number}.png", picture(number))
    opening = os.open

    def failing(path, *more):
        if str(path).endswith("2.png"):
            raise OSError(5, "Input/output error")
        return opening(path, *more)

    monkeypatch.setattr("flowimg.data.pictures.PATIENCE", (0.0,))
    monkeypatch.setattr(os, "open", failing)
    said = complaint(tmp_path / "p", max_bad=0.9)
    assert "2.png could not be read now (input/output error), one of 1: retry once the disk is healthy" in said
    monkeypatch.setattr(os, "open", opening)
    assert numbers(decode(find(tmp_path / "p"))) == [0, 1, 2, 3]


# --- any number of channels ------------------------------------------------------------------------------------------


def arrays(folder, *channels, dtype=np.uint8):
    """Arrays of these numbers of channels."""
    folder.mkdir()
    for number, count in enumerate(channels):
        np.save(folder / f"{number}.npy", np.zeros((count, 8, 9), dtype))
    return folder


@pytest.mark.parametrize(
    ("channels", "asked", "found"),
    [((5, 5), "auto", 5), ((5,), "all", 5), ((1, 3), "auto", 3), ((1, 3), "rgba", 4), ((2,), "auto", 2)],
)
def test_arrays_have_the_channels_that_they_have(tmp_path, channels, asked, found):
    assert find(arrays(tmp_path / "a", *channels), channels=asked).shape == (found, 8, 9)


@pytest.mark.parametrize(("channels", "asked"), [((5, 6, 5), "auto"), ((3, 1), "all"), ((5, 3), "auto")])
def test_several_numbers_of_channels_are_one_sentence_that_says_what_decides(tmp_path, channels, asked):
    said = complaint(arrays(tmp_path / "a", *channels), channels=asked)
    one, other = sorted(set(channels))
    way = "give data.channels grey, rgb or rgba" if other < 5 else "use those of one number"
    assert said.endswith(f"has pictures of {one} and {other} channels: {way}")


@pytest.mark.parametrize("asked", ["grey", "rgb", "rgba"])
def test_channels_that_no_picture_can_have_are_refused_before_any_is_decoded(tmp_path, asked):
    said = complaint(arrays(tmp_path / "a", 5, 5), channels=asked)
    assert said.endswith(f"has pictures of 5 channels, which do not become {asked}: give data.channels auto")


def test_pages_are_channels_where_all_are_wanted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((7, 8, 9), np.uint16), photometric="minisblack")
    assert find(tmp_path, channels="all", depth=WORDS).shape == (7, 8, 9)
    assert find(tmp_path, channels="auto", depth=WORDS).shape == (1, 8, 9)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_numbers_without_a_white_are_refused_before_anything_is_decoded(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(flowimg.data.store, "_fill", None)
    assert "data.depth" in complaint(arrays(tmp_path / "a", 3, dtype=dtype))
