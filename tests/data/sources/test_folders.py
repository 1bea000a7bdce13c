import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures_made import (
    SHARED,
    complaint,
    content,
    decode,
    find,
    noise,
    numbers,
    picture,
    png_header,
    save,
    stored,
    table,
    told,
)
from PIL import ExifTags, Image


def test_a_folder_a_class(tmp_path):
    for number, name in enumerate(["wild/b.png", "cat/z.png", "dog/deep/er/a.png", "cat/A.PNG"]):
        save(tmp_path / name, picture(number))
    found = find(tmp_path)
    assert sorted(told(found)) == [(0, "wild"), (1, "cat"), (2, "dog"), (3, "cat")]
    assert found.classes == ("cat", "dog", "wild")


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["deep/a.png", "deep/b.png"], ["a.png", "cat/b.png"]])
def test_pictures_that_do_not_all_lie_in_class_folders_have_no_classes(tmp_path, names):
    for number, name in enumerate(names):
        save(tmp_path / name, picture(number))
    images = decode(find(tmp_path))
    assert images.labels is None and images.classes == () and numbers(images) == [0, 1]


def test_folders_of_splits_with_folders_of_classes(tmp_path):
    names = ["train/cat/a.png", "train/dog/a.png", "test/cat/x.png", "test/dog/x.png", "test/wild/x.png"]
    for number, name in enumerate(names):
        save(tmp_path / name, picture(number))
    assert told(find(tmp_path)) == [(0, "cat"), (1, "dog")]
    assert told(find(tmp_path, split="test")) == [(2, "cat"), (3, "dog"), (4, "wild")]


@pytest.mark.parametrize("splits", [["train", "test"], ["train", "val"], ["train", "valid", "test"]])
def test_folders_of_splits_without_classes(tmp_path, splits):
    for number, split in enumerate(splits):
        save(tmp_path / split / "a.png", picture(number))
    for number, split in enumerate(splits):
        images = decode(find(tmp_path, split=split))
        assert numbers(images) == [number] and images.labels is None


def test_a_class_called_test_next_to_others_is_a_class(tmp_path):
    for number, name in enumerate(["exam", "test", "train"]):
        save(tmp_path / name / "a.png", picture(number))
    assert told(find(tmp_path)) == [(0, "exam"), (1, "test"), (2, "train")]


@pytest.mark.parametrize("folder", ["", "a", "train-station", "test"])
def test_names_of_files_and_folders_above_make_no_splits(tmp_path, folder):
    # datasets' own reader of folders takes test-tube.png, and all below a folder called test, for another split
    names = ["test-tube.png", "train.png", "validation_1.png", "dev.png", "eval.png", "test.png"]
    root = tmp_path / "test"
    for number, name in enumerate(names):
        save(root / "things" / folder / name, picture(number))
        save(root / "others" / folder / name, picture(number + 10))
    found = find(root)
    assert sorted(told(found)) == [(n, "things") for n in range(6)] + [(n + 10, "others") for n in range(6)]


@pytest.mark.parametrize("extra", ["metadata.json", "README.md", "list.txt", ".cache/x.parquet", "cat/.x.arrow"])
def test_files_that_are_no_pictures_change_nothing(tmp_path, extra):
    for number, name in enumerate(["cat/test-1.png", "cat/train-1.png", "dog/test-2.png"]):
        save(tmp_path / name, picture(number))
    (tmp_path / extra).parent.mkdir(exist_ok=True)
    (tmp_path / extra).write_text("{}")
    assert told(find(tmp_path)) == [(0, "cat"), (1, "cat"), (2, "dog")]


def test_hidden_files_are_left_out_and_hidden_folders_above_are_not(tmp_path):
    root = tmp_path / ".store" / "pictures"
    for number, name in enumerate(["cat/a.png", "dog/a.png"]):
        save(root / name, picture(number))
    for name in (".hidden.png", "cat/._a.png", ".thumbnails/a.png", "dog/.old/a.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"junk")
    assert told(find(root)) == [(0, "cat"), (1, "dog")]


def test_the_users_files_are_not_touched(tmp_path, monkeypatch):
    save(tmp_path / "pictures/a.png", picture(1))
    before = sorted((file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*"))
    decode(find(tmp_path / "pictures"))
    assert sorted((file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*")) == before
    monkeypatch.setenv("HOME", str(tmp_path))
    assert numbers(decode(find("~/pictures"))) == [1]
    monkeypatch.chdir(tmp_path)
    assert numbers(decode(find("pictures"))) == [1]  # a folder here comes before the hub


@pytest.mark.parametrize("extra", [None, "notes.txt", ".hidden.png"])
def test_an_empty_folder(tmp_path, extra):
    if extra:
        (tmp_path / extra).write_bytes(content(picture(0)))
    assert "holds no pictures, no parquet or arrow files and no tar shards" in complaint(tmp_path)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    save(tmp_path / "a.png", picture(0))
    (tmp_path / "b.png").write_bytes(b"no picture at all")
    said = complaint(tmp_path)
    assert "1 of 2 pictures cannot be used, more than data.max_bad 0.01 allows" in said
    assert f"{tmp_path / 'b.png'} (not a picture in a known format)" in said and "data check" in said


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_broken_picture_is_named(tmp_path, kind):
    save(tmp_path / f"a.{kind}", Image.fromarray(noise(64, 64)))
    whole = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / f"b.{kind}").write_bytes(whole[: len(whole) // 2])
    said = complaint(tmp_path)
    assert "1 of 2 pictures cannot be used" in said and f"{tmp_path / f'b.{kind}'} (broken: " in said
    broken = {"bytes": whole[: len(whole) // 2], "path": "shots/b.png"}
    table(tmp_path / "parquet/train.parquet", image=[{"bytes": whole, "path": None}] * 300 + [broken])
    assert "picture 300 (shots/b.png) (broken: " in complaint(tmp_path / "parquet", max_bad=0)


@pytest.mark.skipif(not (SHARED / "emoji").is_dir(), reason="needs ../shared/data/emoji")
def test_emoji_are_all_in_one_split():
    source = SHARED / "emoji"
    found = find(source)
    assert len(found.rows) == 1906 and found.shape == (3, 64, 64)
    folders = {folder.name: len(list(folder.iterdir())) for folder in source.iterdir()}
    assert len(folders) == 9 and dict(zip(found.classes, np.bincount(found.labels).tolist(), strict=True)) == folders
    assert re.search(r"\bLA\b", found.story) and re.search(r"\bRGBA\b", found.story)
    images = decode(find(source, classes=["flags"], first=20))
    assert images.pixels.shape == (20, 3, 64, 64) and images.classes == ("flags",)
    assert (images.pixels[:, :, 0, 0] == 255).all()  # transparent corners, over white


# --- odd files -------------------------------------------------------------------------------------------------------


def state(folder):
    """Everything about the files below a folder that reading them must not change; times of access aside."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        inside = path.read_bytes() if path.is_file() else b""
        entries[path] = (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, inside)
    return entries


def cut_off(kind):
    whole = content(Image.fromarray(noise(24, 24)), kind)
    return whole[: len(whole) * 2 // 3]


ODD_FILES = {
    "empty.png": (b"", "the file is empty"),
    "half.jpg": (cut_off("JPEG"), "broken: "),
    "half.png": (cut_off("PNG"), "broken: "),
    "text.jpg": (b"I am no picture", "not a picture in a known format"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(100), ("HEIC, which needs pillow-heif: ", "broken: HEIC")),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(100), ("HEIC, which needs pillow-heif: ", "broken: HEIC")),
    "bomb.png": (png_header(30_000, 30_000), "too large: "),
}
ODD_ENTRIES = {
    "pipe.png": (os.mkfifo, "not a regular file"),
    "nowhere.png": (lambda path: path.symlink_to("gone.png"), "a link to nothing"),
    "itself.png": (lambda path: path.symlink_to(path.name), "a link that leads to itself"),
}


@pytest.mark.parametrize("name", [*ODD_FILES, *ODD_ENTRIES])
def test_an_odd_file_among_good_ones_is_left_out_with_its_reason(tmp_path, name):
    root = tmp_path / "pictures"
    for number in range(6):
        save(root / "ab"[number // 3] / f"{number}.png", picture(number))
    inside, reason = (ODD_FILES | ODD_ENTRIES)[name]
    if name in ODD_FILES:
        (root / "b" / name).write_bytes(inside)
    else:
        inside(root / "b" / name)
    before = state(root)
    made = stored(find(root, shape=(6, 6), max_bad=0.5), max_bad=0.5)
    found = find(root, shape=(6, 6), max_bad=0.5)
    assert told(found, max_bad=0.5) == [(n, "a" if n < 3 else "b") for n in range(6)]
    ((said, why),) = found.bad or made.bad
    assert said == str(root / "b" / name) and why.startswith(reason)
    assert state(root) == before
    assert f"1 of 7 pictures cannot be used, more than data.max_bad 0.1 allows: {said} ({why}); " in complaint(
        root, shape=(6, 6), max_bad=0.1
    )
    if found.bad:
        assert found.story.endswith("; 1 bad left out")


def test_many_odd_files_are_counted_and_the_first_are_named(tmp_path):
    for number in range(4):
        save(tmp_path / f"a/{number}.png", picture(number))
        save(tmp_path / f"b/{number}.png", picture(number))
    for name, (inside, _) in ODD_FILES.items():
        (tmp_path / "a" / name).write_bytes(inside)
    for name, (make, _) in ODD_ENTRIES.items():
        make(tmp_path / "a" / name)
    said = complaint(tmp_path, shape=(6, 6))
    assert "8 of 18 pictures cannot be used" in said and said.count("; ") == 3 and " and 5 more; " in said
    made = stored(find(tmp_path, shape=(6, 6), max_bad=0.6), max_bad=0.6)
    assert numbers(made.images) == [0, 1, 2, 3, 0, 1, 2, 3] and made.images.labels.tolist() == [0] * 4 + [1] * 4
    assert {Path(name).name for name, _ in made.bad} == {"half.jpg", "half.png"}


def test_what_is_no_picture_by_its_name_is_no_bad_picture(tmp_path):
    save(tmp_path / "a.png", picture(0))
    (tmp_path / "notes.txt").symlink_to("gone.txt")
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "table.csv").write_bytes(b"")
    found = find(tmp_path)
    assert found.bad == () and numbers(decode(found)) == [0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_and_folders_that_may_not_be_read(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/2.png", "c/3.png"):
        save(tmp_path / name, picture(int(Path(name).stem)))
    (tmp_path / "a/1.png").chmod(0)
    (tmp_path / "c").chmod(0)
    try:
        found = find(tmp_path, max_bad=0.5)
        assert told(found, max_bad=0.5) == [(0, "a"), (2, "b")]
        assert {Path(name).name: why for name, why in found.bad} == {
            "1.png": "permission denied",
            "c": "a folder that cannot be read (permission denied)",
        }
    finally:
        (tmp_path / "c").chmod(0o700)


def test_a_file_that_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number))
    opening = os.open

    def refusing(path, *how, **more):
        if str(path).endswith("1.png"):
            raise PermissionError(13, "Permission denied")
        return opening(path, *how, **more)

    monkeypatch.setattr(os, "open", refusing)
    found = find(tmp_path, max_bad=0.5)
    assert found.bad == ((str(tmp_path / "1.png"), "permission denied"),)
    assert numbers(decode(found, max_bad=0.5)) == [0, 2]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    for name in ("a/0.png", "b/1.png", "c/2.png"):
        save(tmp_path / name, picture(int(Path(name).stem)))
    scanning = os.scandir

    def refusing(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scanning(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find(tmp_path, max_bad=0.5)
    assert told(found, max_bad=0.5) == [(0, "a"), (2, "c")]
    assert found.bad == ((str(tmp_path / "b"), "a folder that cannot be read (permission denied)"),)


def test_links_are_followed_and_each_folder_once(tmp_path):
    save(tmp_path / "elsewhere/0.png", picture(0))
    save(tmp_path / "elsewhere/deep/1.png", picture(1))
    save(tmp_path / "p/b/2.png", picture(2))
    (tmp_path / "p/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p/b/3.png").symlink_to(tmp_path / "elsewhere/0.png")
    assert sorted(told(find(tmp_path / "p"))) == [(0, "a"), (0, "b"), (1, "a"), (2, "b")]
    (tmp_path / "p/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p/b/up").symlink_to("..")
    (tmp_path / "p/b/round").symlink_to(".")
    found = find(tmp_path / "p", max_bad=0)  # no picture is lost by them
    assert sorted(told(found, max_bad=0)) == [(0, "a"), (0, "b"), (1, "a"), (2, "b")]
    assert {line.split(":")[0] for line in found.open().unused} == {"c", "b/round", "b/up"}


def test_what_truly_lies_there_comes_before_what_links_lead_to(tmp_path):
    save(tmp_path / "zebra/0.png", picture(0))
    save(tmp_path / "cat/1.png", picture(1))
    (tmp_path / "ant").symlink_to("zebra")
    assert sorted(told(find(tmp_path, max_bad=0))) == [(0, "zebra"), (1, "cat")]


def test_a_picture_beside_folders_of_splits_is_left_alone(tmp_path):
    for number, name in enumerate(["train/a.png", "test/a.png", "preview.png"]):
        save(tmp_path / name, picture(number))
    found = find(tmp_path)
    assert numbers(decode(found)) == [0] and found.open().unused == ("preview.png: next to the folders of splits",)


def test_a_dead_link_beside_folders_of_splits_makes_no_classes_of_them(tmp_path):
    for number, name in enumerate(["train/a.png", "test/a.png"]):
        save(tmp_path / name, picture(number))
    (tmp_path / "latest").symlink_to("gone")
    assert numbers(decode(find(tmp_path, max_bad=0), max_bad=0)) == [0]


def test_a_name_of_two_lines_is_said_in_one(tmp_path):
    (tmp_path / "two\nlines.png").write_bytes(b"junk")
    assert "lines.png" in complaint(tmp_path)


# --- pictures of all kinds -------------------------------------------------------------------------------------------


def oriented(note, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    stored_so = Image.new("L", (8, 4), 0)
    stored_so.paste(255, (0, 0, 4, 4))  # its left half
    return content(stored_so, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))


def animated():
    frames = [picture(number, mode="L") for number in (40, 80, 120)]
    return content(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


def clear_palette():
    paletted = Image.new("P", (6, 6), 1)
    paletted.putpalette([255, 0, 0, 0, 0, 255])
    return content(paletted, transparency=1)


KINDS = {
    "a PNG called .jpg": ("a.jpg", content(picture(33)), [33] * 3),
    "an animated GIF": ("a.gif", animated(), [40] * 3),
    "16 bits": ("a.png", content(Image.fromarray(np.full((6, 6), 77 * 257, np.uint16))), [77]),
    "16 bits of TIFF": ("a.tif", content(Image.fromarray(np.full((6, 6), 77 * 257, np.uint16)), "TIFF"), [77]),
    "CMYK": ("a.jpg", content(Image.new("CMYK", (6, 6), (0, 255, 255, 0)), "JPEG", quality=100), [255, 0, 0]),
    "grey over white": ("a.png", content(Image.new("LA", (6, 6), (0, 128))), [127]),
    "a palette with a clear colour": ("a.png", clear_palette(), [255] * 3),
    "1 bit": ("a.png", content(Image.new("1", (6, 6), 1)), [255]),
    "a broken note": ("a.jpg", content(picture(90, mode="L"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), [90]),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_is_read(tmp_path, kind):
    name, file, level = KINDS[kind]
    (tmp_path / name).write_bytes(file)
    found = find(tmp_path)
    assert found.bad == () and found.shape == (len(level), 6, 6)
    pixels = decode(found).pixels[0].float()
    assert (pixels.flatten(1).mean(1) - torch.tensor(level)).abs().max() <= 2
    assert (pixels.amax((1, 2)) - pixels.amin((1, 2))).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("note", "lit"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_pictures_stand_as_their_note_says(tmp_path, note, lit, kind):
    (tmp_path / f"a.{kind.lower()}").write_bytes(oriented(note, kind))
    found = find(tmp_path)
    assert found.shape == ((1, 8, 4) if note in (6, 8) else (1, 4, 8))
    pixels = decode(found).pixels[0, 0].float()
    halves = {"left": pixels[:, :4], "right": pixels[:, -4:], "top": pixels[:4], "bottom": pixels[-4:]}
    assert halves[lit].mean() > 250
    assert pixels.mean() == pytest.approx(halves[lit].mean().item() / 2, abs=3)
