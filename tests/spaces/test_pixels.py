"""Grey levels and x: there and back, and the grid against torchvision's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.utils import make_grid

from flowimg.spaces.pixels import GAP, TILE, Pixels, tiled, unit

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


def test_bytes_and_floats_are_the_same_pictures():
    assert torch.equal(unit(LEVELS), Pixels((1, 16, 16)).encode(LEVELS))
    x = torch.randn(2, 3, 4, 4)
    assert unit(x) is x


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
    class Fine(Pixels):
        levels = 1024

    fine = Fine((1, 1, 3))
    ends = torch.tensor([0.0, 511.5, 1023.0]).reshape(1, 1, 1, 3)
    assert fine.half == 511.5 and fine.encode(ends).flatten().tolist() == [-1, 0, 1]
