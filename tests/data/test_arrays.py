"""Files of any depth and number of channels, written by other packages, as the array that a field learns from."""

import io
import struct
import sys
import zlib
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from flowimg.data.arrays import Numbers, Reading, channels_of, opened
from flowimg.data.decode import Decoding, decode
from flowimg.data.numbers import to_numbers
from flowimg.data.pictures import BadPictureError, Encoded, open_picture, to_pixels
from flowimg.data.sources.arrays import as_npy
from flowimg.spaces.depth import BYTES, WORDS, Depth

few = settings(max_examples=40, deadline=None, derandomize=True)
many = settings(max_examples=150, deadline=None, derandomize=True)
WHITE = (255, 255, 255)
TWELVE = Depth("uint16", 0, 4095)
FLOATS = Depth("float32", -1000, 3000)
UNIT = Depth("float32", 0, 1)
RANDOM = np.random.default_rng(0)


def random(*shape, dtype=np.uint16, seed=0):
    generator = np.random.default_rng((seed, *shape))
    if np.dtype(dtype).kind == "f":
        return (generator.random(shape) * 4000 - 1000).astype(dtype)
    if np.dtype(dtype) == np.bool_:
        return generator.random(shape) < 0.5
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, np.dtype(dtype).newbyteorder("="), endpoint=True).astype(dtype)


def smooth(height, width, channels, top=255):
    """A picture without steps, which no filter overshoots: (H, W, C)."""
    y, x, c = np.mgrid[:height, :width, :channels]
    waves = np.sin(x / width * 3 + c) * np.cos(y / height * 2 + 2 * c)
    return np.round((waves * 0.4 + 0.5) * top).astype(np.uint8 if top == 255 else np.uint16)


def read(content, depth=WORDS, channels=None, shape=None, resize="crop", background=WHITE, every=False):
    """The array of a file, with the channels that it has unless others are wanted."""
    picture = opened(content, Reading(depth, every))
    assert isinstance(picture, Numbers)
    array = to_numbers(picture, channels or picture.channels, shape, resize, background, depth)
    assert array.dtype == depth.type and array.flags.c_contiguous
    if shape is None:
        assert array.shape[1:] == picture.size
    return array


def why(content, *args, **options):
    """Why a file is bad: one sentence."""
    with pytest.raises(BadPictureError) as caught:
        read(content, *args, **options)
    said = str(caught.value)
    assert said and "\n" not in said and not caught.value.fleeting
    return said


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"metadata": None, **options})
    return file.getvalue()


def chunk(name, inside):
    return struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))


def with_chunk(png, name, inside):
    """A PNG with another chunk after its header."""
    return png[:33] + chunk(name, inside) + png[33:]


def pillow(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bytes_of(content, channels, shape=None, resize="crop", background=WHITE):
    """The shorter way: 8 bits of a file, by Pillow throughout."""
    return to_pixels(open_picture(content), channels, shape, resize, background)


# --- arrays of NumPy -------------------------------------------------------------------------------------------------


@few
@given(
    form=st.sampled_from(["hw", "hwc", "chw"]),
    channels=st.integers(1, 5),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    dtype=st.sampled_from(["uint16", ">u2", "uint8"]),
    by_columns=st.booleans(),
)
def test_arrays_of_every_form_and_order_are_channels_first(form, channels, height, width, dtype, by_columns):
    planes = random(1 if form == "hw" else channels, height, width, dtype=dtype)
    stored = {"hw": planes[0], "hwc": planes.transpose(1, 2, 0), "chw": planes}[form]
    if form == "chw" and width <= channels:
        return
    file = io.BytesIO()
    np.save(file, np.asfortranarray(stored) if by_columns else np.ascontiguousarray(stored))
    found = read(file.getvalue())
    assert np.array_equal(found, planes.astype(np.uint16) * (257 if dtype == "uint8" else 1))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64", ">i4"])
def test_whole_numbers_of_other_types_are_read_where_16_bits_hold_them(dtype):
    top = min(np.iinfo(dtype).max, 65535)
    array = np.array([[0, 1, top], [5, 6, 7]], dtype)
    assert np.array_equal(read(as_npy(array))[0], array)
    array[1, 1] = -1 if np.dtype(dtype).kind == "i" else 65536
    said = why(as_npy(array))
    assert f"{array[1, 1]}" in said and "data.depth float" in said
    # whether 127 is white or 65535 is, nobody knows
    assert "which of them means white is unknown" in why(as_npy(np.abs(array)), BYTES)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "longdouble"])
def test_floats_are_kept_as_they_are_and_need_their_depth(dtype):
    array = random(4, 5, dtype=dtype)
    assert np.array_equal(read(as_npy(array), FLOATS)[0], array.astype(np.float32))
    for depth in (BYTES, WORDS):
        assert "give data.depth float, and data.range" in why(as_npy(array), depth)


@pytest.mark.parametrize("depth", [BYTES, WORDS, TWELVE, FLOATS, UNIT])
def test_of_yes_and_no_the_one_is_white_and_the_other_black(depth):
    array = random(6, 7, dtype=np.bool_)
    assert np.array_equal(read(as_npy(array), depth)[0], np.where(array, depth.high, depth.low))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite_is_bad(bad, dtype):
    array = random(4, 5, 3, dtype=dtype)
    array[2, 3, 1] = bad
    assert why(as_npy(array), FLOATS) == "it holds NaN or infinity"


@pytest.mark.filterwarnings("error")
def test_what_is_too_large_for_a_float_is_infinite():
    assert why(as_npy(np.full((4, 5), 1e300)), FLOATS) == "it holds NaN or infinity"


@few
@given(st.sampled_from([UNIT, FLOATS, TWELVE, Depth("float32", -0.1, 0.1)]), st.data())
def test_numbers_of_the_range_are_good_and_those_beyond_are_bad(depth, data):
    low, high = (np.array(end).astype(depth.type) for end in (depth.low, depth.high))
    array = np.array([[low, high], [low, low]])
    assert np.array_equal(read(as_npy(array), depth)[0], array)  # 0.1 as a float32 is more than 0.1
    step = 1 if depth.whole else np.spacing(high)
    array[data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))] = high + step
    assert f"beyond data.range {depth.low:g} {depth.high:g}" in why(as_npy(array), depth)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5), (0, 3), (3, 0, 3), ()])
def test_arrays_that_are_no_pictures(shape):
    assert "is not that of a picture" in why(as_npy(np.zeros(shape, np.uint16)))


@pytest.mark.parametrize("dtype", ["U3", "S3", "c8", "M8[s]", [("a", "u1")]])
def test_arrays_that_are_no_numbers(dtype):
    assert "it holds no numbers" in why(as_npy(np.zeros((4, 5), dtype)))


def test_a_header_that_promises_more_than_there_is_takes_no_memory():
    whole = as_npy(random(40, 50))
    head = as_npy(np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (8192, 8192), (0, 0)))[:128]
    assert why(head + whole[128:]) == "broken: the array is cut off"
    head = head.replace(b"(8192, 8192)", b"(81920, 8192)")
    assert "too large" in why(head[:128] + whole[128:])


# --- PNG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_of_a_png_are_kept(channels):
    array = random(7, 9, channels)
    content = imagecodecs.png_encode(array.squeeze())
    assert np.array_equal(read(content), array.transpose(2, 0, 1))
    assert opened(content, Reading(WORDS)).mode == ["L;16", "LA;16", "RGB;16", "RGBA;16"][channels - 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_that_means_transparent_is_transparent(channels):
    array = random(7, 9, channels)
    array[2:4, 3] = array[1, 1]
    clear = np.zeros(3, ">u2")[:channels] + array[1, 1].astype(">u2")
    clear = clear.astype(">u2").tobytes()
    found = read(with_chunk(imagecodecs.png_encode(array.squeeze()), b"tRNS", clear))
    opaque = (array != array[1, 1]).any(-1)
    assert found.shape[0] == channels + 1 and not opaque[2, 3]
    assert np.array_equal(found[-1], 65535 * opaque)
    assert np.array_equal(found[:-1, opaque], array.transpose(2, 0, 1)[:, opaque])


UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: np.fliplr(np.rot90(a, -1)), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.fliplr(np.rot90(a)), 8: np.rot90,
}  # fmt: skip
"""What a viewer does with each EXIF orientation, by the words of the standard: rotations and mirrors."""


@pytest.mark.parametrize("note", UPRIGHT)
@pytest.mark.parametrize("kind", ["grey PNG", "RGB PNG", "PNG of 8 bits", "JPEG", "TIFF", "RGB TIFF", "TIFF of 8 bits"])
def test_every_orientation_is_turned_upright(note, kind):
    array = random(5, 8, 3 if "RGB" in kind else 1).squeeze()
    eight = (smooth(16, 24, 1)[..., 0] * np.linspace(0.2, 1, 24)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = note
    if kind == "JPEG":
        found = read(pillow(Image.fromarray(eight), "JPEG", exif=exif, quality=100))[0] / 257
        np.testing.assert_allclose(found, UPRIGHT[note](eight), atol=3)
        return
    if "8 bits" in kind:
        array, wanted = eight, UPRIGHT[note](eight).astype(int) * 257
    else:
        wanted = UPRIGHT[note](array)
    tag = [(274, 3, 1, note, True)]
    if "TIFF" in kind:
        content = tiff(array, photometric="rgb" if "RGB" in kind else "minisblack", extratags=tag)
    else:
        content = with_chunk(imagecodecs.png_encode(array), b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert np.array_equal(read(content), np.atleast_3d(wanted).transpose(2, 0, 1))


def test_interlaced_pictures_and_palettes_of_eight_bits_are_colours_times_257():
    colours = Image.fromarray(smooth(8, 9, 3)).quantize(20)
    wanted = np.array(colours.convert("RGB")).transpose(2, 0, 1).astype(int) * 257
    for kind in ("PNG", "TIFF", "GIF"):
        assert np.array_equal(read(pillow(colours, kind)), wanted)
    assert np.array_equal(read(pillow(colours, "TIFF"), every=True), wanted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_eight_bits_are_spread_over_sixteen(mode, kind):
    picture = Image.fromarray(smooth(8, 9, 4)).convert(mode)
    if mode == "CMYK" and kind == "PNG":
        return
    content = pillow(picture, kind)
    wanted = bytes_of(content, 4 if mode in ("LA", "RGBA") else 3).astype(int) * 257
    assert np.array_equal(read(content, channels=len(wanted)), wanted)


def test_sixteen_bits_of_jpeg_2000_are_kept():
    array = random(16, 16)
    found = read(imagecodecs.jpeg2k_encode(array, level=0, codecformat="jp2", reversible=True))
    assert np.array_equal(found[0], array)


@few
@given(st.integers(0, 99), st.sampled_from([1, 3]))
def test_sixteen_bits_in_a_set_of_eight_are_the_same_pixels_from_every_file(seed, channels):
    array = random(6, 7, 1, seed=seed)
    content = imagecodecs.png_encode(array.squeeze())
    wanted = np.floor(array[..., 0] / 257)
    assert np.array_equal(bytes_of(content, channels)[0], wanted)
    for file in (as_npy(array[..., 0]), tiff(array[..., 0])):
        found = opened(file, Reading())
        pixels = to_numbers(found, channels, None, "crop", WHITE, BYTES) if isinstance(found, Numbers) else None
        assert np.array_equal(pixels[0] if pixels is not None else bytes_of(file, channels)[0], wanted)


# --- TIFF ------------------------------------------------------------------------------------------------------------


@few
@given(
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, np.float16, np.int16]),
    channels=st.integers(1, 6), height=st.integers(1, 9), width=st.integers(1, 9),
    plan=st.sampled_from(["contig", "separate"]), packed=st.sampled_from([None, "lzw", "zlib"]),
    order=st.sampled_from("<>"),
)  # fmt: skip
def test_the_numbers_of_a_tiff_are_those_that_tifffile_wrote(dtype, channels, height, width, plan, packed, order):
    array = random(channels, height, width, dtype=dtype)
    array = np.abs(array // 2) if dtype == np.int16 else array
    more = {"compression": packed, "photometric": "minisblack", "byteorder": order}
    if channels > 1:
        array_of = array if plan == "separate" else array.transpose(1, 2, 0)
        content = tiff(np.ascontiguousarray(array_of), planarconfig=plan, **more)
    else:
        content = tiff(array[0], **more)
    depth = FLOATS if np.dtype(dtype).kind == "f" else WORDS
    wanted = array.astype(np.float32) if depth == FLOATS else array.astype(int) * (257 if dtype == np.uint8 else 1)
    for every in (False, True):
        assert np.array_equal(read(content, depth, every=every), wanted)


@pytest.mark.parametrize(
    ("shape", "photometric"), [((5, 6, 7), "minisblack"), ((4, 6, 7, 3), "rgb"), ((3, 1, 9), "minisblack")]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_are_channels_where_all_are_wanted_and_else_the_first_is_taken(shape, photometric, dtype):
    stack = random(*shape, dtype=dtype)
    content, times = tiff(stack, photometric=photometric), 257 if dtype == np.uint8 else 1
    planes = stack if len(shape) == 3 else stack.transpose(0, 3, 1, 2).reshape(-1, *shape[1:3])
    assert np.array_equal(read(content, every=True), planes.astype(int) * times)
    assert np.array_equal(read(content), planes[: shape[3] if len(shape) == 4 else 1].astype(int) * times)
    assert opened(content, Reading(WORDS)).moving


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32"])
def test_whole_numbers_of_other_types_in_a_tiff(dtype):
    array = np.arange(42, dtype=dtype).reshape(6, 7)
    assert np.array_equal(read(tiff(array))[0], array)
    if dtype.startswith("int"):
        assert "numbers from -1 to 41" in why(tiff(np.where(array == 3, -1, array).astype(dtype)))


def test_pages_with_transparency_are_channels_like_others():
    stack = random(2, 6, 7, 2)
    content = tiff(stack, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    picture = opened(content, Reading(WORDS, True))
    assert picture.channels == 4 and not picture.alpha
    assert np.array_equal(read(content, every=True), stack.transpose(0, 3, 1, 2).reshape(4, 6, 7))
    assert opened(content, Reading(WORDS)).alpha


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_of_a_tiff(channels):
    array = random(6, 7, channels)
    more = {"photometric": "rgb" if channels == 4 else "minisblack", "planarconfig": "contig"}
    content = tiff(array, extrasamples=["unassalpha"], **more)
    picture = opened(content, Reading(WORDS))
    assert picture.alpha and np.array_equal(read(content), array.transpose(2, 0, 1))
    # colours that were multiplied by it come back to within what was rounded
    alpha = np.maximum(array[..., -1:], 2000)
    held = np.concatenate([np.round(array[..., :-1] * (alpha / 65535)), alpha], -1).astype(np.uint16)
    found = read(tiff(held, extrasamples=["assocalpha"], **more)).astype(int).transpose(1, 2, 0)
    assert (np.abs(found[..., :-1] - array[..., :-1]) <= 0.5 * 65535 / alpha + 1).all()
    assert np.array_equal(found[..., -1:], alpha)


def test_a_fourth_channel_that_is_not_said_to_be_transparency_is_none():
    array = random(6, 7, 4)
    picture = opened(tiff(array, photometric="minisblack", planarconfig="contig"), Reading(WORDS))
    assert picture.mode == "4ch;16" and not picture.alpha


def test_where_zero_is_white_it_is_white():
    eight, sixteen = random(6, 7, dtype=np.uint8), random(6, 7)
    assert np.array_equal(read(tiff(eight, photometric="miniswhite"))[0], (255 - eight.astype(int)) * 257)
    assert np.array_equal(read(tiff(sixteen, photometric="miniswhite"))[0], 65535 - sixteen)


def test_twelve_bits_fill_their_range():
    array = random(6, 7) >> 4
    for content in (tiff(array), imagecodecs.png_encode(array), as_npy(array)):
        assert np.array_equal(read(content, TWELVE)[0], array)
    array[2, 2] = 4096
    assert "beyond data.range 0 4095" in why(tiff(array), TWELVE)


# --- damage ----------------------------------------------------------------------------------------------------------

WHOLE = {
    "npy": as_npy(random(20, 30, 3)),
    "TIFF": tiff(random(20, 30)),
    "LZW": tiff(random(20, 30, 3), photometric="rgb", compression="lzw"),
    "pages": tiff(random(3, 20, 30), photometric="minisblack"),
    "PNG": imagecodecs.png_encode(random(20, 30)),
    "RGB PNG": imagecodecs.png_encode(random(20, 30, 3)),
    "float": tiff(random(20, 30, dtype=np.float32)),
}


@many
@given(
    kind=st.sampled_from(sorted(WHOLE)), at=st.integers(0, 4000), what=st.binary(min_size=1, max_size=8),
    front=st.booleans(), every=st.booleans(), depth=st.sampled_from([BYTES, WORDS, FLOATS]),
)  # fmt: skip
def test_broken_bytes_are_numbers_or_a_bad_picture_and_nothing_else(kind, at, what, front, every, depth):
    whole = WHOLE[kind]
    at %= 300 if front else len(whole)
    with suppress(BadPictureError):
        picture = opened(whole[:at] + what + whole[at + len(what) :], Reading(depth, every))
        if isinstance(picture, Numbers):
            to_numbers(picture, picture.channels, (8, 8), "crop", WHITE, depth)


@many
@given(kind=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 0.95), every=st.booleans())
def test_what_was_cut_off_is_bad(kind, share, every):
    content = WHOLE[kind][: max(int(share * len(WHOLE[kind])), 8)]
    if kind in ("TIFF", "float", "LZW", "pages"):  # tifffile may write the numbers before their description
        with suppress(BadPictureError):
            read(content, FLOATS if kind == "float" else WORDS, every=every)
    else:
        assert why(content, every=every)


def with_tag(content, tag, value):
    """A TIFF, of little-endian numbers, that has another value of a tag."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        at = file.pages[0].tags[tag].valueoffset
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]


@pytest.mark.parametrize(("rows", "said"), [(2**31, "do not hold"), (2**21, "do not hold"), (0, "no pixels")])
@pytest.mark.parametrize("every", [False, True])
def test_what_a_damaged_header_promises_is_not_waited_for(rows, said, every):
    assert said in why(with_tag(WHOLE["LZW"], 257, rows), every=every)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert why(WHOLE["RGB PNG"]) == "it needs the package imagecodecs: pip install -e '.[formats]'"
    assert read(WHOLE["PNG"]).shape == (1, 20, 30)  # Pillow reads it


# --- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "modes", "tinted", "count"),
    [
        ("auto", {"L;16"}, False, 1), ("auto", {"L;16", "RGB"}, False, 3), ("auto", {"LA;16"}, True, 3),
        ("auto", {"F"}, False, 1), ("auto", {"I;16B", "1"}, False, 1), ("auto", {"5ch;float32"}, False, 5),
        ("auto", {"RGBA;16"}, False, 3), ("all", {"RGBA;16"}, False, 4), ("all", {"LA;16"}, False, 2),
        ("all", {"7ch;16", "7ch"}, False, 7), ("grey", {"RGB"}, False, 1), ("rgb", {"L"}, False, 3),
        ("rgba", {"L", "5ch"}, False, 4), ("auto", {"P"}, False, 3), ("all", {"L;int64"}, False, 1),
    ],
)  # fmt: skip
def test_the_number_of_channels(asked, modes, tinted, count):
    assert channels_of(asked, modes, tinted) == count


@pytest.mark.parametrize(("asked", "modes"), [("all", {"RGB", "L"}), ("auto", {"5ch", "6ch"}), ("auto", {"5ch", "L"})])
def test_several_numbers_of_channels_are_refused(asked, modes):
    with pytest.raises(ValueError, match=r"pictures of \d and \d channels: (give data.channels|use those)"):
        channels_of(asked, modes, False)


@pytest.mark.parametrize("depth", [BYTES, WORDS])
def test_grey_and_colour_become_each_other_as_pillow_does_it(depth):
    times = 257 if depth == WORDS else 1
    colours = random(9, 8, 3, dtype=np.uint8)
    luma = np.array(Image.fromarray(colours).convert("L")).astype(int) * times
    found = read(as_npy(colours), depth, channels=1)[0]
    assert np.abs(found.astype(int) - luma).max() <= times
    grey = random(9, 8, dtype=np.uint8)
    rgb, rgba = (read(as_npy(grey), depth, channels=channels) for channels in (3, 4))
    assert (rgb == grey.astype(int) * times).all() and np.array_equal(rgba[:3], rgb)
    assert (rgba[3] == depth.high).all()


def test_five_channels_are_no_colours():
    content = as_npy(random(9, 8, 5))
    for channels in (1, 3, 4, 6):
        assert why(content, channels=channels) == f"it has 5 channels, not {channels}"


# --- transparency ----------------------------------------------------------------------------------------------------


@few
@given(seed=st.integers(0, 99), background=st.tuples(*[st.integers(0, 255)] * 3), channels=st.sampled_from([1, 3]))
def test_what_is_transparent_lies_over_the_background_as_pillow_lays_it(seed, background, channels):
    array = random(6, 7, 4, dtype=np.uint8, seed=seed)
    under = Image.new("RGBA", (7, 6), (*background, 255))
    laid = Image.alpha_composite(under, Image.fromarray(array)).convert("L" if channels == 1 else "RGB")
    wanted = np.atleast_3d(np.array(laid)).transpose(2, 0, 1).astype(int) * 257
    sixteen = array.astype(np.uint16) * 257
    for content in (pillow(Image.fromarray(array)), imagecodecs.png_encode(sixteen)):
        found = read(content, channels=channels, background=background)
        assert np.abs(found.astype(int) - wanted).max() <= 257 * (1 if channels == 3 else 1.5)


@pytest.mark.parametrize("depth", [WORDS, TWELVE, FLOATS, UNIT])
def test_opaque_is_the_highest_number_and_clear_the_lowest(depth):
    """So that x = 1 is opaque; in the file it is 65535, whatever the range of its colours."""
    array = np.zeros((4, 5, 4), np.uint16)
    array[:, 1:, 3] = 65535
    array[:, 2, 3] = 32768
    found = read(imagecodecs.png_encode(array), depth)
    middle = round((depth.low + depth.high) / 2) if depth.whole else (depth.low + depth.high) / 2
    assert (found[3, :, 0] == depth.low).all() and (found[3, :, 3] == depth.high).all()
    np.testing.assert_allclose(found[3, :, 2], middle, atol=1 if depth.whole else 1e-3 * (depth.high - depth.low))


def test_twelve_bits_with_transparency_lie_over_white_of_twelve_bits():
    array = np.zeros((4, 5, 4), np.uint16)
    array[..., :3] = 4095
    array[:, 2:, :3] = 0
    array[:, ::2, 3] = 65535
    found = read(imagecodecs.png_encode(array), TWELVE, channels=3)
    assert found[0, 0].tolist() == [4095, 4095, 0, 4095, 0]


def test_transparency_that_is_not_a_number_is_bad():
    array = np.ones((4, 5, 4), np.float32)
    array[1, 1, 3] = np.nan
    content = tiff(array, photometric="rgb", extrasamples=["unassalpha"], planarconfig="contig")
    assert why(content, UNIT) == "it holds NaN or infinity"
    array[1, 1, 3] = 2
    content = tiff(array, photometric="rgb", extrasamples=["unassalpha"], planarconfig="contig")
    assert why(content, UNIT) == "its alpha is 1 to 2, beyond 0 and 1"


def test_opaque_floats_are_opaque_whatever_the_range_of_their_colours():
    array = np.random.default_rng(0).uniform(0, 100, (4, 5, 4)).astype(np.float32)
    array[..., 3] = 1
    array[0, 0, 3], array[0, 1, 3] = 0, 0.25
    content = tiff(array, photometric="rgb", extrasamples=["unassalpha"], planarconfig="contig")
    depth = Depth("float32", 0, 100)
    over = read(content, depth, 3, None, "crop", (255, 255, 255))
    colours = array[..., :3].transpose(2, 0, 1)
    np.testing.assert_allclose(over[:, 1:], colours[:, 1:], atol=1e-4)
    np.testing.assert_allclose(over[:, 0, 0], 100, atol=1e-4)
    np.testing.assert_allclose(over[:, 0, 1], 0.25 * colours[:, 0, 1] + 75, atol=1e-4)
    np.testing.assert_allclose(read(content, depth, 4)[3], 100 * array[..., 3], atol=1e-4)


@few
@given(
    seed=st.integers(0, 99), height=st.integers(6, 20), width=st.integers(6, 20),
    shape=st.tuples(st.integers(3, 24), st.integers(3, 24)), resize=st.sampled_from(["crop", "stretch", "pad", "keep"]),
    depth=st.sampled_from([WORDS, Depth("float32", 0, 255), Depth("float32", -100, 300)]),
)  # fmt: skip
def test_transparent_pictures_are_resized_as_pillow_does_it(seed, height, width, shape, resize, depth):
    array = smooth(height, width, 4)
    array[..., 3] = np.maximum(np.roll(array[..., 3], seed % 7, 1), 100)
    wanted = bytes_of(pillow(Image.fromarray(array)), 4, shape, resize).astype(float)
    found = read(pillow(Image.fromarray(array)), depth, 4, shape, resize).astype(float)
    found[:3] /= 257 if depth == WORDS else 1
    found[3] = (found[3] - depth.low) / (depth.high - depth.low) * 255
    seen = wanted[3] > 0
    assert np.abs(found[3] - wanted[3]).max() <= 1.5  # Pillow rounds after each direction
    assert (np.abs(found[:3] - wanted[:3]) * wanted[3] / 255)[:, seen].max() <= 3


@pytest.mark.parametrize("depth", [WORDS, UNIT])
def test_hidden_colours_do_not_show_at_edges(depth):
    array = np.zeros((16, 16, 4), np.uint16)
    array[..., 0] = 65535  # red, and where nobody sees it, green
    array[:, 8:, :2] = 0, 65535
    array[:, :8, 3] = 65535
    content = tiff((array / 65535).astype(np.float32), photometric="rgb", extrasamples=["unassalpha"]) if (
        depth == UNIT) else imagecodecs.png_encode(array)  # fmt: skip
    found = read(content, depth, 4, (5, 5), "stretch")
    seen = found[3] > 0
    assert seen.any() and (found[1][seen] == 0).all() and (found[0][seen] >= 0.999 * depth.high).all()


# --- shapes ----------------------------------------------------------------------------------------------------------


@few
@given(
    height=st.integers(2, 30), width=st.integers(2, 30), channels=st.integers(1, 5),
    shape=st.tuples(st.integers(2, 30), st.integers(2, 30)), depth=st.sampled_from([WORDS, TWELVE, FLOATS]),
)  # fmt: skip
def test_stretched_pictures_are_those_of_pillows_resize_of_floats(height, width, channels, shape, depth):
    planes = random(channels, height, width, dtype=depth.type)
    planes = planes % 4096 if depth == TWELVE else planes
    wanted = [
        np.array(Image.fromarray(plane.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC))
        for plane in planes
    ]
    wanted = np.clip(wanted, depth.low, depth.high)
    found = read(as_npy(np.moveaxis(planes, 0, -1)) if channels <= height else as_npy(planes), depth, shape=shape,
                 resize="stretch") if channels <= height or width > channels else None  # fmt: skip
    if found is not None:
        np.testing.assert_allclose(found, wanted, atol=0.51 if depth.whole else 1e-3)


@few
@given(
    height=st.integers(5, 30), width=st.integers(5, 30), channels=st.sampled_from([1, 3]),
    shape=st.tuples(st.integers(2, 30), st.integers(2, 30)), resize=st.sampled_from(["crop", "pad", "stretch", "keep"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
)  # fmt: skip
def test_pictures_of_eight_bits_come_to_a_shape_as_by_the_shorter_way(
    height, width, channels, shape, resize, background
):
    content = pillow(Image.fromarray(smooth(height, width, channels).squeeze()))
    wanted = bytes_of(content, channels, shape, resize, background)
    found = read(content, WORDS, channels, shape, resize, background)
    assert found.shape == (channels, *shape)
    assert np.abs(found / 257 - wanted).max() <= 1.5  # Pillow rounds after each direction


@pytest.mark.parametrize("resize", ["pad", "keep"])
@pytest.mark.parametrize("depth", [WORDS, FLOATS])
def test_around_transparent_pictures_is_nothing_and_around_many_channels_is_black(resize, depth):
    ones = np.full((4, 8, 4), depth.high, depth.type)
    opaque = ones.copy()
    opaque[..., 3] = depth.high if depth.whole else 1  # alpha of floats goes from 0 to 1
    clear = tiff(opaque, photometric="rgb", extrasamples=["unassalpha"])
    found = read(clear, depth, 4, (8, 8), resize)
    assert (found[3, :2] == depth.low).all() and (found[3, 2:6] == depth.high).all()
    assert (found[:3, 2:6] == depth.high).all() and (found[:3, :2] == depth.low).all()
    many = np.full((4, 8, 5), depth.high, depth.type)
    found = read(as_npy(np.moveaxis(many, -1, 0)), depth, 5, (8, 8), resize)
    assert (
        (found[:, 2:6] == depth.high).all() and (found[:, :2] == depth.low).all() and (found[:, 6:] == depth.low).all()
    )
    white = read(as_npy(ones[..., 0]), depth, 1, (8, 8), resize)
    assert (white == depth.high).all()
    red = read(as_npy(ones[..., :3]), depth, 3, (8, 8), resize, (255, 0, 0))
    assert (red[0] == depth.high).all() and (red[1:, :2] == depth.low).all()


@pytest.mark.parametrize("seed", range(12))
def test_garbage_is_bad_in_words_about_the_file_and_not_about_its_reader(seed):
    content = b"II*\0" + np.random.default_rng(seed).bytes(500)
    with pytest.raises(BadPictureError) as bad:
        decode(Encoded(content), Decoding(3, (4, 4), "crop", (0, 0, 0)))
    assert not any(word in str(bad.value) for word in ("index", "range", "object", "None", "unpack"))
