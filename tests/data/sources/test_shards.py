"""Tar shards: which pictures and labels they hold, and that nothing in them is taken for more than that."""

import io
import json
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import complaint, content, decode, find, noise, numbers, picture, samples, stored, tar, told
from PIL import Image

from flowimg.data.sources import shards as module
from flowimg.data.sources.shards import Shard, kept_or_read, read_shard, tar_files

few = settings(max_examples=40, deadline=None, derandomize=True)


def plain_numbers(source, **asked):
    images = decode(find(source, **asked))
    assert images.labels is None and images.classes == ()
    return numbers(images)


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"labels": False}])
def test_pictures_without_labels(tmp_path, asked):
    assert plain_numbers(tar(tmp_path / "a.tar", samples(0, 5)), **asked) == [0, 1, 2, 3, 4]


def test_labels_lie_beside_their_pictures(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 4, labels=[7, 30, 100, 7]))
    found = find(file)
    assert told(found) == [(0, "7"), (1, "30"), (2, "100"), (3, "7")]
    assert found.classes == ("7", "30", "100")  # in order of value
    assert "1 tar shard: 4 pictures of train, 6 x 6, RGB; 3 classes (of cls)" in found.story
    assert plain_numbers(file, labels=False) == [0, 1, 2, 3]


def test_labels_that_are_names(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 3, labels=["wild\n", "cat", "wild"]))
    assert told(find(file)) == [(0, "wild"), (1, "cat"), (2, "wild")]
    assert told(find(file, classes=["cat"])) == [(1, "cat")]


def test_the_label_may_come_before_its_picture(tmp_path):
    files = [("a.cls", b"x"), ("a.png", content(picture(1))), ("b.png", content(picture(2))), ("b.cls", b"y")]
    assert told(find(tar(tmp_path / "a.tar", files))) == [(1, "x"), (2, "y")]


def in_json(first, last, **more):
    files = []
    for number in range(first, last):
        inside = {"kind": "even" if number % 2 == 0 else "odd", "number": number, **more}
        files += [(f"{number}.png", content(picture(number))), (f"{number}.json", json.dumps(inside).encode())]
    return files


def test_labels_in_json_are_taken_by_name(tmp_path):
    file = tar(tmp_path / "a.tar", in_json(0, 3))
    assert told(find(file, label_column="json.kind")) == [(0, "even"), (1, "odd"), (2, "even")]
    assert told(find(file, label_column="json.number")) == [(0, "0"), (1, "1"), (2, "2")]
    for asked in ("json.colour", "txt"):
        said = complaint(file, label_column=asked)
        assert f"not every picture has a label {asked}" in said and "data.label_column" in said


@pytest.mark.parametrize("inside", [b"{", b"[]", b"null", b"\xff\xfe", b"", b'{"kind": null}'])
def test_json_that_holds_no_label_is_said(tmp_path, inside):
    files = [*in_json(0, 2), ("9.png", content(picture(9))), ("9.json", inside)]
    assert "not every picture has a label json.kind" in complaint(
        tar(tmp_path / "a.tar", files), label_column="json.kind"
    )


def test_labels_that_some_have_and_others_not_are_said(tmp_path):
    file = tar(tmp_path / "a.tar", [*samples(0, 2, labels=[1, 2]), *samples(2, 4)])
    assert "not every picture has a label cls" in complaint(file, label_column="cls")
    assert plain_numbers(file, labels=False) == [0, 1, 2, 3]


def test_a_picture_is_taken_by_its_ending(tmp_path):
    files = []
    for number in range(3):
        files += [(f"{number}.jpg", content(picture(number))), (f"{number}.mask.png", content(picture(number + 50)))]
    file = tar(tmp_path / "a.tar", files)
    said = complaint(file, labels=False)
    assert "0.mask.png in" in said and "a second picture of its sample" in said and "data.image_column" in said
    assert plain_numbers(file, labels=False, image_column="jpg") == [0, 1, 2]
    assert plain_numbers(file, labels=False, image_column="mask.png") == [50, 51, 52]
    assert "no files that end in webp" in complaint(file, labels=False, image_column="webp")


def test_samples_are_told_apart_by_all_before_the_first_dot(tmp_path):
    files = [
        ("a/x.v1.png", content(picture(1))), ("a/x.cls", b"one"), ("b/x.png", content(picture(2))), ("b/x.cls", b"two"),
        ("c.d/x.png", content(picture(3))), ("c.d/x.cls", b"three"),
    ]  # fmt: skip
    assert told(find(tar(tmp_path / "a.tar", files))) == [(1, "one"), (2, "two"), (3, "three")]


def test_hidden_files_are_left_out(tmp_path):
    files = [("._a.png", b"junk"), ("a.png", content(picture(1))), ("deep/.b.png", b"junk"), (".DS_Store", b"x")]
    assert plain_numbers(tar(tmp_path / "a.tar", files), labels=False) == [1]


def test_other_files_are_no_pictures(tmp_path):
    files = [("README.md", b"hello"), *samples(0, 2), ("notes.txt", b"bye")]
    assert plain_numbers(tar(tmp_path / "a.tar", files), labels=False) == [0, 1]
    said = complaint(tar(tmp_path / "b.tar", [("README.md", b"hello")]), labels=False)
    assert "holds no pictures: its shards have no files that end in jpg, png, ..." in said


@few
@given(
    count=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    long=st.booleans(),
)
def test_every_picture_of_every_shard_comes_once_in_order(tmp_path_factory, count, form, long):
    folder, number = tmp_path_factory.mktemp("shards"), 0
    for shard, many in enumerate(count):
        with tarfile.open(folder / f"{shard:03d}.tar", "w", format=form) as opened:
            for name, inside in samples(number, number + many, labels=range(number, number + many)):
                member = tarfile.TarInfo(("long" * 30 + "/" if long else "") + name)
                member.size = len(inside)
                opened.addfile(member, io.BytesIO(inside))
        number += many
    assert told(find(folder)) == [(n, str(n)) for n in range(number)]


# --- which files a source means --------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Three shards of two pictures each."""
    for shard in range(3):
        tar(tmp_path / f"s/x-{shard:03d}.tar", samples(2 * shard, 2 * shard + 2))
    return tmp_path / "s"


def test_shards_are_named_by_a_folder_a_range_or_a_pattern(three):
    for source in (three, three / "x-{000..002}.tar", three / "x-*.tar", three / "x-00[0-2].tar"):
        assert plain_numbers(source, labels=False) == [0, 1, 2, 3, 4, 5]
    assert plain_numbers(three / "x-{001..002}.tar", labels=False) == [2, 3, 4, 5]
    assert plain_numbers(three / "x-001.tar", labels=False) == [2, 3]
    assert "3 tar shards: 6 pictures" in find(three, labels=False).story


def test_a_range_keeps_its_zeros(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a-08", "a-09", "a-10", "a-11", "a-8", "a-9"):
        (tmp_path / f"{name}.tar").touch()
    assert tar_files("", module.Path("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert tar_files("", module.Path("a-{8..10}.tar")) == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert tar_files("", module.Path("nowhere.tar")) == tar_files("", module.Path("a.png")) == []


@pytest.mark.parametrize("name", ["a-{9..3}.tar", "a-{0..999999999}.tar"])
def test_a_range_that_is_none_is_said(tmp_path, name):
    assert "is not a valid range of shards" in complaint(tmp_path / name)


@pytest.mark.parametrize("name", ["a-*.tar", "*.png"])
def test_a_pattern_that_matches_no_shards_is_said(tmp_path, name):
    (tmp_path / "a.png").touch()
    assert "matches no tar files" in complaint(tmp_path / name)


def test_a_file_may_have_a_name_like_a_pattern(tmp_path):
    assert plain_numbers(tar(tmp_path / "a[1].tar", samples(0, 2))) == [0, 1]


def test_headers_of_a_stranger_are_one_sentence(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 2))
    header = bytearray(file.read_bytes())
    header[124:136] = b"\xff" * 12  # a size below zero
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    file.write_bytes(header)
    said = complaint(file)
    assert "\n" not in said


def test_a_shard_that_is_not_there_is_named(three):
    said = complaint(three / "x-{000..003}.tar", labels=False)
    assert f"there is no {three / 'x-003.tar'}, which is in the range" in said


def test_shards_in_folders_below(tmp_path):
    tar(tmp_path / "b/0.tar", samples(2, 4))
    tar(tmp_path / "a/0.tar", samples(0, 2))
    (tmp_path / "a/.old.tar").write_bytes(b"junk")
    assert plain_numbers(tmp_path, labels=False) == [0, 1, 2, 3]


@pytest.mark.parametrize("names", ["{}-000.tar", "set_{}_0.tar", "{}.tar", "000.{}.tar"])
def test_splits_are_told_by_the_names_of_shards(tmp_path, names):
    for first, split in ((0, "train"), (10, "val"), (20, "test")):
        tar(tmp_path / names.format(split), samples(first, first + 2))
    assert plain_numbers(tmp_path, labels=False) == [0, 1]
    assert plain_numbers(tmp_path, labels=False, split="val") == [10, 11]
    assert plain_numbers(tmp_path, labels=False, split="test") == [20, 21]
    assert plain_numbers(tmp_path, labels=False, split="validation") == [10, 11]  # another word for the same
    assert complaint(tmp_path, split="dev").endswith("data.split may be test, train, val")


def test_splits_are_told_by_the_folders_of_shards(tmp_path):
    for first, split in ((0, "train"), (10, "test")):
        tar(tmp_path / split / "000.tar", samples(first, first + 2))
    assert plain_numbers(tmp_path, labels=False, split="test") == [10, 11]
    assert plain_numbers(tmp_path, labels=False) == [0, 1]


def test_words_that_hold_the_name_of_a_split_make_none(tmp_path):
    tar(tmp_path / "training-0.tar", samples(0, 2))
    tar(tmp_path / "contest-0.tar", samples(2, 4))
    assert sorted(plain_numbers(tmp_path, labels=False)) == [0, 1, 2, 3]
    assert "no split 'test'" in complaint(tmp_path, split="test")


# --- broken and hostile ones -----------------------------------------------------------------------------------------


def cut(path, share):
    os.truncate(path, int(path.stat().st_size * share))
    return path


@pytest.fixture
def large(tmp_path):
    """A shard of ten pictures of some kilobytes each, with labels before them."""
    files = []
    for number in range(10):
        files += [(f"{number}.cls", b"ab"[number % 2 : number % 2 + 1]),
                  (f"{number}.png", content(Image.fromarray(noise(40, 40) // 2 + number)))]  # fmt: skip
    return tar(tmp_path / "a.tar", files)


@pytest.mark.parametrize("share", [0.25, 0.55, 0.77])
def test_of_a_shard_that_ends_in_the_middle_the_rest_is_kept(large, share):
    whole = decode(find(large))
    found = find(cut(large, share), max_bad=0.9)
    ((name, reason),) = found.bad
    kept = len(found.rows)
    assert 0 < kept < 10 and name == f"{large}:{kept}.png" and reason == "the shard is broken off here"
    images = decode(found, max_bad=0.9)
    assert (images.pixels == whole.pixels[:kept]).all() and (images.labels == whole.labels[:kept]).all()
    assert f"{large}:{kept}.png (the shard is broken off here)" in complaint(large, max_bad=0.01)


def test_a_shard_that_ends_before_the_label_of_its_last_picture(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 4, labels="abab"))
    with tarfile.open(file) as opened:
        os.truncate(file, opened.getmember("000003.png").offset_data + 30)
    found = find(file, max_bad=0.5)
    assert told(found, max_bad=0.5) == [(0, "a"), (1, "b"), (2, "a")]


def test_a_shard_that_ends_between_two_files_is_whole(tmp_path):
    files = samples(0, 3)
    file = tar(tmp_path / "a.tar", files)
    with tarfile.open(file) as opened:
        end = opened.getmembers()[-1].offset_data + 512
    os.truncate(file, end)  # without the blocks of zeros that end a tar
    assert plain_numbers(file, labels=False) == [0, 1, 2]


def test_a_shard_that_ends_within_a_header_is_said(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 6))
    with tarfile.open(file) as opened:
        os.truncate(file, opened.getmembers()[3].offset + 100)
    shard = read_shard(str(file), None, None)
    assert len(shard.starts) == 3 and shard.cut_off


def test_a_shard_whose_middle_is_broken_is_said(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 6))
    with tarfile.open(file) as opened:
        at = opened.getmembers()[3].offset
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\xaa" * 512)
    shard = read_shard(str(file), None, None)
    assert isinstance(shard, str) or shard.cut_off or len(shard.starts) == 5


@pytest.mark.parametrize("inside", [b"junk" * 400, b"", b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_tar_is_named(tmp_path, inside):
    (tmp_path / "a.tar").write_bytes(inside)
    assert f"{tmp_path / 'a.tar'} is no tar file" in complaint(tmp_path / "a.tar")


def test_names_in_a_shard_are_never_paths(tmp_path):
    files = [("../../evil.png", content(picture(1))), ("/etc/evil.png", content(picture(2)))]
    file = tar(tmp_path / "deep/er/a.tar", files)
    before = sorted(tmp_path.rglob("*"))
    assert plain_numbers(file, labels=False) == [1, 2]
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/etc/evil.png")


def special(kind, target=""):
    member = tarfile.TarInfo()
    member.type, member.linkname, member.devmajor, member.devminor = kind, target, 1, 5
    return member


def test_links_devices_and_pipes_in_a_shard_are_no_pictures(tmp_path):
    (tmp_path / "secret.png").write_bytes(content(picture(99)))
    files = [
        ("a.png", special(tarfile.SYMTYPE, str(tmp_path / "secret.png"))),
        ("b.png", special(tarfile.LNKTYPE, "z.png")),
        ("c.png", special(tarfile.CHRTYPE)),
        ("d.png", special(tarfile.FIFOTYPE)),
        ("e.png", special(tarfile.DIRTYPE)),
        ("z.png", content(picture(5))),
    ]
    assert plain_numbers(tar(tmp_path / "a.tar", files), labels=False) == [5]


def test_a_bad_picture_in_a_shard_is_named(tmp_path):
    files = [*samples(0, 2), ("x.png", b"junk"), ("y.png", b""), *samples(2, 4)]
    found = find(tar(tmp_path / "a.tar", files), labels=False, max_bad=0.5)
    assert found.bad == (
        (f"{tmp_path / 'a.tar'}:x.png", "not a picture in a known format"),
        (f"{tmp_path / 'a.tar'}:y.png", "the file is empty"),
    )
    assert numbers(decode(found, max_bad=0.5)) == [0, 1, 2, 3]


def test_a_label_of_any_length_is_read_no_further_than_it_must(tmp_path):
    file = tar(tmp_path / "a.tar", [("a.png", content(picture(1))), ("a.cls", b"x" * (3 * module.MOST_LABEL))])
    shard = read_shard(str(file), None, "cls")
    assert len(shard.labels[0]) == module.MOST_LABEL


# --- read once -------------------------------------------------------------------------------------------------------


def test_a_shard_is_read_through_once(three, cache, monkeypatch):
    file = str(three / "x-001.tar")
    first = kept_or_read(file, cache, None, "cls")
    monkeypatch.setattr(module, "read_shard", lambda *_: pytest.fail("read again"))
    again = kept_or_read(file, cache, None, "cls")
    assert isinstance(again, Shard) and again.starts.tolist() == first.starts.tolist()
    assert again.sizes.tolist() == first.sizes.tolist() and again[2:] == first[2:]
    monkeypatch.undo()
    assert kept_or_read(file, cache, "jpg", "cls").names == []  # asked otherwise, answered otherwise
    assert kept_or_read(file, cache, None, None).labels is None


def test_a_shard_that_was_replaced_is_read_again(tmp_path):
    file = tar(tmp_path / "a.tar", samples(0, 3, labels="abc"))
    assert told(find(file)) == [(0, "a"), (1, "b"), (2, "c")]
    tar(file, samples(5, 7, labels="xy"))
    assert told(find(file)) == [(5, "x"), (6, "y")]


def test_the_users_shards_are_not_touched(three):
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in three.iterdir()}
    stored(find(three, labels=False))
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in three.iterdir()} == before
