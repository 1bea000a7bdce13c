"""From a file to pixels, against colours worked out by hand and blocks whose place is known."""

import io
import os
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import png_header
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from flowimg.data.pictures import (
    RESIZES,
    BadPictureError,
    Encoded,
    moves,
    open_picture,
    read_bytes,
    to_pixels,
    upright_size,
)

few = settings(max_examples=40, deadline=None, derandomize=True)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
LYING = {5, 6, 7, 8}


def file_of(picture, kind="PNG", **options):
    """The picture as a file, and opened again the way a dataset hands it over."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return open_picture(content.getvalue())


def one_colour(mode, colour, size=(5, 3)):
    return Image.new(mode, size, colour)


def blocks(*columns, height):
    """A picture of upright bars: (width, colour) from left to right."""
    row = np.concatenate([np.tile(np.array(colour, dtype=np.uint8), (width, 1)) for width, colour in columns])
    return Image.fromarray(np.broadcast_to(row, (height, *row.shape)).copy())


def level(pixels):
    """The one colour of all pixels."""
    flat = pixels.reshape(len(pixels), -1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def noise(width, height, depth=3):
    shape = (height, width, depth) if depth > 1 else (height, width)
    return np.random.default_rng(width * 1000 + height).integers(0, 256, shape, dtype=np.uint8)


# --- transparency ----------------------------------------------------------------------------------------------------

# colour * alpha / 255 + background * (1 - alpha / 255), rounded, by hand
OVER = [
    ((200, 100, 0), 0, (10, 20, 30), [10, 20, 30]),
    ((200, 100, 0), 255, (10, 20, 30), [200, 100, 0]),
    ((200, 100, 0), 128, (10, 20, 30), [105, 60, 15]),  # 105.37, 60.16, 14.94
    ((255, 255, 255), 128, BLACK, [128, 128, 128]),
    (BLACK, 128, WHITE, [127, 127, 127]),
    (RED, 64, BLUE, [64, 0, 191]),
]


@pytest.mark.parametrize(("colour", "alpha", "background", "expected"), OVER)
def test_rgba_is_laid_over_the_background(colour, alpha, background, expected):
    picture = file_of(one_colour("RGBA", (*colour, alpha)))
    assert picture.mode == "RGBA"
    assert level(to_pixels(picture, 3, None, "crop", background)) == expected


@pytest.mark.parametrize(
    ("grey", "alpha", "background", "expected"),
    [(200, 0, 90, 90), (200, 255, 90, 200), (255, 128, 0, 128), (0, 128, 255, 127), (200, 128, 10, 105)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_with_alpha_is_laid_over_the_background(grey, alpha, background, expected, channels):
    picture = file_of(one_colour("LA", (grey, alpha)))
    assert picture.mode == "LA"
    assert level(to_pixels(picture, channels, None, "crop", (background,) * 3)) == [expected] * channels


def test_grey_with_alpha_takes_the_colour_of_the_background():
    picture = file_of(one_colour("LA", (255, 128)))
    assert level(to_pixels(picture, 3, None, "crop", RED)) == [255, 128, 128]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_shows_the_background(kind):
    picture = Image.new("P", (4, 2))
    picture.putpalette([*RED, *BLUE])
    picture.putdata([0, 0, 1, 1] * 2)
    pixels = to_pixels(file_of(picture, kind, transparency=1), 3, None, "crop", (1, 2, 3))
    assert pixels[:, :, 0].T.tolist() == [[255, 0, 0]] * 2
    assert pixels[:, :, 3].T.tolist() == [[1, 2, 3]] * 2


def test_a_palette_with_an_alpha_for_each_colour():
    picture = Image.new("P", (3, 1))
    picture.putpalette([*WHITE, *WHITE, *WHITE])
    picture.putdata([0, 1, 2])
    opened = file_of(picture, transparency=bytes([0, 128, 255]))
    assert opened.mode == "P"
    assert to_pixels(opened, 1, None, "crop", BLACK)[0, 0].tolist() == [0, 128, 255]


def test_a_transparent_colour_without_a_palette_shows_the_background():
    picture = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    pixels = to_pixels(file_of(picture, transparency=RED), 3, None, "crop", GREEN)
    assert pixels[:, 0].T.tolist() == [list(GREEN), list(BLUE)]


def test_opaque_pictures_never_show_the_background():
    array = noise(7, 5)
    pixels = [to_pixels(file_of(Image.fromarray(array)), 3, None, "crop", colour) for colour in (RED, WHITE)]
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[0].transpose(1, 2, 0), array)


def test_transparent_edges_do_not_bring_hidden_colours_in_when_scaled():
    # red under alpha 0 left, white right: over white there is nothing but white, before and after scaling
    picture = np.full((8, 8, 4), 255, dtype=np.uint8)
    picture[:, :4] = (255, 0, 0, 0)
    for resize in ("crop", "pad", "stretch"):
        assert level(to_pixels(file_of(Image.fromarray(picture)), 3, (5, 5), resize, WHITE)) == [255, 255, 255]


# --- depths and colour spaces ----------------------------------------------------------------------------------------


def test_one_bit_is_black_and_white():
    picture = Image.new("1", (4, 1))
    picture.putdata([0, 255, 255, 0])
    opened = file_of(picture)
    assert opened.mode == "1"
    assert to_pixels(opened, 1, None, "crop", WHITE)[0, 0].tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_spread_over_eight(kind, channels):
    levels = [0, 256, 257, 32768, 65278, 65535]
    opened = file_of(Image.fromarray(np.array([levels], dtype=np.uint16)), kind)
    assert opened.mode.startswith("I")
    pixels = to_pixels(opened, channels, None, "crop", WHITE)
    assert pixels.shape == (channels, 1, 6)
    exact = np.array(levels) * (255 / 65535)
    assert np.abs(pixels - exact).max() < 1
    assert (pixels[:, 0, 0] == 0).all() and (pixels[:, 0, -1] == 255).all() and pixels[0, 0, 3] in (127, 128)


def test_eight_bits_written_as_sixteen_come_back_exactly():
    levels = np.arange(256, dtype=np.uint16)[None]
    pixels = to_pixels(file_of(Image.fromarray(levels * 257)), 1, None, "crop", WHITE)
    assert pixels[0, 0].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("inks", "expected"),
    [
        ((0, 0, 0, 0), [255, 255, 255]),
        ((0, 0, 0, 255), [0, 0, 0]),
        ((255, 0, 0, 0), [0, 255, 255]),
        ((0, 255, 255, 0), [255, 0, 0]),
    ],
)
def test_cmyk_is_turned_to_rgb(inks, expected):
    opened = file_of(one_colour("CMYK", inks, (16, 16)), "JPEG", quality=100)
    assert opened.mode == "CMYK"
    pixels = to_pixels(opened, 3, None, "crop", WHITE)
    assert np.abs(pixels.mean((1, 2)) - expected).max() <= 2


@pytest.mark.parametrize(("colour", "luma"), [(RED, 76), (GREEN, 150), (BLUE, 29), (WHITE, 255), ((90, 90, 90), 90)])
def test_colour_turns_grey_by_its_luma(colour, luma):
    # ITU-R 601: 0.299 red + 0.587 green + 0.114 blue
    assert level(to_pixels(file_of(one_colour("RGB", colour)), 1, None, "crop", WHITE)) == [luma]


def test_grey_turns_to_three_equal_channels():
    array = noise(6, 4, depth=1)
    pixels = to_pixels(file_of(Image.fromarray(array)), 3, None, "crop", WHITE)
    assert all(np.array_equal(channel, array) for channel in pixels)


# --- upright ---------------------------------------------------------------------------------------------------------

# what the eight notes of the EXIF standard say: how the stored picture is to be turned to stand upright
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),  # a quarter turn clockwise
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
    0: lambda a: a,  # no such note
    9: lambda a: a,
}


def with_note(array, note, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    return file_of(Image.fromarray(array), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("note", TURNS)
def test_pictures_are_turned_upright_and_their_size_is_known_before(note, kind):
    array = noise(7, 4)
    expected = TURNS[note](array)
    picture = with_note(array, note, kind)
    assert upright_size(picture) == ((4, 7) if note in LYING else (7, 4))
    pixels = to_pixels(picture, 3, None, "crop", WHITE).transpose(1, 2, 0)
    assert np.array_equal(pixels, expected)


def test_a_photo_from_a_phone_held_upright_stands_upright():
    # stored lying: its top is the left edge
    lying = np.zeros((16, 32), dtype=np.uint8)
    lying[:, :8] = 255
    pixels = to_pixels(with_note(lying, 6, "JPEG"), 1, None, "crop", WHITE)[0]
    assert pixels.shape == (32, 16)
    assert pixels[:8].mean() > 250 and pixels[8:].mean() < 5


# --- shapes ----------------------------------------------------------------------------------------------------------

BARS = blocks((10, RED), (20, GREEN), (10, BLUE), height=20)  # 40 x 20


def bars(size, resize, background=WHITE, upright=False):
    picture = BARS.transpose(Image.Transpose.TRANSPOSE) if upright else BARS
    shape = (size, size) if isinstance(size, int) else size
    pixels = to_pixels(file_of(picture), 3, shape[::-1] if upright else shape, resize, background)
    return pixels.transpose(0, 2, 1) if upright else pixels


@pytest.mark.parametrize("upright", [False, True])
def test_crop_takes_the_middle(upright):
    assert level(bars(20, "crop", upright=upright)) == list(GREEN)
    half = bars(10, "crop", upright=upright)
    assert level(half[:, :, 3:7]) == list(GREEN)  # off the edges, which antialiasing may touch
    double = bars(40, "crop", upright=upright)
    assert double.shape == (3, 40, 40) and level(double[:, :, 5:35]) == list(GREEN)


@pytest.mark.parametrize("upright", [False, True])
def test_pad_shows_all_between_equal_margins(upright):
    pixels = bars(40, "pad", (9, 8, 7), upright)
    assert level(pixels[:, :10]) == level(pixels[:, 30:]) == [9, 8, 7]
    middle = pixels[:, 10:30]
    assert [level(middle[:, :, part]) for part in (slice(10), slice(10, 30), slice(30, 40))] == [
        list(RED),
        list(GREEN),
        list(BLUE),
    ]
    half = bars(20, "pad", (9, 8, 7), upright)
    assert level(half[:, :5]) == level(half[:, 15:]) == [9, 8, 7]
    assert [half[:, y, x].tolist() for y in (5, 14) for x in (0, 10, 19)] == [list(RED), list(GREEN), list(BLUE)] * 2


@pytest.mark.parametrize("upright", [False, True])
def test_stretch_shows_all_and_fills_all(upright):
    pixels = bars(20, "stretch", upright=upright)
    assert (pixels == pixels[:, :1]).all()  # every row alike
    assert [pixels[:, 0, x].tolist() for x in (0, 2, 10, 17, 19)] == [
        *[list(RED)] * 2,
        list(GREEN),
        *[list(BLUE)] * 2,
    ]


@pytest.mark.parametrize("upright", [False, True])
def test_keep_cuts_what_is_large_and_fills_what_is_small(upright):
    pixels = bars(30, "keep", (9, 8, 7), upright)
    assert level(pixels[:, :5]) == level(pixels[:, 25:]) == [9, 8, 7]
    middle = pixels[:, 5:25]
    assert [level(middle[:, :, part]) for part in (slice(5), slice(5, 25), slice(25, 30))] == [
        list(RED),
        list(GREEN),
        list(BLUE),
    ]


@pytest.mark.parametrize("upright", [False, True])
def test_rectangles_are_cropped_padded_and_stretched_as_squares_are(upright):
    whole = bars((20, 40), "crop", upright=upright)
    for shape in ((20, 40), (10, 40), (8, 40)):  # as wide as the bars, and as high or lower: rows are cut away
        for resize in ("crop", "keep"):
            assert np.array_equal(bars(shape, resize, upright=upright), whole[:, : shape[0]])
    assert level(bars((20, 12), "crop", upright=upright)) == list(GREEN)  # as high, and narrower: columns are
    margins = bars((20, 60), "pad", (9, 8, 7), upright)
    assert level(margins[:, :, :10]) == level(margins[:, :, 50:]) == [9, 8, 7]
    assert np.array_equal(margins[:, :, 10:50], whole)
    assert np.array_equal(bars((20, 60), "keep", (9, 8, 7), upright), margins)
    half = bars((20, 20), "pad", (9, 8, 7), upright)[:, 5:15]
    assert np.array_equal(bars((10, 20), "crop", upright=upright), half)  # of the same proportions it is only scaled
    wide = bars((7, 80), "stretch", upright=upright)
    assert (wide == wide[:, :1]).all()
    assert [wide[:, 0, x].tolist() for x in (0, 10, 40, 70, 79)] == [*[list(RED)] * 2, list(GREEN), *[list(BLUE)] * 2]


@pytest.mark.parametrize("depth", [1, 3])
def test_keep_brings_28_to_32_by_two_pixels_on_each_side_and_touches_none(depth):
    array = noise(28, 28, depth)
    expected = np.full((32, 32, depth), 77, dtype=np.uint8)
    expected[2:30, 2:30] = array.reshape(28, 28, depth)
    pixels = to_pixels(file_of(Image.fromarray(array)), depth, (32, 32), "keep", (77, 77, 77))
    assert np.array_equal(pixels.transpose(1, 2, 0), expected)


def test_margins_of_grey_pictures_have_the_luma_of_the_background():
    pixels = to_pixels(file_of(one_colour("L", 0, (4, 2))), 1, (4, 4), "pad", RED)
    assert pixels[0].tolist() == [[76] * 4, [0] * 4, [0] * 4, [76] * 4]


@pytest.mark.parametrize("resize", RESIZES)
def test_squares_of_the_right_size_are_left_as_they_are(resize):
    array = noise(9, 9)
    pixels = to_pixels(file_of(Image.fromarray(array)), 3, (9, 9), resize, RED)
    assert np.array_equal(pixels.transpose(1, 2, 0), array)


def test_scaling_down_averages_instead_of_picking():
    # a chequered pattern of single pixels becomes an even grey, where picking pixels would give black or white
    chequered = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for resize in ("crop", "pad", "stretch"):
        pixels = to_pixels(file_of(Image.fromarray(chequered)), 1, (8, 8), resize, WHITE)
        assert np.abs(pixels - 127.5).max() < 8


@few
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    shape=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    resize=st.sampled_from(RESIZES),
    channels=st.sampled_from([1, 3]),
    grey=st.integers(0, 255),
)
def test_any_picture_comes_to_any_shape_and_an_even_one_stays_even(width, height, shape, resize, channels, grey):
    picture = file_of(one_colour("L", grey, (width, height)))
    pixels = to_pixels(picture, channels, shape, resize, (grey, grey, grey))
    assert pixels.shape == (channels, *shape) and pixels.dtype == np.uint8
    assert level(pixels) == [grey] * channels


@few
@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(2, 40))
def test_pad_and_keep_count_their_margins(width, height, size):
    # black on white: what is not white is the picture
    def span(resize):
        black = to_pixels(file_of(one_colour("L", 0, (width, height))), 1, (size, size), resize, WHITE)[0] == 0
        return [np.flatnonzero(black.any(axis)).tolist() for axis in (0, 1)]

    for side, columns in zip((width, height), span("keep"), strict=True):
        shown = min(side, size)
        assert columns == list(range(columns[0], columns[0] + shown))
        assert abs(columns[0] - (size - shown) / 2) <= 0.5
    for side, columns in zip((width, height), span("pad"), strict=True):
        exact = max(side * size / max(width, height), 1)
        assert abs(len(columns) - exact) <= 0.5
        assert abs(columns[0] - (size - len(columns)) / 2) <= 0.5


# --- files that are odd or broken ------------------------------------------------------------------------------------


def why(do):
    with pytest.raises(BadPictureError) as caught:
        do()
    said = str(caught.value)
    assert said and "\n" not in said and "<" not in said
    return said


def decoded(content, channels=3):
    return to_pixels(open_picture(content), channels, None, "crop", WHITE)


def test_a_part_of_a_file_is_read_where_it_is_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_bytes(Encoded(path=str(tmp_path / "a"))) == b"0123456789"
    assert read_bytes(Encoded(None, str(tmp_path / "a"), 3, 4)) == b"3456"
    assert read_bytes(Encoded(b"at hand", "nowhere")) == b"at hand"


def test_what_cannot_be_read_is_said_in_a_few_words(tmp_path):
    (tmp_path / "empty").touch()
    assert why(lambda: read_bytes(Encoded())) == "the row is empty"
    assert why(lambda: read_bytes(Encoded(path=str(tmp_path / "empty")))) == "the file is empty"
    assert why(lambda: read_bytes(Encoded(b""))) == "the file is empty"
    assert why(lambda: read_bytes(Encoded(path=str(tmp_path / "gone")))) == "no such file or directory"
    assert why(lambda: read_bytes(Encoded(path=str(tmp_path)))) in ("is a directory", "not a regular file")
    assert why(lambda: read_bytes(Encoded(path="/dev/zero"))) == "not a regular file"


def test_a_pipe_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert why(lambda: read_bytes(Encoded(path=str(tmp_path / "pipe.png")))) == "not a regular file"


@pytest.mark.parametrize("junk", [b"no picture at all", b"<html></html>", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", bytes(64)])
def test_what_is_no_picture_is_said(junk):
    assert why(lambda: decoded(junk)) in ("not a picture in a known format", "broken: cannot find IHDR chunk")


def test_a_bomb_is_not_unpacked():
    tracemalloc.start()
    said = why(lambda: open_picture(png_header(30_000, 30_000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.startswith("too large: ") and "900,000,000 pixels" in said and "bomb" in said
    assert peak < 2**20


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_file_that_was_cut_off_is_broken(kind, share):
    content = io.BytesIO()
    Image.fromarray(noise(64, 48)).save(content, kind)
    whole = content.getvalue()
    said = why(lambda: decoded(whole[: int(len(whole) * share)]))
    assert said.startswith("broken: ") or said == "not a picture in a known format"


@few
@given(at=st.integers(0, 3000), what=st.binary(min_size=1, max_size=8), kind=st.sampled_from(["PNG", "JPEG", "GIF"]))
def test_files_with_broken_bytes_are_pictures_or_bad_ones_and_nothing_else(at, what, kind):
    content = io.BytesIO()
    Image.fromarray(noise(32, 32)).save(content, kind)
    whole = content.getvalue()
    at %= len(whole)
    with suppress(BadPictureError):
        assert decoded(whole[:at] + what + whole[at + len(what) :]).dtype == np.uint8


def test_floating_point_numbers_are_not_guessed_at():
    content = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(content, "TIFF")
    assert "floating-point" in why(lambda: open_picture(content.getvalue()))


def moving(kind):
    content = io.BytesIO()
    frames = [one_colour("RGB", colour, (8, 8)) for colour in (RED, GREEN, BLUE)]
    frames[0].save(content, kind, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return open_picture(content.getvalue())


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG"])
def test_of_what_moves_the_first_picture_is_taken(kind):
    picture = moving(kind)
    assert moves(picture) and not moves(file_of(one_colour("RGB", RED)))
    assert level(to_pixels(picture, 3, None, "crop", WHITE)) == list(RED)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "note",
    [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(20), b"Exif\0\0"],
)
def test_notes_that_cannot_be_read_cost_no_picture(note):
    content = io.BytesIO()
    Image.new("RGB", (9, 5), (90, 90, 90)).save(content, "JPEG", exif=note)
    picture = open_picture(content.getvalue())
    assert upright_size(picture) == (9, 5)
    assert level(to_pixels(picture, 3, None, "crop", WHITE)) == [90, 90, 90]


def turned_png(where):
    """A PNG, 5 wide and 8 tall, that says at the end or in another way than others that it is to be turned."""
    exif, whole = Image.Exif(), content_of_png(noise(5, 8))
    exif[ExifTags.Base.Orientation] = 6
    full = exif.tobytes()
    told = full.removeprefix(b"Exif\0\0")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    name, inside = {
        "before": (b"eXIf", told), "behind": (b"eXIf", told),
        "profile": (b"tEXt", b"Raw profile type exif\0\nexif\n%d\n" % len(full) + full.hex().encode()),
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    }[where]  # fmt: skip
    chunk = struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
    at = len(whole) - 12 if where in ("behind", "xmp") else 33
    return whole[:at] + chunk + whole[at:]


def content_of_png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("where", ["before", "behind", "profile", "xmp"])
def test_wherever_a_png_says_how_it_is_turned_it_is_turned(where):
    picture = open_picture(turned_png(where))
    assert upright_size(picture) == (8, 5)
    assert np.array_equal(to_pixels(picture, 3, None, "crop", WHITE).transpose(1, 2, 0), np.rot90(noise(5, 8), -1))


def test_the_size_of_a_png_is_known_without_its_pixels(monkeypatch):
    """A scan of many would take as long as decoding them."""
    picture = open_picture(content_of_png(noise(5, 8)))
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert upright_size(picture) == (5, 8) and not moves(picture)
