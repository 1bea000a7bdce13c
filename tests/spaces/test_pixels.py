"""Grey levels and x: there and back, and the grid against torchvision's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.utils import make_grid

from flowimg.spaces.depth import BYTES, WORDS, Depth
from flowimg.spaces.formats import from_file
from flowimg.spaces.pixels import GAP, TILE, Pixels, tiled

few = settings(max_examples=25, deadline=None, derandomize=True)
LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def pictures(count, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def test_every_grey_level_comes_back_as_it_was():
    space = Pixels((1, 16, 16))
    x = space.encode(LEVELS)
    assert torch.equal(space.decode(x), LEVELS) and x.dtype == torch.float32
    # k / 127.5 - 1, in exact arithmetic rounded twice at most
    np.testing.assert_allclose(x.flatten(), [level * 2 / 255 - 1 for level in range(256)], atol=2**-23)
    assert x.flatten()[0] == -1 and x.flatten()[-1] == 1


@few
@given(st.floats(-0.49, 0.49), st.integers(0, 255))
def test_what_lies_within_half_a_level_is_that_level(off, level):
    x = torch.tensor([(level + off) / 127.5 - 1])
    assert Pixels((1, 1, 1)).decode(x).item() == level


@pytest.mark.parametrize("u", [0.001, 0.25, 0.5, 0.999])
def test_dequantised_pictures_stay_within_their_level(u):
    space = Pixels((1, 16, 16))
    x = space.dequantise(space.encode(LEVELS), torch.full(LEVELS.shape, u))
    np.testing.assert_allclose(((x + 1) * 127.5).flatten(), np.arange(256) + u - 0.5, atol=1e-4)
    assert torch.equal(space.decode(x), LEVELS)


def test_dequantised_pictures_fill_their_level_evenly():
    space, u = Pixels((1, 16, 16)), torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    off = (space.dequantise(space.encode(LEVELS), u) - space.encode(LEVELS)) * 127.5
    assert off.min() >= -0.5 - 1e-4 and off.max() <= 0.5 + 1e-4
    assert off.mean().abs() < 0.01 and off.var().item() == pytest.approx(1 / 12, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 4, 6)])
def test_rows_are_pictures_as_files_have_them_and_come_back(shape):
    space, stored = Pixels(shape), pictures(3, *shape)
    rows = space.rows(space.encode(stored))
    assert rows.shape == (3, shape[1], shape[2], shape[0]) and rows.dtype == torch.uint8
    assert np.array_equal(rows, np.moveaxis(stored.numpy(), 1, -1))
    assert torch.equal(space.of_rows(rows), space.encode(stored))
    assert torch.equal(space.rows(space.of_rows(rows)), rows)


@few
@given(
    count=st.integers(1, 11), channels=st.sampled_from([1, 3]), side=st.sampled_from([1, 7, 16, 48, 50]),
    columns=st.none() | st.integers(1, 13), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_grid_is_torchvisions_pixel_by_pixel(count, channels, side, columns, seed):
    stored = pictures(count, channels, side, side, seed)
    factor = math.ceil(TILE / side)
    large = torch.from_numpy(np.kron(stored.numpy(), np.ones((1, 1, factor, factor), np.uint8)))
    across = columns or math.ceil(math.sqrt(count))
    wanted = make_grid(large, nrow=across, padding=GAP, pad_value=255).permute(1, 2, 0)
    assert torch.equal(tiled(stored, columns), wanted)
    space = Pixels((channels, side, side))
    assert torch.equal(space.grid(space.encode(stored), columns), wanted)


def test_levels_and_their_half_belong_together():
    space = Pixels((3, 8, 8))
    assert (space.levels, space.half) == (256, 127.5) and space.noise_shape is None


def test_pixels_of_other_levels_keep_their_own_scale():
    fine = Pixels((1, 1, 3), Depth("uint16", 0, 1023))
    ends = torch.tensor([0.0, 511.5, 1023.0]).reshape(1, 1, 1, 3)
    assert fine.half == 511.5 and fine.levels == 1024 and fine.encode(ends).flatten().tolist() == [-1, 0, 1]


# --- other depths ----------------------------------------------------------------------------------------------------

FLOATS = Depth("float32", -1000, 3000)


def test_all_65536_levels_come_back_as_they_were():
    levels = torch.arange(65536).reshape(1, 1, 256, 256).to(torch.uint16)
    space = Pixels((1, 256, 256), WORDS)
    x = space.encode(levels)
    assert x.dtype == torch.float32 and space.decode(x).dtype == torch.uint16
    assert torch.equal(space.decode(x).int(), levels.int())
    wanted = (np.arange(65536) - 32767.5) / 32767.5
    np.testing.assert_allclose(x.flatten(), wanted, atol=2**-23)


@few
@given(st.floats(-0.49, 0.49), st.integers(0, 4095))
def test_scans_of_twelve_bits_fill_their_range(off, level):
    space = Pixels((1, 1, 1), Depth("uint16", 0, 4095))
    x = torch.tensor([(level + off) / 2047.5 - 1])
    assert space.decode(x).item() == level and space.levels == 4096
    assert space.decode(torch.tensor([-2.0, 2.0])).tolist() == [0, 4095]


def test_floats_keep_their_range_and_are_not_rounded():
    space = Pixels((1, 1, 5), FLOATS)
    stored = torch.tensor([-1000.0, -999.5, 0.1, 1000.0, 3000.0]).reshape(1, 1, 1, 5)
    before = stored.clone()
    x = space.encode(stored)
    assert torch.equal(stored, before)  # float32 is not copied by torch, and must not be written to
    np.testing.assert_allclose(x.flatten(), [-1, -0.99975, -0.49995, 0, 1], atol=1e-7)
    np.testing.assert_allclose(space.decode(x), stored, atol=3e-4)
    assert space.decode(x).dtype == torch.float32 and space.levels is None
    u = torch.full(x.shape, 0.9)
    assert torch.equal(space.dequantise(x, u), x)  # there are no levels to spread


def test_floats_that_begin_at_zero_are_not_written_to_either():
    stored = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    x = Pixels((1, 1, 3), Depth("float32", 0, 1)).encode(stored)
    assert x.flatten().tolist() == [-1, 0, 1] and stored.flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("channels", "depth", "alpha", "first"),
    [
        (1, BYTES, False, "png"), (3, BYTES, False, "png"), (4, BYTES, True, "png"), (4, BYTES, False, "tiff"),
        (1, WORDS, False, "png"), (4, WORDS, True, "png"), (5, WORDS, False, "tiff"), (2, BYTES, False, "tiff"),
        (1, FLOATS, False, "tiff"), (4, FLOATS, True, "tiff"),
    ],
)  # fmt: skip
def test_png_is_for_what_it_holds(channels, depth, alpha, first):
    space = Pixels((channels, 4, 6), depth, alpha)
    assert space.formats[0] == first and ("png" in space.formats) == (first == "png")
    rows = space.rows(torch.rand(2, channels, 4, 6) * 2 - 1).numpy()
    for form in {first, "tiff"}:
        content = space.as_file(rows[1], form)
        if alpha and not depth.whole:  # other programs expect alpha of floats from 0 to 1
            share = (rows[1][..., 3] - depth.low) / (depth.high - depth.low)
            np.testing.assert_allclose(from_file(content)[..., 3], share, atol=1e-6)
            np.testing.assert_allclose(space.of_file(content), rows[1], atol=1e-3)
        else:
            assert np.array_equal(from_file(content), rows[1]) and np.array_equal(space.of_file(content), rows[1])


@pytest.mark.parametrize(("channels", "width"), [(1, 6), (2, 13), (3, 6), (5, 34)])
def test_pictures_are_shown_in_bytes_and_many_channels_side_by_side(channels, width):
    space = Pixels((channels, 4, 6), WORDS)
    x = torch.rand(3, channels, 4, 6) * 2 - 1
    shown = space.shown(x)
    assert shown.shape == (3, channels if channels in (1, 3) else 1, 4, width) and shown.dtype == torch.uint8
    bytes_of = ((x + 1) * 127.5).round()
    if channels in (1, 3):
        assert torch.equal(shown.float(), bytes_of)
    else:
        for channel in range(channels):
            assert torch.equal(shown[:, 0, :, 7 * channel : 7 * channel + 6].float(), bytes_of[:, channel])
        assert (shown[:, 0, :, 6::7] == 255).all()
    for count in (1, 3, 5):
        grid = space.grid(torch.zeros(count, channels, 4, 6), 2)
        assert grid.shape[0] * grid.shape[1] == space.grid_pixels(count, 2)


def test_what_is_transparent_shows_the_squares_behind_it():
    space = Pixels((4, 16, 16), BYTES, alpha=True)
    x = torch.ones(3, 4, 16, 16)
    x[:, 0] = -1  # no red
    x[1, 3], x[2, 3] = -1, 0
    opaque, clear, half = space.shown(x)
    assert (opaque[0] == 0).all() and (opaque[1:] == 255).all()
    assert set(clear.unique().tolist()) == {204, 255} and (clear[0] == clear[1]).all()
    assert clear[0, 0, 0] == 255 and clear[0, 0, 2] == 204 and clear[0, 2, 2] == 255  # squares of two pixels
    # half transparent: half the way between; alpha 0 is level 128 of 255
    share = 128 / 255
    np.testing.assert_allclose(half[0], clear[0].float() * (1 - share), atol=0.51)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Pixels((1, 2, 2)), "grey pictures of 8 bits"),
        (Pixels((3, 2, 2), WORDS), "RGB pictures of 16 bits"),
        (Pixels((4, 2, 2), alpha=True), "RGBA pictures of 8 bits"),
        (Pixels((5, 2, 2), FLOATS), "pictures of 5 channels of floating-point numbers"),
    ],
)
def test_a_space_says_what_its_pictures_are(space, said):
    assert space.words == said
