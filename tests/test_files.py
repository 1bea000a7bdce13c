"""Files and folders are there whole, as they were or as they are now, whatever ends their writer; and the lock."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from flowimg import files
from flowimg.data.cache import keep_arrays, make_folder, read_arrays
from flowimg.files import aside_of, existing, filled, lock, read_json, write_json, write_text, written

FULL = OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    """All files under a folder, and what is in them."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def child(code, *given):
    """Python that runs this code, with these words as `given`."""
    start = "import os, signal, sys\nfrom pathlib import Path\nfrom flowimg import files\n_, *given = sys.argv\n"
    kill = "def die(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + kill + code, *map(str, given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def killed(code, *given):
    """The process id of a child that ran this code until it was killed in the middle."""
    process = child(code, *given)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return process.pid


@pytest.fixture
def done(tmp_path, monkeypatch):
    """What the system was asked to sync (a file with its size) and to rename, in order."""
    told = []
    fsync = os.fsync

    def recorded_sync(descriptor):
        known = os.fstat(descriptor)
        path = next(path for path in [tmp_path, *tmp_path.rglob("*")] if os.path.samestat(path.stat(), known))
        told.append(("sync", path, None if path.is_dir() else known.st_size))
        fsync(descriptor)

    def recorded(kind):
        do = getattr(os, kind)
        return lambda one, other: (told.append(("rename", Path(one), Path(other))), do(one, other))[1]

    monkeypatch.setattr(os, "fsync", recorded_sync)
    for kind in ("replace", "rename"):
        monkeypatch.setattr(os, kind, recorded(kind))
    return told


def test_a_name_aside_tells_whose_it_is_and_no_two_are_the_same(tmp_path):
    path = tmp_path / "a.txt"
    one, other = aside_of(path), aside_of(path)
    assert one != other and one.parent == tmp_path
    opening, _, rest = one.name.rpartition(f".{os.getpid()}.")
    assert opening == f".a.txt.{socket.gethostname()}" and rest.endswith(".tmp") and rest.count(".") == 1


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_is_written_and_written_over(tmp_path, synced):
    for text in ("first", "second"):
        write_text(tmp_path / "a", text, synced)
        assert contents(tmp_path) == {"a": text}


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("error", [FULL, ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [{}, {"a": "old"}])
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_aside(tmp_path, before, error, synced):
    for name, text in before.items():
        (tmp_path / name).write_text(text)

    def fails():
        with written(tmp_path / "a", synced) as aside:
            aside.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        fails()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_file_that_cannot_be_synced_or_renamed_is_as_it_was(tmp_path, monkeypatch, what):
    def fails(*_):
        raise FULL

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, what, fails)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "new", synced=True)
    assert contents(tmp_path) == {"a": "old"}


WRITE = """
path, point = Path(given[0]), given[1]
if point == "written":
    os.replace = die
with files.written(path, synced=True) as aside:
    aside.write_text("ne")
    if point == "half":
        die()
    aside.write_text("new")
"""


@pytest.mark.parametrize(("point", "left"), [("half", "ne"), ("written", "new")])
def test_a_writer_that_is_killed_half_way_leaves_what_was_there(tmp_path, point, left):
    write_text(tmp_path / "a", "old")
    number = killed(WRITE, tmp_path / "a", point)
    aside = next(path for path in tmp_path.iterdir() if path.name != "a")
    assert contents(tmp_path) == {"a": "old", aside.name: left}
    assert aside.name.startswith(f".a.{socket.gethostname()}.{number}.") and aside.suffix == ".tmp"


def test_a_synced_file_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(tmp_path, done):
    write_text(tmp_path / "a", "new", synced=True)
    (first, aside, size), second, third = done
    assert (first, aside.parent, size) == ("sync", tmp_path, 3) and aside.name.startswith(".a.")
    assert second == ("rename", aside, tmp_path / "a") and third == ("sync", tmp_path, None)


def test_a_file_that_need_not_be_synced_is_only_renamed(tmp_path, done):
    write_text(tmp_path / "a", "new")
    assert [(kind, other) for kind, _, other in done] == [("rename", tmp_path / "a")]


def test_who_reads_while_it_is_written_sees_one_or_the_other(tmp_path):
    path, over, seen = tmp_path / "a", threading.Event(), set()
    ways = ["a" * 100_000, "b" * 50_000]
    write_text(path, ways[0])

    def read():
        while not over.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        write_text(path, ways[number % 2])
    over.set()
    reader.join()
    assert seen and seen <= set(ways)


# --- folders ---------------------------------------------------------------------------------------------------------


def fill(folder, text):
    (folder / "deep").mkdir()
    (folder / "one").write_text(text)
    (folder / "deep" / "two").write_text(text)


def of(text, where="a/"):
    return {f"{where}one": text, f"{where}deep/two": text}


def test_a_folder_replaces_what_was_there_whole(tmp_path):
    with filled(tmp_path / "a") as aside:
        fill(aside, "old")
        (aside / "more").write_text("old")
        assert not (tmp_path / "a").exists()
    assert contents(tmp_path) == {**of("old"), "a/more": "old"}
    with filled(tmp_path / "a") as aside:
        fill(aside, "new")
        assert contents(tmp_path / "a") == {**of("old", ""), "more": "old"}
    assert contents(tmp_path) == of("new") and names(tmp_path) == ["a"]


def test_a_folder_that_another_made_first_is_kept_where_nothing_is_to_be_replaced(tmp_path):
    with filled(tmp_path / "a", replace=False) as aside:
        fill(aside, "mine")
        (tmp_path / "a").mkdir()
        fill(tmp_path / "a", "theirs")
    assert contents(tmp_path) == of("theirs") and names(tmp_path) == ["a"]
    with filled(tmp_path / "b", replace=False) as aside:
        fill(aside, "mine")
    assert contents(tmp_path / "b") == of("mine", "") and names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("error", [FULL, ValueError("no"), KeyboardInterrupt()])
def test_a_folder_that_could_not_be_filled_leaves_what_was_there_and_nothing_aside(tmp_path, error, replace):
    def fails(name):
        with filled(tmp_path / name, replace) as aside:
            fill(aside, "new")
            raise error

    (tmp_path / "a").mkdir()
    fill(tmp_path / "a", "old")
    for name in ("a", "b"):
        with pytest.raises(type(error)):
            fails(name)
    assert contents(tmp_path) == of("old") and names(tmp_path) == ["a"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_that_cannot_be_renamed_raises_and_leaves_nothing_aside(tmp_path, monkeypatch, replace):
    def fails(*_):
        raise OSError(13, "Permission denied")

    def rename():
        with filled(tmp_path / "a", replace) as aside:
            fill(aside, "new")

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="Permission denied"):
        rename()
    assert names(tmp_path) == []


FILL = """
target, point = Path(given[0]), given[1]
rename, sync = os.rename, files.sync
def renamed(one, other):
    if point == "synced":
        die()
    rename(one, other)
    if point == ("new name" if str(other) == str(target) else "old name"):
        die()
def synced(path, *how):
    sync(path, *how)
    if point == "named" and path == target.parent:
        die()
os.rename, files.sync = renamed, synced
with files.filled(target) as aside:
    if point == "empty":
        die()
    (aside / "deep").mkdir()
    (aside / "one").write_text("new")
    if point == "half":
        die()
    (aside / "deep" / "two").write_text("new")
"""


@pytest.mark.parametrize(
    ("point", "before"),
    [
        *[(point, False) for point in ("empty", "half", "synced", "new name", "named")],
        *[(point, True) for point in ("empty", "half", "synced", "old name", "new name", "named")],
    ],
)
def test_a_folder_whose_writer_is_killed_is_there_whole_or_not_at_all(tmp_path, point, before):
    target = tmp_path / "a"
    if before:
        target.mkdir()
        fill(target, "old")
    number = killed(FILL, target, point)
    aside = [path for path in tmp_path.iterdir() if path.name != "a"]
    assert all(path.name.startswith(f".a.{socket.gethostname()}.{number}.") for path in aside)
    if point in ("new name", "named"):
        assert contents(target) == of("new", "")
        assert [contents(path) for path in aside] == ([of("old", "")] if before else [])
    elif point == "old name":  # what was there is whole next to its name, and so is what comes
        assert not target.exists()
        assert sorted([contents(path)["one"], contents(path)["deep/two"]] for path in aside) == [
            ["new", "new"],
            ["old", "old"],
        ]
    else:
        assert (contents(target) == of("old", "")) if before else not target.exists()
        assert len(aside) == 1


@pytest.mark.parametrize("before", [False, True])
def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(tmp_path, done, before):
    target = tmp_path / "a"
    if before:
        target.mkdir()
        fill(target, "old")
    with filled(target) as aside:
        fill(aside, "new")
    told = [(kind, path.relative_to(aside) if path.is_relative_to(aside) else path) for kind, path, _ in done]
    inside, after = told[:4], told[4:]
    assert {(kind, str(path)) for kind, path in inside} == {("sync", name) for name in ("deep", "deep/two", "one", ".")}
    assert inside[-1] == ("sync", Path())  # the list of the files last
    assert all(size == 3 for kind, path, size in done if kind == "sync" and path.name in ("one", "two"))
    assert after == [*([("rename", target)] if before else []), ("rename", Path()), ("sync", tmp_path)]
    assert done[-2] == ("rename", aside, target)


@pytest.fixture(params=["file", "folder"])
def unsynced(request, monkeypatch):
    """A disk that syncs no files, or no folders."""
    fsync = os.fsync

    def fails(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (request.param == "folder"):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)


def test_what_must_survive_is_an_error_where_it_cannot_be_synced(tmp_path, unsynced):
    with pytest.raises(OSError, match="Invalid argument"):
        write_text(tmp_path / "a", "new", synced=True)
    with pytest.raises(OSError, match="Invalid argument"), filled(tmp_path / "b") as aside:
        fill(aside, "new")
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


def test_what_can_be_made_again_is_written_also_where_it_cannot_be_synced(tmp_path, unsynced):
    with written(tmp_path / "a", synced=True, lenient=True) as aside:
        aside.write_text("new")
    with filled(tmp_path / "b", replace=False, lenient=True) as aside:
        fill(aside, "new")
    assert contents(tmp_path) == {"a": "new", **of("new", "b/")} and names(tmp_path) == ["a", "b"]


def test_the_cache_is_written_also_where_it_cannot_be_synced(tmp_path, unsynced):
    keep_arrays(tmp_path / "a.npz", numbers=np.arange(3))
    make_folder(tmp_path / "b", 0, lambda folder: fill(folder, "new"))
    assert read_arrays(tmp_path / "a.npz")["numbers"].tolist() == [0, 1, 2]
    assert contents(tmp_path / "b") == of("new", "")


def test_json_is_read_back_and_what_is_no_object_is_an_empty_one(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) == {}
    for value, read in (({"a": [1, None]}, {"a": [1, None]}), ([1], {}), (None, {})):
        write_json(path, value)
        assert read_json(path) == read
    for text in ('{"a": ', "", b"\xff"):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert read_json(path) == {}


def test_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert existing(tmp_path) == existing(tmp_path / "a" / "b") == existing(Path("a/b")) == tmp_path
    (tmp_path / "a").write_text("x")
    assert existing(Path("a")) == tmp_path / "a"


# --- the lock --------------------------------------------------------------------------------------------------------

HOLD = """
with files.lock(Path(given[0]), lambda: print("busy", flush=True)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A process that holds the lock of this test, until it is killed or its input ends."""
    with child(HOLD, tmp_path / "lock") as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_cannot_have_the_lock_is_told_once_waits_and_gives_up_after_its_patience(tmp_path, held):
    told, began = [], time.monotonic()
    with (
        pytest.raises(TimeoutError, match="is held by another process"),
        lock(tmp_path / "lock", lambda: told.append(time.monotonic()), 0.7),
    ):
        raise AssertionError("two held it at once")
    assert time.monotonic() - began > 0.7 and len(told) == 1
    assert held.poll() is None


def test_a_second_process_waits_until_the_first_has_done(tmp_path, held):
    with child(HOLD, tmp_path / "lock") as second:
        assert second.stdout.readline() == "busy\n"  # and so it waits
        held.stdin.close()
        assert second.stdout.readline() == "held\n"
    assert held.wait() == second.returncode == 0


def test_the_lock_of_a_process_that_is_killed_is_released(tmp_path, held):
    with lock(tmp_path / "lock", held.kill):
        assert held.wait() == -signal.SIGKILL


def test_a_lock_can_be_had_again_also_after_an_error(tmp_path):
    def never():
        raise AssertionError("somebody holds it still")

    def fails():
        with lock(tmp_path / "lock", never, 0.0):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    with lock(tmp_path / "lock", never, 0.0):
        pass


@pytest.mark.parametrize("how", ["no locks on this file system", "no locks in this system"])
def test_where_there_are_no_locks_nothing_is_held(tmp_path, monkeypatch, how):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    if how == "no locks in this system":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", unknown)
    with files.lock(tmp_path / "lock", unknown, 0.0), files.lock(tmp_path / "lock", unknown, 0.0):
        pass
