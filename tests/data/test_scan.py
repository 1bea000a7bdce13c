"""Pictures are looked at once, and again only where a file has changed."""

import os
import time
from hashlib import blake2b

import numpy as np
import pytest
from pictures_made import complaint, content, dataset, find, listing, noise, picture, plain, save, table, told
from PIL import Image

from flowimg.data import scan as module
from flowimg.data.find import find as find_in
from flowimg.data.listing import CHUNK, CHUNK_BYTES, Request, chunks
from flowimg.data.pictures import Encoded
from flowimg.data.sources import tables
from flowimg.data.sources.known import NAMED, of_arrays


@pytest.fixture
def looked(monkeypatch):
    """Names of the files that are looked at from now on."""
    names, look = [], module.look

    def looking(pictures, **how):
        names.extend(os.path.basename(one.path or "bytes") for one in pictures)
        return look(pictures, **how)

    monkeypatch.setattr(module, "look", looking)
    return names


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for number, name in enumerate(["a/0.png", "a/1.png", "b/2.png", "b/3.png"]):
        save(root / name, picture(number))
    return root


FOUR = [(0, "a"), (1, "a"), (2, "b"), (3, "b")]


def same(one, two):
    for first, second in zip(one, two, strict=True):
        if isinstance(first, np.ndarray):
            assert np.array_equal(first, second) and first.dtype == second.dtype
        elif not callable(first):
            assert first == second


def test_the_second_time_no_picture_is_read(folder, looked):
    (folder / "b/bad.png").write_bytes(b"junk")
    first = find(folder, max_bad=0.5)
    assert sorted(looked) == ["0.png", "1.png", "2.png", "3.png", "bad.png"]
    looked.clear()
    again = find(folder, max_bad=0.5)
    assert looked == []
    same(first, again)
    assert again.bad[0].name == str(folder / "b/bad.png")


def test_what_is_asked_of_the_same_pictures_is_answered_without_reading(folder, looked):
    find(folder)
    looked.clear()
    assert find(folder, first=2, shape=(4, 4)).shape == (3, 4, 4)
    assert find(folder, channels="grey", background=(1, 2, 3)).shape == (1, 6, 6)
    assert looked == []


def test_a_file_that_was_added_is_looked_at_alone(folder, looked):
    find(folder)
    looked.clear()
    save(folder / "a/05.png", picture(5))
    assert told(find(folder)) == [(0, "a"), (5, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert looked == ["05.png"]


def test_a_file_that_was_taken_away_is_not_there(folder, looked):
    find(folder)
    looked.clear()
    (folder / "a/1.png").unlink()
    assert told(find(folder)) == [(0, "a"), (2, "b"), (3, "b")]
    assert looked == []


def test_a_file_that_was_renamed_has_its_new_class(folder):
    find(folder)
    (folder / "a/1.png").rename(folder / "b/1.png")
    assert told(find(folder)) == [(0, "a"), (1, "b"), (2, "b"), (3, "b")]


def test_a_file_that_was_changed_is_noticed_though_its_size_and_its_time_are_the_same(folder, looked):
    file = folder / "b/2.png"
    file.write_bytes(content(picture(200), compress_level=0))  # packed so, all numbers take as many bytes
    before = file.stat()
    find(folder)
    looked.clear()
    time.sleep(0.05)  # a tick of the file system's clock
    file.write_bytes(content(picture(100), compress_level=0))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert told(find(folder)) == [(0, "a"), (1, "a"), (100, "b"), (3, "b")]
    assert looked == ["2.png"]


def test_two_files_that_changed_places_are_noticed(folder):
    find(folder)
    for old, new in (("a/0.png", "x"), ("b/3.png", "a/0.png"), ("x", "b/3.png")):
        (folder / old).rename(folder / new)
    assert told(find(folder)) == [(3, "a"), (1, "a"), (2, "b"), (0, "b")]


def test_a_bad_picture_is_looked_at_again_when_anything_changed(folder, looked):
    (folder / "b/4.png").write_bytes(b"junk")
    assert "b/4.png (not a picture in a known format)" in complaint(folder)
    looked.clear()
    save(folder / "b/4.png", picture(4))
    assert told(find(folder))[-1] == (4, "b")
    assert looked == ["4.png"]


def test_a_bad_picture_is_still_bad_when_another_one_was_added(folder):
    (folder / "b/4.png").write_bytes(b"junk")
    find(folder, max_bad=0.5)
    save(folder / "a/5.png", picture(5))
    found = find(folder, max_bad=0.5)
    assert told(found, max_bad=0.5) == [(0, "a"), (1, "a"), (5, "a"), (2, "b"), (3, "b")]
    assert found.bad == ((str(folder / "b/4.png"), "not a picture in a known format"),)


def test_a_picture_that_turned_bad_is_noticed(folder):
    find(folder)
    (folder / "b/3.png").write_bytes(b"junk")
    found = find(folder, max_bad=0.5)
    assert [name for name, _ in found.bad] == [str(folder / "b/3.png")] and len(found.rows) == 3


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_broken_file_of_the_cache_is_made_again(folder, cache, looked, share):
    find(folder)
    (file,) = (cache / "scans").iterdir()
    os.truncate(file, int(file.stat().st_size * share))
    looked.clear()
    assert told(find(folder)) == FOUR and len(looked) == 4
    looked.clear()
    find(folder)
    assert looked == []


def test_files_of_another_version_are_not_taken(folder, looked, monkeypatch):
    find(folder)
    looked.clear()
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    find(folder)
    assert len(looked) == 4


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert len(find_in(str(folder), tmp_path / "file" / "cache", workers=1).rows) == 4


def test_a_table_is_looked_through_once_and_again_when_it_changed(tmp_path, looked):
    dataset("ab", [0, 1]).to_parquet(tmp_path / "train.parquet")
    assert told(find(tmp_path)) == [(0, "a"), (1, "b")]
    looked.clear()
    assert told(find(tmp_path)) == [(0, "a"), (1, "b")] and looked == []
    assert find(tmp_path, labels=False).labels is None  # another question, another answer
    dataset("ab", [1, 1, 0], start=7).to_parquet(tmp_path / "train.parquet")
    assert told(find(tmp_path)) == [(7, "b"), (8, "b"), (9, "a")]


def test_a_table_that_was_looked_through_is_not_even_opened(tmp_path, monkeypatch):
    dataset("ab", [0, 1]).to_parquet(tmp_path / "train.parquet")
    first = find(tmp_path)
    monkeypatch.setattr(tables, "open_table", lambda *_: pytest.fail("opened again"))
    same(first, find(tmp_path))


def test_columns_that_are_asked_for_are_not_taken_for_others(tmp_path):
    rows = dataset("ab", [0, 1]).add_column("mark", ["x", "y"])
    rows.to_parquet(tmp_path / "train.parquet")
    assert told(find(tmp_path)) == [(0, "a"), (1, "b")]
    assert told(find(tmp_path, label_column="mark")) == [(0, "x"), (1, "y")]
    assert told(find(tmp_path)) == [(0, "a"), (1, "b")]


def test_names_that_are_no_text_are_kept(tmp_path, looked):
    save(tmp_path / "p" / "a.png", picture(1))
    odd = os.fsencode(tmp_path / "p") + b"/\xff\xfe.png"
    with open(odd, "wb") as file:
        file.write(b"junk")
    first = find(tmp_path / "p", max_bad=0.5)
    looked.clear()
    assert find(tmp_path / "p", max_bad=0.5).bad == first.bad and looked == []
    assert first.bad[0].name == f"{tmp_path}/p/\\xff\\xfe.png"  # as it may be printed anywhere


def test_labels_with_odd_characters_are_the_same_the_second_time(tmp_path):
    table(tmp_path / "train.parquet", image=plain(2), label=["a\0b", "c\n"])
    first = find(tmp_path)
    assert first.classes == ("a\0b", "c\n")
    same(first, find(tmp_path))


# --- what is seen of a picture ---------------------------------------------------------------------------------------


def test_what_is_seen_of_a_picture():
    file = content(Image.new("RGBA", (7, 4), (1, 2, 3, 4)))
    (seen,) = module.look([Encoded(file)])
    assert seen == (blake2b(file, digest_size=16).digest(), 4, 7, "RGBA PNG", True, False, 255, None, False)
    (seen,) = module.look([Encoded(b"junk")])
    assert seen.wrong == "not a picture in a known format"


def test_looking_deeply_finds_what_is_broken_further_in_and_pictures_that_look_alike():
    whole = content(Image.fromarray(noise(24, 24)))
    cut_off = whole[: len(whole) // 2]
    assert module.look([Encoded(cut_off)])[0].wrong is None
    assert module.look([Encoded(cut_off)], deep=True)[0].wrong.startswith("broken: ")
    other = content(Image.fromarray(noise(24, 24)), compress_level=1)
    assert other != whole
    plain, deep = (module.look([Encoded(whole), Encoded(other)], deep) for deep in (False, True))
    assert plain[0].hash != plain[1].hash and deep[0].hash == deep[1].hash
    turned = content(Image.fromarray(noise(24, 24)[::-1]))
    assert module.look([Encoded(turned)], deep=True)[0].hash != deep[0].hash


def test_modes_and_formats_are_counted(tmp_path, cache):
    for name, mode in [("a.png", "L"), ("b.png", "L"), ("c.bmp", "RGB"), ("d.png", "RGB")]:
        save(tmp_path / name, picture(9, mode=mode))
    source = module.Source(
        "a kind", "here", None, lambda: listing([f.read_bytes() for f in sorted(tmp_path.glob("*.*"))])
    )
    seen = module.scan(source, cache, Request(), 1)
    rows = np.arange(4)
    assert seen.of_kind(rows, 0) == {"L": 2, "RGB": 2} and seen.of_kind(rows, 1) == {"PNG": 3, "BMP": 1}
    assert seen.of_kind(rows[:2], 0) == {"L": 2}


def test_a_source_that_has_no_signature_is_looked_through_every_time(monkeypatch, looked, cache):
    monkeypatch.setitem(NAMED, "made", lambda: listing([content(picture(1))]))
    find("made")
    find("made")
    assert looked == ["bytes", "bytes"] and not (cache / "scans").exists()


def test_arrays_are_looked_through_again_only_if_they_changed(monkeypatch, looked):
    pictures, labels = [np.arange(16, dtype=np.uint8).reshape(4, 4)] * 2, [0, 1]
    monkeypatch.setitem(NAMED, "made", lambda: of_arrays(pictures, labels, ["a", "b"]))
    first = find("made")
    looked.clear()
    same(first, find("made"))
    assert looked == []
    pictures[:] = [pixels.reshape(2, 8) for pixels in pictures]
    assert find("made").shape == (1, 2, 8) and looked == ["bytes", "bytes"]
    looked.clear()
    labels.reverse()
    assert find("made").labels.tolist() == [1, 0] and looked == ["bytes", "bytes"]


def test_pictures_are_read_so_many_or_so_many_bytes_at_a_time():
    rows = np.arange(3, 300)
    parts = chunks(rows, None)
    assert np.array_equal(np.concatenate(parts), rows) and [len(part) for part in parts] == [CHUNK] * 4 + [41]
    sizes = np.full(300, CHUNK_BYTES // 10)
    sizes[100] = 7 * CHUNK_BYTES
    parts = chunks(rows, sizes)
    assert np.array_equal(np.concatenate(parts), rows)
    assert max(len(part) for part in parts) <= 11
    assert all(sizes[part].sum() <= 2 * CHUNK_BYTES for part in parts if 100 not in part)
    assert chunks(np.arange(0), None) == []


def test_thousands_of_small_files_are_read_many_at_a_time():
    parts = chunks(np.arange(6400), np.full(6400, 700))
    assert len(parts) <= 110
