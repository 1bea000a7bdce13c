"""What is kept in the cache is there whole or not at all, and is found by what it was made of."""

import fcntl
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg import files
from flowimg.data import cache as module
from flowimg.data.cache import cache_folder, keep_arrays, make_folder, name_of, pack, read_arrays, unpack, write_whole
from flowimg.errors import CacheError

few = settings(max_examples=40, deadline=None, derandomize=True)
names = st.text(st.characters(min_codepoint=1), max_size=20)  # a lone surrogate is a byte that is no UTF-8


# --- where it is, and how things in it are called --------------------------------------------------------------------


def test_the_folder_asked_for_comes_before_the_environment_and_that_before_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("FLOWIMG_CACHE", "/some/where")
    assert cache_folder("~/mine") == tmp_path / "mine"
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("FLOWIMG_CACHE")
    assert cache_folder() == tmp_path / ".cache/flowimg"
    monkeypatch.setenv("XDG_CACHE_HOME", "/else")
    assert cache_folder() == Path("/else/flowimg")


def test_names_tell_parts_apart():
    ways = [
        ("a", "b"), ("ab",), ("a", "b", None), ("b", "a"), (1, "1"), ("1", 1), (None,), ((),), ([],),
        (np.array([1, 2], np.uint8),), (np.array([1, 2, 3], np.uint8),),
        (np.array([1], np.uint8), np.array([2], np.uint8)),
    ]  # fmt: skip
    assert len({name_of(*way) for way in ways}) == len(ways)
    assert all(len(name_of(*way)) == 32 and set(name_of(*way)) <= set("0123456789abcdef") for way in ways)
    assert name_of("a", 1, np.arange(3)) == name_of("a", 1, np.arange(3))


@few
@given(texts=st.lists(names, max_size=9))
def test_texts_come_back_from_their_bytes(texts):
    valid = [text.encode("utf-8", "replace").decode() for text in texts]
    assert unpack(pack(valid)) == valid


def test_names_of_files_that_are_no_text_come_back():
    odd = [os.fsdecode(b"\xff\xfe.png"), "plain.png", "", "\N{SNOWMAN}\n.png"]
    assert unpack(pack(odd)) == odd and name_of(odd[0]) != name_of(odd[1])
    assert unpack(pack([])) == []


# --- single files ----------------------------------------------------------------------------------------------------


def test_arrays_come_back(tmp_path):
    keep_arrays(tmp_path / "deep/er/a.npz", numbers=np.arange(5), flags=np.array([True, False]))
    kept = read_arrays(tmp_path / "deep/er/a.npz")
    assert kept["numbers"].tolist() == [0, 1, 2, 3, 4] and kept["flags"].tolist() == [True, False]
    assert [file.name for file in (tmp_path / "deep/er").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_as_good_as_none(tmp_path, share):
    file = tmp_path / "a.npz"
    keep_arrays(file, numbers=np.arange(5000))
    os.truncate(file, int(file.stat().st_size * share))
    assert read_arrays(file) is None
    assert read_arrays(tmp_path / "b.npz") is None


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", odd=np.array([{"a": 1}], dtype=object))
    assert read_arrays(tmp_path / "a.npz") is None


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    file = tmp_path / "a"
    write_whole(file, lambda opened: opened.write(b"first"))

    def fails(opened):
        opened.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(file, fails)
    assert file.read_bytes() == b"first" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.path.exists(tmp_path / "a")))
    write_whole(tmp_path / "a", lambda opened: opened.write(b"x"))
    assert done[0] is False and (tmp_path / "a").read_bytes() == b"x"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    keep_arrays(tmp_path / "file/a.npz", numbers=np.arange(3))
    assert read_arrays(tmp_path / "file/a.npz") is None


# --- folders ---------------------------------------------------------------------------------------------------------


def two_files(folder):
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")


def never(folder):
    raise AssertionError("made a second time")


def inside(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_once(tmp_path):
    make_folder(tmp_path / "deep/a", 10, two_files)
    make_folder(tmp_path / "deep/a", 10, never)
    assert inside(tmp_path / "deep/a") == ["one", "two"] and inside(tmp_path / "deep") == ["a", "a.lock"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_folder_that_could_not_be_filled_is_not_there(tmp_path, error):
    def fails(folder):
        two_files(folder)
        raise error

    with pytest.raises(type(error)):
        make_folder(tmp_path / "a", 10, fails)
    assert inside(tmp_path) == ["a.lock"]
    make_folder(tmp_path / "a", 10, two_files)
    assert inside(tmp_path / "a") == ["one", "two"]


def test_everything_is_on_the_disk_before_a_folder_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", lambda path, lenient: synced.append((path.name, (tmp_path / "a").exists())))
    make_folder(tmp_path / "a", 10, two_files)
    before = [name for name, there in synced if not there]
    assert {"one", "two"} < set(before) and len(before) == 3  # and the folder that they are in
    assert (tmp_path.name, True) in synced  # and then that it has its name


def test_a_disk_without_room_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    with pytest.raises(CacheError) as caught:
        make_folder(tmp_path / "a", 5 * 2**30, never)
    said = str(caught.value)
    assert "needs 5.0 GiB" in said and "3.0 GiB free" in said and str(tmp_path) in said
    assert "data.cache" in said and "$FLOWIMG_CACHE" in said and caught.value.exit_status == 4
    assert inside(tmp_path) == ["a.lock"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot be written"):
        make_folder(tmp_path / "file/a", 10, two_files)


def test_what_dead_builders_left_is_swept_and_others_are_let_be(tmp_path):
    host, old = socket.gethostname(), time.time() - module.OLD - 60
    dead = subprocess.Popen(["true"])
    dead.wait()
    swept = [f".a.{host}.{dead.pid}.0000", f".b.{host}.{dead.pid}.abcd", ".a.elsewhere.1.0000"]
    kept = [".a.elsewhere.2.0000", f".a.{host}.{os.getpid()}.0000", ".ab", "a2"]
    for name in (*swept, *kept):
        two_files_in = tmp_path / name
        two_files_in.mkdir()
        two_files(two_files_in)
    for file in (*(tmp_path / ".a.elsewhere.1.0000").iterdir(), tmp_path / ".a.elsewhere.1.0000"):
        os.utime(file, (old, old))
    os.utime(tmp_path / ".a.elsewhere.2.0000", (old, old))  # what is in it is still being written
    make_folder(tmp_path / "a", 10, two_files)
    assert inside(tmp_path) == sorted([*kept, "a", "a.lock"])


def test_of_two_at_once_one_makes_it_and_the_other_waits(tmp_path, capsys):
    began, go_on, made = threading.Event(), threading.Event(), []

    def slowly(folder):
        made.append(1)
        began.set()
        assert go_on.wait(10)
        two_files(folder)

    one = threading.Thread(target=make_folder, args=(tmp_path / "a", 10, slowly))
    one.start()
    assert began.wait(10)
    two = threading.Thread(target=make_folder, args=(tmp_path / "a", 10, never))
    two.start()
    two.join(0.2)
    assert two.is_alive() and not (tmp_path / "a").exists()
    go_on.set()
    one.join(10)
    two.join(10)
    assert inside(tmp_path / "a") == ["one", "two"] and made == [1]
    assert capsys.readouterr().err == "waiting   for another process that decodes the same pictures\n"


def test_a_builder_that_lives_is_not_swept_where_there_are_no_locks(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    def overtaken(folder):
        two_files(folder)
        make_folder(tmp_path / "a", 10, two_files)

    monkeypatch.setattr(fcntl, "flock", unknown)
    make_folder(tmp_path / "a", 10, overtaken)
    assert inside(tmp_path / "a") == ["one", "two"]


@pytest.mark.parametrize("locks", [True, False])
def test_the_first_of_two_machines_is_kept(tmp_path, monkeypatch, locks):
    if not locks:  # as some network disks have it

        def unknown(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", unknown)

    def overtaken(folder):
        two_files(folder)
        (tmp_path / "a").mkdir()
        (tmp_path / "a/theirs").write_text("3")

    make_folder(tmp_path / "a", 10, overtaken)
    assert inside(tmp_path / "a") == ["theirs"] and inside(tmp_path) == ["a", "a.lock"]
