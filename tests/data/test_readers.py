"""HEIC and AVIF: recognised by their first bytes, turned once, and said to be missing where they are."""

import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from pictures_made import WHITE, content, find, picture, save
from PIL import ExifTags, Image, features

from flowimg.data import readers
from flowimg.data.pictures import BadPictureError, moves, open_picture, to_pixels, upright_size

KINDS = ["HEIF", "AVIF"]
RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 200, 40)
NO_HEIC = "HEIC, which needs pillow-heif: pip install -e '.[formats]'"
NO_AVIF = "AVIF, which this Pillow does not read: pip install -U pillow"


@pytest.fixture
def writers():
    pytest.importorskip("pillow_heif").register_heif_opener()
    if not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF")


@pytest.fixture
def no_heic(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


def quarters(width=96, height=64):
    """Four colours, so that every turn and every reflection is told from the others."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2], array[: height // 2, width // 2 :] = RED, GREEN
    array[height // 2 :, : width // 2], array[height // 2 :, width // 2 :] = BLUE, YELLOW
    return array


def box(brand, *more):
    size = 16 + 4 * len(more)
    return size.to_bytes(4, "big") + b"ftyp" + brand + bytes(4) + b"".join(more) + bytes(100)


def refused(inside):
    with pytest.raises(BadPictureError) as caught:
        open_picture(inside)
    return str(caught.value)


# what the EXIF standard says of each note: how the stored picture is turned to stand upright
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.usefixtures("writers")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("note", TURNS)
def test_a_photo_is_turned_once_and_its_size_is_known_before(kind, note):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    opened = open_picture(content(Image.fromarray(quarters()), kind, exif=exif.tobytes(), quality=90))
    size = upright_size(opened)
    found = to_pixels(opened, 3, None, "crop", WHITE).transpose(1, 2, 0)
    expected = TURNS[note](quarters())
    assert size == found.shape[1::-1] == expected.shape[1::-1]
    assert np.abs(found - expected.astype(int)).mean() < 4
    assert not moves(opened)


@pytest.mark.usefixtures("writers")
def test_the_exif_note_of_a_heic_that_says_nothing_itself_is_not_followed():
    # HEIC has its own turn, and its standard says that a note in EXIF does not count; this writer leaves it out if the
    # note is not given as bytes
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    inside = content(Image.fromarray(quarters()), "HEIF", exif=exif, quality=90)
    assert b"irot" not in inside
    opened = open_picture(inside)
    assert upright_size(opened) == (96, 64)
    assert np.abs(to_pixels(opened, 3, None, "crop", WHITE).transpose(1, 2, 0) - quarters().astype(int)).mean() < 4


@pytest.mark.usefixtures("writers")
@pytest.mark.parametrize("kind", KINDS)
def test_transparency_and_grey_come_along(kind):
    clear = Image.new("RGBA", (64, 64), (*RED, 0))
    found = to_pixels(open_picture(content(clear, kind, quality=95)), 3, None, "crop", (10, 20, 30))
    assert np.abs(found.reshape(3, -1).T - [10, 20, 30]).max() <= 2
    grey = to_pixels(open_picture(content(Image.new("L", (64, 64), 77), kind, quality=95)), 1, (8, 8), "crop", WHITE)
    assert np.abs(grey - 77.0).max() <= 2


HEVC = [b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"hevx"]


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        *[(box(brand), readers.HEIC) for brand in [*HEVC, b"mif1", b"msf1"]],
        *[(box(brand, b"mif1", b"heic"), readers.HEIC) for brand in (b"mif1", b"heic")],
        *[(box(brand, b"mif1", b"miaf"), readers.AVIF) for brand in (b"avif", b"avis")],
        *[(box(brand, b"miaf", b"avif"), readers.AVIF) for brand in (b"mif1", b"msf1")],
        (box(b"heic", b"avif"), readers.HEIC),
        *[(box(brand, b"mif1"), None) for brand in (b"isom", b"mp42", b"qt  ", b"crx ")],
        *[(inside, None) for inside in (b"", b"ftyp", b"\0\0\0\x18ftyp", b"\xff\xd8\xff", bytes(64))],
        (b"\xff\xff\xff\xffftypmif1" + bytes(600) + b"avif", readers.HEIC),  # a box that claims four gigabytes
    ],
)
def test_a_format_is_known_by_its_brands(inside, kind):
    assert readers.kind_of(inside) == kind


@pytest.mark.usefixtures("writers")
@pytest.mark.parametrize("order", [KINDS, KINDS[::-1]])
def test_a_file_goes_to_its_own_reader_whichever_was_there_first(monkeypatch, order):
    # both formats may call themselves mif1, and only the brands after that tell which one it is
    for kind in KINDS:
        monkeypatch.setattr(Image, "ID", list(order))
        inside = content(Image.fromarray(quarters()), kind)
        opened = open_picture(inside[:8] + b"mif1" + inside[12:])
        assert opened.format == kind
        assert to_pixels(opened, 3, None, "crop", WHITE).shape == (3, 64, 96)


@pytest.mark.usefixtures("no_heic")
@pytest.mark.parametrize("brand", [*HEVC, b"mif1", b"msf1"])
def test_without_its_package_a_phones_format_is_named_with_what_to_install(brand):
    assert refused(box(brand)) == NO_HEIC


def test_without_its_codec_avif_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert refused(box(b"avif", b"mif1")) == NO_AVIF


@pytest.mark.usefixtures("writers")
@pytest.mark.parametrize(("kind", "name"), [("HEIF", "HEIC"), ("AVIF", "AVIF")])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_a_file_that_was_cut_off_is_broken(kind, name, share):
    whole = content(Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)), kind)
    with pytest.raises(BadPictureError) as caught:
        to_pixels(open_picture(whole[: int(len(whole) * share)]), 3, None, "crop", WHITE)
    assert str(caught.value).startswith("broken: ")
    assert refused(whole[:64]) == f"broken: {name} that cannot be decoded"


@pytest.mark.usefixtures("writers")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_refused_for_want_of_a_reader_is_read_once_there_is_one(tmp_path, monkeypatch, kind):
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number, (64, 64)))
    (tmp_path / "3.heic").write_bytes(content(picture(3, (64, 64)), kind, quality=95))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        without.setattr(features, "check", lambda name: False)
        without.setattr("flowimg.data.scan.versions", lambda: ("", "", "", ""))
        before = find(tmp_path, max_bad=0.5)
        assert [one.reason for one in before.bad] == [NO_HEIC if kind == "HEIF" else NO_AVIF]
    after = find(tmp_path, max_bad=0.5)
    assert not after.bad and len(after.rows) == 4


def test_a_missing_reader_has_no_version(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(features, "version", lambda name: None)
    assert readers.versions() == ("", "", "", "")


def test_a_decoder_process_imports_neither_torch_nor_a_reader():
    code = "import sys, flowimg.data.decode; print([n for n in ('torch', 'pillow_heif') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
