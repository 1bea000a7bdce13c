"""ICC profiles, against colours worked out from the primaries: linear light, XYZ, sRGB, by numpy only."""

import struct

import numpy as np
import pytest
from pictures_made import WHITE, content
from PIL import Image, ImageCms, features

from flowimg.data.colours import _change, to_srgb
from flowimg.data.pictures import open_picture, to_pixels

# --- the truth -------------------------------------------------------------------------------------------------------

D65, D50 = np.array([0.3127 / 0.3290, 1, 0.3583 / 0.3290]), np.array([0.9642, 1, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def adapted(white, to):
    """The matrix that takes XYZ seen under one white to XYZ under another."""
    return np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ to / (BRADFORD @ white)) @ BRADFORD


def primaries(*chromaticities):
    """The matrix from linear RGB to XYZ under D65."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in chromaticities]).T
    return columns * np.linalg.solve(columns, D65)


SRGB = primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = primaries((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))


def linear(levels):
    share = np.asarray(levels) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def levels_of(light):
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_of_xyz(xyz):
    return levels_of(xyz @ np.linalg.inv(SRGB).T)


def srgb_of_lab(lab):
    f = (lab[0] + 16) / 116 + np.array([lab[1] / 500, 0, -lab[2] / 200])
    return srgb_of_xyz(adapted(D50, D65) @ (D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))))


# --- profiles, byte by byte ------------------------------------------------------------------------------------------


def fixed(*numbers):
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def profile(colours, tags, kind=b"mntr", pcs=b"XYZ "):
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, inside in tags.items():
        table += name + struct.pack(">II", start + len(body), len(inside))
        body += inside + bytes(-len(inside) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", start + len(body), b"", 0x04200000, kind, colours, pcs, bytes(12), b"acsp")
    return head.ljust(68, b"\0") + fixed(*D50) + bytes(48) + table + body


def xyz(values):
    return b"XYZ " + bytes(4) + fixed(*values)


def gamma(value):
    return b"para" + bytes(8) + fixed(value)


SRGB_CURVE = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def rgb_profile(matrix, curve):
    columns = (adapted(D65, D50) @ matrix).T
    tags = {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return profile(b"RGB ", {b"wtpt": xyz(D50), **tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)})


def grey_profile(value):
    return profile(b"GRAY", {b"wtpt": xyz(D50), b"kTRC": gamma(value)})


INKS = {
    (0, 0, 0, 0): (255, 128, 128),
    (255, 0, 0, 0): (140, 100, 90),
    (0, 255, 0, 0): (120, 190, 120),
    (0, 0, 255, 0): (225, 125, 210),
    (255, 255, 0, 0): (60, 145, 95),
    (255, 0, 255, 0): (125, 70, 150),
    (0, 255, 255, 0): (120, 180, 165),
}
"""L, a and b, a byte each, of some inks; black and what is not here is as dark as `cmyk_profile` says."""


def cmyk_profile(darkest=None):
    """A print, by one table of the 16 full inks: L* = L / 2.55, a* = a - 128, b* = b - 128.

    With a darkest level there is a way back, from which little CMS learns it: every grey is mixed of black ink.
    """
    corners = np.indices((2, 2, 2, 2)).reshape(4, 16).T * 255
    there = [INKS.get(tuple(corner.tolist()), (darkest or 0, 128, 128)) for corner in corners]
    back = [(0, 0, 0, 255)] * 4 + [(0, 0, 0, 0)] * 4
    tags = {b"wtpt": xyz(D50), b"A2B0": lut(4, there)}
    if darkest is not None:
        tags |= {b"A2B1": lut(4, there), b"B2A0": lut(3, back)}
    return profile(b"CMYK", tags, b"prtr", b"Lab ")


def lut(count, table):
    """A table of the corners of a cube of `count` numbers, the last number changing fastest."""
    head = b"mft1" + bytes(4) + bytes([count, len(table[0]), 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    ramp = bytes(range(256))
    return head + ramp * count + b"".join(map(bytes, table)) + ramp * len(table[0])


DISPLAY_P3, ADOBE_RGB = rgb_profile(P3, SRGB_CURVE), rgb_profile(ADOBE, gamma(2.2))
LATTICE = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 1, 3).astype(np.uint8)
ORANGE = (200, 100, 50)


def p3_to_srgb(levels):
    return srgb_of_xyz(linear(levels) @ P3.T)


def opened(picture, icc, kind="PNG", **options):
    return open_picture(content(picture, kind, icc_profile=icc, **options))


def pixels(picture, channels=3, background=WHITE):
    """Rows of colours."""
    return to_pixels(picture, channels, None, "crop", background).transpose(1, 2, 0).reshape(-1, channels)


# --- what becomes of them --------------------------------------------------------------------------------------------


def test_display_p3_becomes_the_colours_it_means():
    found = pixels(opened(Image.fromarray(LATTICE), DISPLAY_P3))
    exact = p3_to_srgb(LATTICE[:, 0])
    assert np.abs(found - exact).max() <= 1
    assert np.abs(found - LATTICE[:, 0].astype(int)).max() > 20  # the test would notice if nothing happened


def test_adobe_rgb_becomes_the_colours_it_means():
    found = pixels(opened(Image.fromarray(LATTICE), ADOBE_RGB))
    exact = srgb_of_xyz((LATTICE[:, 0] / 255) ** 2.2 @ ADOBE.T)
    assert np.abs(found - exact).max() <= 2  # its gamma is 2.2 to 16 bits; near black sRGB is steep


FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_brings_its_profile(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    found = pixels(opened(Image.new("RGB", (64, 64), ORANGE), DISPLAY_P3, kind, quality=95))
    assert np.abs(found.mean(0) - p3_to_srgb(ORANGE)).max() <= 3  # the formats' own rounding
    assert np.abs(p3_to_srgb(ORANGE) - ORANGE).max() > 10


def test_a_shape_is_made_of_converted_colours():
    # half black, half white: a grey that is mixed after the conversion is 127.5, before it is another one
    icc = rgb_profile(SRGB, gamma(1.0))
    stripes = np.zeros((4, 4, 3), np.uint8)
    stripes[:, ::2] = 255
    found = to_pixels(opened(Image.fromarray(stripes), icc), 3, (1, 1), "stretch", WHITE)
    assert np.abs(found - 127.5).max() <= 1


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_kept_and_the_background_is_in_srgb(alpha):
    picture = opened(Image.new("RGBA", (3, 2), (*ORANGE, alpha)), DISPLAY_P3)
    converted = to_srgb(picture)
    assert converted.mode == "RGBA" and (np.asarray(converted)[..., 3] == alpha).all()
    share, under = alpha / 255, np.array([10, 200, 30])
    exact = p3_to_srgb(ORANGE) * share + under * (1 - share)
    assert np.abs(pixels(picture, background=tuple(under)) - exact).max() <= 1.5


def test_a_transparent_colour_is_still_found_after_the_conversion():
    picture = Image.fromarray(np.array([[[255, 0, 0], ORANGE]], np.uint8))
    found = pixels(opened(picture, DISPLAY_P3, transparency=(255, 0, 0)), background=(1, 2, 3))
    assert found[0].tolist() == [1, 2, 3] and np.abs(found[1] - p3_to_srgb(ORANGE)).max() <= 1


@pytest.mark.parametrize("clear", [None, 1])
def test_palettes_are_converted(clear):
    picture = Image.new("P", (2, 1))
    picture.putpalette([*ORANGE, 0, 255, 0])
    picture.putdata([0, 1])
    options = {} if clear is None else {"transparency": clear}
    found = pixels(opened(picture, DISPLAY_P3, **options), background=(1, 2, 3))
    assert np.abs(found[0] - p3_to_srgb(ORANGE)).max() <= 1
    assert np.abs(found[1] - (p3_to_srgb((0, 255, 0)) if clear is None else (1, 2, 3))).max() <= 1


RAMP = np.arange(256, dtype=np.uint8)[None]


@pytest.mark.parametrize("value", [1.0, 1.8])
def test_grey_stays_grey_and_becomes_the_light_it_means(value):
    picture = opened(Image.fromarray(RAMP), grey_profile(value))
    assert to_srgb(picture).mode == "L"
    assert np.abs(pixels(picture, 1)[:, 0] - levels_of((RAMP[0] / 255) ** value)).max() <= 1
    assert (pixels(picture, 3) == pixels(picture, 1)).all()


def test_grey_with_alpha_keeps_both():
    picture = opened(Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(RAMP[:, ::-1]))), grey_profile(1.8))
    converted = to_srgb(picture)
    assert converted.mode == "LA"
    grey, alpha = np.asarray(converted)[0].T
    assert np.array_equal(alpha, RAMP[0, ::-1])
    assert np.abs(grey - levels_of((RAMP[0] / 255) ** 1.8)).max() <= 1


def test_a_transparent_grey_is_still_found_after_the_conversion():
    found = pixels(opened(Image.fromarray(RAMP), grey_profile(1.8), transparency=100), 1, (7, 7, 7))[:, 0]
    exact = levels_of((RAMP[0] / 255) ** 1.8)
    exact[100] = 7
    assert np.abs(found - exact).max() <= 1


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_what_the_inks_look_like(ink, kind):
    options = {"quality": 100} if kind == "JPEG" else {}
    found = pixels(opened(Image.new("CMYK", (8, 8), ink), cmyk_profile(), kind, **options))
    light, a, b = INKS[ink]
    assert np.abs(found - srgb_of_lab((light / 2.55, a - 128, b - 128))).max() <= 2


@pytest.mark.parametrize("darkest", [0, 40])
def test_the_black_of_a_print_is_black_and_its_paper_is_white(darkest):
    inks = Image.fromarray(np.array([[[0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), "CMYK")
    found = pixels(opened(inks, cmyk_profile(darkest), "TIFF"))
    assert found[0].max() <= 2 and found[1].min() >= 254
    assert levels_of((40 / 2.55 + 16) ** 3 / 116**3) > 30  # what it would be without compensation


# --- what is left alone ----------------------------------------------------------------------------------------------

SRGBS = {
    "littleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "written here": rgb_profile(SRGB, SRGB_CURVE),
}


@pytest.mark.parametrize("icc", SRGBS.values(), ids=SRGBS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_srgb_is_recognised_and_nothing_is_done(icc, mode):
    picture = opened(Image.new(mode, (4, 4)), icc)
    assert to_srgb(picture) is picture
    found = pixels(opened(Image.fromarray(LATTICE), icc))
    assert np.array_equal(found, LATTICE[:, 0])


def test_grey_as_srgb_has_it_is_left_alone():
    curve = profile(b"GRAY", {b"wtpt": xyz(D50), b"kTRC": SRGB_CURVE})
    picture = opened(Image.fromarray(RAMP), curve)
    assert to_srgb(picture) is picture


DAMAGED = {
    "junk": b"no profile at all",
    "nothing": b"",
    "cut off": DISPLAY_P3[:200],
    "no curves": profile(b"RGB ", {b"wtpt": xyz(D50)}),
    "zeros": DISPLAY_P3[:128] + bytes(len(DISPLAY_P3) - 128),
}


@pytest.mark.parametrize("icc", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
def test_a_damaged_profile_is_ignored(icc, mode):
    picture = Image.new(mode, (4, 4))
    picture.info["icc_profile"] = icc
    assert to_srgb(picture) is picture


@pytest.mark.parametrize(
    ("mode", "icc"),
    [
        *[(mode, DISPLAY_P3) for mode in ("L", "LA", "CMYK", "1", "LAB")],
        *[(mode, grey_profile(1.8)) for mode in ("RGB", "RGBA", "P", "CMYK")],
        *[(mode, cmyk_profile()) for mode in ("RGB", "L", "P")],
    ],
)
def test_a_profile_for_other_colours_is_ignored(mode, icc):
    picture = Image.new(mode, (4, 4))
    picture.info["icc_profile"] = icc
    assert to_srgb(picture) is picture


def test_sixteen_bits_of_grey_are_left_as_they_are():
    picture = Image.fromarray(np.arange(256, dtype=np.uint16)[None] * 257)
    found = pixels(opened(picture, grey_profile(1.8)), 1)
    assert found[:, 0].tolist() == list(range(256))


def test_a_profile_is_worked_out_once():
    _change.cache_clear()
    for _ in range(5):
        pixels(opened(Image.new("RGB", (4, 4), ORANGE), bytes(bytearray(DISPLAY_P3))))
    assert _change.cache_info().misses == 1 and _change.cache_info().hits == 4
