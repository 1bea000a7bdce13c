import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import datasets
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from crash_store import POINTS
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import content, decode, find, listing, noise, numbers, picture, save, stored
from PIL import Image

from flowimg.data import listing as listing_module
from flowimg.data import store as store_module
from flowimg.data import workers
from flowimg.data.arrays import Reading
from flowimg.data.batches import ImageBatches
from flowimg.data.sources.known import NAMED
from flowimg.data.store import Images, fingerprint, hold_out
from flowimg.errors import CacheError, DataError
from flowimg.spaces.depth import BYTES, WORDS, Depth
from flowimg.spaces.pixels import Pixels

few = settings(max_examples=40, deadline=None, derandomize=True)
SPACE = Pixels((1, 16, 16))
LEVELS = torch.arange(256, dtype=torch.uint8)


def numbered(n, labels=True):
    # the pixels of picture i, and its label, are i
    index = torch.arange(n)
    pixels = torch.stack([index % 256, index // 256], 1).to(torch.uint8)[:, :, None, None].expand(n, 2, 3, 3)
    return Images(pixels, index if labels else None, ("some", "names"))


def names(images):
    return (images.pixels[:, 0, 0, 0].long() + 256 * images.pixels[:, 1, 0, 0].long()).tolist()


def test_grey_levels_go_to_floats_and_come_back_as_they_were():
    assert torch.equal(SPACE.decode(SPACE.encode(LEVELS)), LEVELS)


def test_grey_levels_are_spread_evenly_from_minus_one_to_one():
    x = SPACE.encode(LEVELS)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x, torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)


def test_values_outside_are_clipped_and_values_between_rounded():
    x = SPACE.encode(LEVELS)
    x = torch.tensor([-7.0, -1.0, 1.0, 1.01, 1e9, x[10] + 0.4 / 127.5, x[10] + 0.6 / 127.5])
    assert SPACE.decode(x).tolist() == [0, 0, 255, 255, 255, 10, 11]


@few
@given(n=st.integers(2, 600), share=st.floats(0, 1))
def test_rows_kept_apart_are_so_many_different_ones_in_order(n, share):
    count = int(share * n)
    apart = hold_out(n, count)
    assert apart.dtype == torch.int64 and apart.shape == (count,)
    assert apart.tolist() == sorted(set(apart.tolist()))
    assert count == 0 or (apart[0] >= 0 and apart[-1] < n)


def test_kept_apart_are_the_same_every_time_and_fewer_are_among_more():
    assert torch.equal(hold_out(500, 50), hold_out(500, 50))
    assert set(hold_out(500, 20).tolist()) < set(hold_out(500, 50).tolist())


def test_kept_apart_come_from_all_over_the_set():
    # a set sorted by class must not lose its first or last class
    assert torch.bincount(hold_out(1000, 100) // 100, minlength=10).min() >= 3


@pytest.mark.parametrize("labels", [True, False])
def test_take_keeps_the_order_asked_for(labels):
    taken = numbered(10, labels).take(torch.tensor([7, 2, 2]))
    assert names(taken) == [7, 2, 2]
    assert (taken.labels.tolist() == [7, 2, 2]) if labels else taken.labels is None


def test_moving_to_a_device_keeps_everything():
    moved = numbered(5).to(torch.device("meta"))
    assert moved.pixels.device.type == moved.labels.device.type == "meta"
    assert moved.classes == ("some", "names")
    assert numbered(5, labels=False).to(torch.device("cpu")).labels is None


# --- decoded once ----------------------------------------------------------------------------------------------------


def fill(folder, labels="aabbc", start=0):
    """A folder a class, pictures numbered in the order of their names."""
    for number, label in enumerate(labels):
        save(folder / label / f"{number:03d}.png", picture(start + number))
    return folder


def truncated(number, kind="PNG"):
    """A picture whose header is whole and whose pixels end in the middle."""
    whole = content(Image.fromarray(noise(24, 24) // 2 + number), kind)
    return whole[: len(whole) * 2 // 3]


def none_decodes(*_):
    raise AssertionError("decoded again")


def builds(folder):
    return sorted(path.name for path in (folder / "stores").iterdir() if not path.name.endswith(".lock"))


def test_what_was_decoded_is_found_again_and_not_decoded(tmp_path, cache, monkeypatch):
    found = find(fill(tmp_path / "a"))
    first = stored(found)
    monkeypatch.setattr(store_module, "decode_into", none_decodes)
    again = stored(find(tmp_path / "a"))
    assert torch.equal(again.images.pixels, first.images.pixels)
    assert torch.equal(again.images.labels, first.images.labels)
    assert again.images.classes == first.images.classes == ("a", "b", "c")
    assert again.fingerprint == first.fingerprint == fingerprint(first.images)
    assert again.folder == first.folder and first.folder.parent == cache / "stores"


def test_what_was_decoded_and_cannot_be_read_is_no_reason_to_decode_it_again(tmp_path, monkeypatch):
    save(tmp_path / "one/0.png", picture(0))
    folder = stored(find(tmp_path / "one")).folder

    def broken(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store_module.np, "memmap", broken)
    with pytest.raises(CacheError, match="cannot be read: Input/output error"):
        stored(find(tmp_path / "one"))
    assert (folder / "pixels").exists()


def test_a_folder_that_was_moved_is_found_decoded(tmp_path, monkeypatch):
    first = stored(find(fill(tmp_path / "a")))
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setattr(store_module, "decode_into", none_decodes)
    moved = stored(find(tmp_path / "b"))
    assert (moved.folder, moved.fingerprint) == (first.folder, first.fingerprint)


def test_other_pixels_labels_or_shapes_are_other_stores(tmp_path):
    folder = fill(tmp_path / "a")
    ways = [
        stored(find(folder)),
        stored(find(folder, labels=False)),
        stored(find(folder, classes=["a", "b"])),
        stored(find(folder, first=4)),
        stored(find(folder, channels="grey")),
        stored(find(folder, shape=(4, 4))),
        stored(find(folder, shape=(4, 4)), "pad"),
        stored(find(folder, shape=(4, 4)), cut_from=(5, 5)),
        stored(find(folder), background=(0, 0, 0)),
    ]
    ways.append(stored(find(fill(tmp_path / "b", "aabcc"))))  # the same pictures, one in another class
    ways.append(stored(find(fill(tmp_path / "c", start=5))))  # other pictures of the same classes
    assert numbers(ways[-1].images) == [5, 6, 7, 8, 9]
    assert len({made.folder for made in ways}) == len(ways)
    shapes = [tuple(made.images.pixels.shape) for made in ways]
    assert shapes[5:8] == [(5, 3, 4, 4), (5, 3, 4, 4), (5, 3, 5, 5)] and shapes[4] == (5, 1, 6, 6)
    names = {made.fingerprint for made in ways}
    assert len(names) == len(ways) - 2  # even pictures are alike cropped and padded, and over any background


def test_a_fingerprint_is_of_pixels_labels_and_names():
    images = numbered(7)
    others = [
        images._replace(pixels=images.pixels.flip(0)),
        images._replace(labels=images.labels.flip(0)),
        images._replace(labels=None),
        images._replace(classes=("some", "more")),
        images._replace(pixels=images.pixels.reshape(7, 2, 9, 1)),
    ]
    assert len({fingerprint(other) for other in [images, *others]}) == 6
    assert fingerprint(numbered(7)) == fingerprint(images) and len(fingerprint(images)) == 16


def test_what_is_done_to_the_array_does_not_reach_the_store(tmp_path):
    images = stored(find(fill(tmp_path / "a"))).images
    images.pixels.zero_()
    assert numbers(decode(find(tmp_path / "a"))) == [0, 1, 2, 3, 4]


def test_more_pixels_are_kept_to_cut_windows_from(tmp_path):
    save(tmp_path / "a.png", Image.fromarray(noise(16, 16)))
    found = find(tmp_path, shape=(8, 8))
    assert found.shape == (3, 8, 8)
    whole = decode(found, cut_from=(16, 16)).pixels[0].permute(1, 2, 0).numpy()
    assert (whole == noise(16, 16)).all()


def test_by_several_processes_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "FIRST", -1)
    monkeypatch.setattr(listing_module, "CHUNK", 3)
    folder = fill(tmp_path / "a", "abcdefghij" * 4)
    save(folder / "c/002.png", picture(2).resize((9, 9)))
    (folder / "d/003.png").write_bytes(truncated(3))
    found = find(folder, shape=(6, 6), max_bad=0.5, workers=2)
    spread_out = stored(found, max_bad=0.5, workers=2)
    assert numbers(spread_out.images) == [int(Path(listing_name(found, row)).stem) for row in found.rows if "003" not in
                                          listing_name(found, row)]  # fmt: skip
    shutil.rmtree(spread_out.folder)
    assert stored(found, max_bad=0.5).fingerprint == spread_out.fingerprint


def listing_name(found, row):
    return found.open().name(int(row))


# --- bad pictures that decoding finds --------------------------------------------------------------------------------


@few
@given(bad=st.lists(st.booleans(), min_size=1, max_size=30), grey=st.booleans(), move=st.integers(1, 9000))
def test_whichever_pictures_are_bad_the_others_keep_their_labels(bad, grey, move):
    files = [
        truncated(number) if wrong else content(picture(number, (24, 24), "L" if grey else "RGB"))
        for number, wrong in enumerate([*bad, False])
    ]
    rows = listing(files, range(len(files)), map(str, range(len(files))))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWIMG_CACHE", folder)
        patch.setitem(NAMED, "made", lambda: rows)
        patch.setattr(store_module, "BLOCK", move)  # so many bytes are moved at a time, or one picture
        found = find("made", max_bad=0.99)
        made = stored(found, max_bad=0.99)
        good = [number for number, wrong in enumerate([*bad, False]) if not wrong]
        assert numbers(made.images) == good == made.images.labels.tolist()
        assert made.images.pixels.shape == (len(good), *found.shape)
        assert [name for name, _ in made.bad] == [f"picture {n}" for n, wrong in enumerate(bad) if wrong]
        assert all(reason.startswith("broken: ") for _, reason in made.bad)
        assert stored(found, max_bad=0.99).bad == made.bad
        assert (made.folder / "pixels").stat().st_size == made.images.pixels.numel()


def test_bad_pictures_of_both_kinds_are_counted_together(tmp_path):
    folder = fill(tmp_path / "a", "a" * 18)
    (folder / "b").mkdir()
    (folder / "b/empty.png").write_bytes(b"")
    (folder / "b/half.png").write_bytes(truncated(0))
    with pytest.raises(DataError, match=r"2 of 20 pictures cannot be used, more than data\.max_bad 0\.09"):
        stored(find(folder, max_bad=0.09, shape=(6, 6)), max_bad=0.09)
    made = stored(find(folder, max_bad=0.1, shape=(6, 6)), max_bad=0.1)
    assert numbers(made.images) == list(range(18))
    with pytest.raises(DataError, match="2 of 20"):  # also of a store that is there
        stored(find(folder, max_bad=0.09, shape=(6, 6)), max_bad=0.09)


def test_a_refused_store_leaves_nothing(tmp_path, cache):
    folder = fill(tmp_path / "a")
    (folder / "a/x.png").write_bytes(truncated(0))
    with pytest.raises(DataError):
        stored(find(folder, shape=(6, 6)))
    assert builds(cache) == []


def test_a_picture_that_changes_between_looking_and_decoding_is_said(tmp_path, cache):
    found = find(fill(tmp_path / "a"))
    save(tmp_path / "a/b/002.png", picture(77))
    with pytest.raises(DataError, match=r"b/002\.png changed since it was scanned: retry once"):
        stored(found)
    assert builds(cache) == []
    assert numbers(decode(find(tmp_path / "a"))) == [0, 1, 77, 3, 4]


def test_a_picture_that_goes_between_looking_and_decoding_is_said_and_no_store_lacks_it(tmp_path, cache):
    found = find(fill(tmp_path / "a"))
    (tmp_path / "a/b/002.png").rename(tmp_path / "002.png")
    with pytest.raises(DataError, match=r"b/002\.png could not be read now \(no such file.*retry once"):
        stored(found, max_bad=0.5)
    assert builds(cache) == []
    (tmp_path / "002.png").rename(tmp_path / "a/b/002.png")
    assert numbers(decode(find(tmp_path / "a"))) == [0, 1, 2, 3, 4]


# --- stores that are broken, full disks, processes that are killed ---------------------------------------------------


def harm(name, how):
    return pytest.param(name, how, id=f"{name} {how.__name__}")


def gone(file):
    file.unlink()


def cut_off(file):
    os.truncate(file, file.stat().st_size * 2 // 3)


def empty(file):
    os.truncate(file, 0)


def longer(file):
    with file.open("ab") as opened:
        opened.write(b"more")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *[harm("pixels", how) for how in (gone, cut_off, empty, longer)],
        *[harm("labels.npy", how) for how in (gone, cut_off, empty)],
        *[harm("store.json", how) for how in (gone, cut_off, empty)],
    ],
)
def test_a_store_that_is_not_whole_is_made_again(tmp_path, cache, name, how):
    found = find(fill(tmp_path / "a"))
    first = stored(found)
    wanted = first.fingerprint
    how(first.folder / name)
    again = stored(found)
    assert again.fingerprint == wanted and numbers(again.images) == [0, 1, 2, 3, 4]
    assert again.images.labels.tolist() == [0, 0, 1, 1, 2]
    assert builds(cache).count(again.folder.name) == 1


def test_a_store_that_is_broken_twice_is_made_twice(tmp_path):
    found = find(fill(tmp_path / "a"))
    for _ in range(3):
        made = stored(found)
        assert numbers(made.images) == [0, 1, 2, 3, 4]
        cut_off(made.folder / "pixels")


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 3 * 36 - 1))
    monkeypatch.setattr(store_module, "decode_into", none_decodes)
    found = find(fill(tmp_path / "a"))
    with pytest.raises(CacheError, match=r"make room, or name another folder by data\.cache or") as caught:
        stored(found)
    assert str(cache) in str(caught.value) and "MiB free" in str(caught.value) and caught.value.exit_status == 4
    monkeypatch.undo()
    monkeypatch.setenv("FLOWIMG_CACHE", str(cache))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 3 * 36))
    assert numbers(decode(found)) == [0, 1, 2, 3, 4]


def test_a_disk_that_fills_up_in_the_middle_is_said_and_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    found = find(fill(tmp_path / "a"))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "decode_into", full)
        with pytest.raises(CacheError, match="No space left on device"):
            stored(found)
    assert builds(cache) == []
    assert numbers(decode(found)) == [0, 1, 2, 3, 4]


def crash(mode, source, folder):
    command = [sys.executable, Path(__file__).parents[1] / "crash_store.py", mode, source, folder]
    here = Path(__file__).parents[2]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(here)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Twelve pictures of three classes, two of which cannot be decoded, and what is right of them."""
    folder = tmp_path_factory.mktemp("spoilt") / "a"
    for number in range(12):
        save(folder / "abc"[number % 3] / f"{number:03d}.png", picture(number, (24, 24)))
    for number in (4, 11):
        (folder / "abc"[number % 3] / f"{number:03d}.png").write_bytes(truncated(number))
    order = [0, 3, 6, 9, 1, 7, 10, 2, 5, 8]  # class by class
    return folder, order, [0] * 4 + [1] * 3 + [2] * 3


@pytest.fixture(scope="module")
def killed(spoilt, tmp_path_factory):
    """Caches of processes that were killed in the middle, a folder for each point."""
    folder = tmp_path_factory.mktemp("killed")
    said, _ = crash("kill", spoilt[0], folder)
    assert said == [f"{len(POINTS)} {len(POINTS)}"]  # each died where it was to
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_build_that_was_killed_is_made_again_and_right(point, spoilt, killed, monkeypatch):
    cache = killed / point
    monkeypatch.setenv("FLOWIMG_CACHE", str(cache))
    if point not in ("half of the scan", "looked at a third", "the scan"):
        left = [path for path in (cache / "stores").iterdir() if path.name.startswith(".")]
        assert len(left) == (point != "renamed")  # what it left half made
    source, order, labels = spoilt
    made = stored(find(source, max_bad=0.5), max_bad=0.5)
    assert numbers(made.images) == order and made.images.labels.tolist() == labels
    assert made.fingerprint == fingerprint(made.images)
    assert {Path(name).stem for name, _ in made.bad} == {"004", "011"}
    assert builds(cache) == [made.folder.name]


def test_two_processes_at_once_make_one_store_and_both_are_right(spoilt, cache):
    source, order, labels = spoilt
    said, waited = crash("twice", source, cache)
    assert len(said) == 2 and said[0] == said[1]
    name, count, total = said[0].split()
    assert (int(count), int(total)) == (len(order), sum(labels))
    assert "waiting   for another process that decodes the same pictures" in waited
    made = stored(find(source, max_bad=0.5), max_bad=0.5)
    assert made.fingerprint == name and numbers(made.images) == order
    assert builds(cache) == [made.folder.name]


# --- other depths ----------------------------------------------------------------------------------------------------

UNIT = Depth("float32", 0, 1)


def levels():
    """Every number of 16 bits once, as four pictures of (1, 128, 128)."""
    return np.random.default_rng(0).permutation(65536).astype(np.uint16).reshape(4, 1, 128, 128)


def saved(folder, pictures, kind):
    """Pictures (N, C, H, W) as files, written by others than us."""
    folder.mkdir()
    for number, planes in enumerate(pictures):
        file, last = folder / f"{number}.{kind}", np.ascontiguousarray(planes.transpose(1, 2, 0)).squeeze()
        if kind == "npy":
            np.save(file, planes)
        elif kind == "png":
            file.write_bytes(imagecodecs.png_encode(last))
        else:
            tifffile.imwrite(file, planes if len(planes) > 1 else last, photometric="minisblack")
    return folder


def batches(images, space, **options):
    usual = {"flip": False, "seed": 3, "batch_size": len(images.pixels), "device": torch.device("cpu")}
    return ImageBatches(images, torch.arange(0), space=space, **(usual | options))


@pytest.mark.parametrize("kind", ["png", "npy", "tif"])
def test_all_65536_levels_survive_from_file_to_store_to_x_to_file(tmp_path, kind):
    folder = saved(tmp_path / "a", levels(), kind)
    found = stored(find(folder, depth=WORDS), reading=Reading(WORDS))
    assert found.images.pixels.dtype == torch.uint16 and found.folder.joinpath("pixels").stat().st_size == 2 * 65536
    assert np.array_equal(found.images.pixels.numpy(), levels())
    space = Pixels((1, 128, 128), WORDS)
    ordered = batches(found.images, space)
    x = ordered(0, range(4))[0]
    rows = ordered.rows(0, range(4))
    for form in ("png", "tiff"):
        files = [space.as_file(row, form) for row in space.rows(x).numpy()]
        read = imagecodecs.png_decode if form == "png" else lambda file: tifffile.imread(io.BytesIO(file))
        assert np.array_equal(np.stack([read(file) for file in files]), levels()[rows, 0])


def test_floats_survive_from_file_to_store_to_x(tmp_path):
    pictures = np.random.default_rng(1).random((3, 1, 8, 9), np.float32)
    pictures[0, 0, 0, :2] = 0, 1
    found = stored(find(saved(tmp_path / "a", pictures, "tif"), depth=UNIT), reading=Reading(UNIT))
    assert found.images.pixels.dtype == torch.float32
    assert np.array_equal(found.images.pixels.numpy(), pictures)
    ordered = batches(found.images, Pixels((1, 8, 9), UNIT))
    x, rows = ordered(0, range(3))[0], ordered.rows(0, range(3))
    np.testing.assert_allclose(x, pictures[rows] * 2 - 1, atol=1e-7)
    assert np.array_equal(found.images.pixels.numpy(), pictures)  # nobody wrote to the store


@pytest.mark.parametrize("kind", ["tif", "npy"])
@pytest.mark.parametrize("depth", [WORDS, UNIT])
def test_five_channels_are_flipped_cut_and_augmented_as_they_are_stored(tmp_path, kind, depth):
    pictures = np.random.default_rng(2).random((12, 5, 10, 12))
    pictures = (pictures * depth.high).astype(depth.type)
    every = {"channels": "all", "depth": depth}
    found = stored(find(saved(tmp_path / "a", pictures, kind), **every), reading=Reading(depth, every=True))
    assert found.images.pixels.shape == (12, 5, 10, 12)
    pictures = pictures[[0, 1, 10, 11, *range(2, 10)]]  # in the order of their names
    assert np.array_equal(found.images.pixels.numpy(), pictures)
    ordered = batches(found.images, Pixels((5, 6, 7), depth), flip=True, window=(6, 7))
    x = ordered(0, range(12))[0].numpy()
    exact, seen = pictures.astype(np.float64) / depth.high * 2 - 1, set()
    for row, found_x in zip(ordered.rows(0, range(12)), x, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(exact[row], (6, 7), (1, 2))
        off = [np.abs(windows[..., ::step] - found_x[:, None, None]).max((0, 3, 4)) for step in (1, -1)]
        assert sum(int((o < 1e-6).sum()) for o in off) == 1
        seen.add(np.argmin(np.stack(off)))
    assert len(seen) > 8 and min(seen) < 5 * 6 <= max(seen)  # many corners, mirrored and not
    cond, other = (batches(found.images, Pixels((5, 10, 12), depth), augment=share)(0, range(12)) for share in (1.0, 0))
    assert cond[0].shape == other[0].shape and not torch.equal(cond[0], other[0])
    gray = Images(found.images.pixels[:, 3:4].clone(), None, ())
    alone = batches(gray, Pixels((1, 10, 12), depth), augment=1.0)(0, range(12))[0]
    assert torch.equal(alone[:, 0], cond[0][:, 3])  # each channel moves as a picture of its own would


def test_a_store_made_before_there_were_other_types_is_one_of_bytes(tmp_path, monkeypatch):
    fill(tmp_path / "a")
    first = stored(find(tmp_path / "a"))
    file = first.folder / "store.json"
    told = json.loads(file.read_text())
    assert told.pop("type") == "uint8"
    told["resize"] = {name: told["resize"][name] for name in ("channels", "shape", "resize", "background")}
    file.write_text(json.dumps(told))
    monkeypatch.setattr(store_module, "decode_into", none_decodes)
    again = stored(find(tmp_path / "a"))
    assert again.folder == first.folder and again.images.pixels.dtype == torch.uint8
    assert torch.equal(again.images.pixels, first.images.pixels) and again.fingerprint == first.fingerprint


def test_depths_ranges_and_channels_are_stores_of_their_own(tmp_path):
    folder = saved(tmp_path / "a", levels() >> 4, "png")
    depths = [BYTES, WORDS, Depth("uint16", 0, 4095), Depth("uint16", 0, 8191), Depth("float32", 0, 65535)]
    found = [stored(find(folder, depth=depth), reading=Reading(depth)) for depth in depths]
    found.append(stored(find(folder, depth=WORDS, channels="all"), reading=Reading(WORDS, every=True)))
    assert len({one.folder for one in found}) == 6
    for one in found[1:]:
        assert np.array_equal(one.images.pixels.numpy(), levels() >> 4)


def test_a_store_of_words_that_was_cut_off_is_made_again(tmp_path):
    found = find(saved(tmp_path / "a", levels(), "npy"), depth=WORDS)
    first = stored(found, reading=Reading(WORDS))
    with (first.folder / "pixels").open("r+b") as file:
        file.truncate(65536)  # as many bytes as numbers
    assert np.array_equal(stored(found, reading=Reading(WORDS)).images.pixels.numpy(), levels())


def test_bad_pictures_among_those_of_16_bits_are_left_out(tmp_path):
    folder = saved(tmp_path / "a", levels(), "npy")
    whole = (folder / "1.npy").read_bytes()
    (folder / "1.npy").write_bytes(whole[:-5])
    np.save(folder / "2.npy", np.full((1, 128, 128), -1, np.int32))  # known only once it is decoded
    found = find(folder, depth=WORDS, max_bad=0.5)
    assert [bad.reason for bad in found.bad] == ["broken: the array is cut off"]
    kept = stored(found, reading=Reading(WORDS), max_bad=0.5)
    assert np.array_equal(kept.images.pixels.numpy(), levels()[[0, 3]])
    assert [Path(bad.name).name for bad in kept.bad] == ["2.npy"] and "data.depth float" in kept.bad[0].reason


@pytest.mark.parametrize(
    ("dtype", "depth"), [("uint16", WORDS), ("float32", UNIT), ("uint16", Depth("uint16", 0, 4095))]
)
def test_arrays_of_a_table_are_stored_as_they_are(tmp_path, dtype, depth):
    pictures = (np.random.default_rng(0).random((4, 5, 6, 7)) * depth.high).astype(dtype)
    features = datasets.Features(pixels=datasets.Array3D((5, 6, 7), dtype))
    datasets.Dataset.from_dict({"pixels": list(pictures)}, features).to_parquet(tmp_path / "train.parquet")
    kept = stored(find(tmp_path, depth=depth), reading=Reading(depth)).images.pixels
    assert kept.dtype == getattr(torch, dtype) and np.array_equal(kept.numpy(), pictures)


def test_pictures_that_lacked_a_reader_are_decoded_anew_once_it_is_there(tmp_path, monkeypatch):
    save(tmp_path / "set/a.png", picture(1))
    found = find(tmp_path / "set")
    without = store_module.store(found, tmp_path / "cache")
    assert store_module.store(found, tmp_path / "cache").folder == without.folder
    monkeypatch.setattr(store_module, "versions", lambda: ("", "9.9", "", ""))
    assert store_module.store(found, tmp_path / "cache").folder != without.folder
