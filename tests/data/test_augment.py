import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from scipy.linalg import expm

from flowimg.data.augment import NUMBERS, draw_numbers, inverse, map_of, resampled, transformed
from flowimg.data.batches import ImageBatches
from flowimg.data.store import Images, hold_out
from flowimg.spaces.pixels import Pixels

few = settings(max_examples=20, deadline=None, derandomize=True)
MANY = range(64 * 300)


def pictures(n=3, channels=2, height=8, width=8, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def numbers(**named):
    """One picture's numbers, by name."""
    names = ["mirrored", "upside_down", "scale", "cos", "sin", "stretch", "slant", "right", "down"]
    return torch.tensor([[float(named.get(name, 0)) for name in names]], dtype=torch.float64)


def turned(angle):
    return numbers(cos=math.cos(angle) - 1, sin=math.sin(angle))


def carried(x, a):
    a = a.expand(len(x), -1)
    return transformed(x, a.float(), map_of(a).float())


def batches(augment, flip=False, n=520, batch_size=500, labels=True, size=8):
    pixels = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    images = Images(pixels, torch.arange(n) if labels else None, tuple(map(str, range(n))) if labels else ())
    how = {"space": Pixels((3, size, size)), "flip": flip, "seed": 0, "batch_size": batch_size}
    return ImageBatches(images, hold_out(n, 20), augment=augment, device=torch.device("cpu"), **how)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_zeros_leave_every_bit():
    x = pictures()
    assert torch.equal(carried(x, numbers()), x)


def test_mirrors_keep_every_bit():
    x = pictures(height=5, width=7)
    by_hand = torch.from_numpy(x.numpy()[..., ::-1].copy())
    assert torch.equal(carried(x, numbers(mirrored=1)), by_hand)
    assert torch.equal(carried(x, numbers(upside_down=1)), torch.from_numpy(x.numpy()[..., ::-1, :].copy()))
    both = carried(x, numbers(mirrored=1, upside_down=1))
    assert torch.equal(both, torch.from_numpy(x.numpy()[..., ::-1, ::-1].copy()))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (3, -2), (-4, 5)])
def test_a_move_by_whole_pixels_is_a_shift_and_the_edge_is_a_mirror(right, down):
    x = pictures(height=8, width=12)
    ours = carried(x, numbers(right=right / 12 / 0.125, down=down / 8 / 0.125))
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (6, 6), (6, 6)), mode="symmetric")
    by_hand = wide[:, :, 6 - down : 14 - down, 6 - right : 18 - right]
    np.testing.assert_allclose(ours, by_hand, atol=2e-5)


@pytest.mark.parametrize(("quarters", "size"), [(1, 8), (2, 8), (3, 7)])
def test_a_turn_by_right_angles_is_rot90(quarters, size):
    x = pictures(height=size, width=size)
    # y runs down: a positive angle turns the picture clockwise
    torch.testing.assert_close(
        carried(x, turned(quarters * math.pi / 2)), torch.rot90(x, -quarters, (2, 3)), atol=2e-5, rtol=0
    )


def test_a_turn_of_a_wide_picture_is_by_its_middle_and_does_not_shear():
    x = torch.zeros(1, 1, 8, 16)
    x[0, 0, 3, 8:11] = 1  # a bar to the right of the middle
    ours = carried(x, turned(math.pi / 2))
    expected = torch.zeros_like(x)
    expected[0, 0, 4:7, 8] = 1
    # further out the picture came from beyond its upper and lower edge
    torch.testing.assert_close(ours[..., 4:12], expected[..., 4:12], atol=2e-5, rtol=0)


def test_a_scale_of_two_repeats_the_middle():
    ramp = torch.linspace(-0.5, 0.5, 16)[None, None, None].expand(1, 1, 16, 16)
    ours = carried(ramp, numbers(scale=5))[0, 0, 8]  # 2^(0.2 * 5)
    # torch's cubic is wrong by a twentieth of a step on a ramp
    torch.testing.assert_close(ours[2:-2] * 15, ((torch.arange(16) + 0.5 - 8) / 2)[2:-2], atol=0.05, rtol=0)


def test_a_stretch_along_the_width_squeezes_the_height():
    across = torch.linspace(-0.5, 0.5, 16)[None, None, None].expand(1, 1, 16, 16)
    at = torch.arange(16) + 0.5 - 8
    wider, higher = (carried(across, numbers(stretch=n))[0, 0, 8] for n in (2.5, -2.5))
    torch.testing.assert_close(wider[2:-2] * 15, (at / 2**0.5)[2:-2], atol=0.05, rtol=0)
    torch.testing.assert_close(higher[4:-4] * 15, (at * 2**0.5)[4:-4], atol=0.05, rtol=0)


@few
@given(seed=st.integers(0, 1000))
def test_a_smooth_picture_is_looked_up_where_its_points_came_from(seed):
    # a wide blob, whose values are known everywhere
    _, maps = draw_numbers(seed, 0, range(1), 1.0)
    at = torch.arange(32) + 0.5 - 16

    def blob(right, down):
        return 0.8 * torch.exp(-((right - 2) ** 2 / 30 + (down + 1) ** 2 / 60 + (right - 2) * (down + 1) / 60))

    x = blob(at[None, :], at[:, None])[None, None]
    ours = resampled(x, inverse(maps))[0, 0]
    linear, move = maps[0, :, :2].double(), maps[0, :, 2].double() * 32
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy")).flatten(1).double()
    came = torch.linalg.solve(linear, grid - move[:, None]).unflatten(1, (32, 32))
    inside = came.abs().amax(0) < 13
    assert (ours - blob(*came))[inside].abs().max() < 0.02


def test_cubic_interpolation_and_mirrors_agree_with_scipy_on_a_smooth_picture():
    x = pictures(1, 1, 24, 24)
    x = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, 2, 2), mode="reflect"))
    a = numbers(scale=-0.7, cos=math.cos(0.6) - 1, sin=math.sin(0.6), stretch=0.9, slant=-0.4, right=0.5, down=-1.1)
    map_ = map_of(a)[0].numpy()
    swap = np.array([[0, 1], [1, 0]])  # scipy counts rows first
    back = swap @ np.linalg.inv(map_[:, :2]) @ swap
    middle = np.array([11.5, 11.5])
    offset = middle - back @ (middle + swap @ map_[:, 2] * 24)
    by_scipy = ndimage.affine_transform(x[0, 0].numpy(), back, offset, order=3, mode="reflect")
    np.testing.assert_allclose(carried(x, a)[0, 0], by_scipy, atol=0.01)


def test_half_a_pixel_off_a_fine_ripple_keeps_more_than_straight_lines_would_leave():
    x = torch.cos(torch.arange(32) * 2 * math.pi / 4)[None, None, None].expand(1, 1, 32, 32)
    ours = carried(x, numbers(right=0.5 / 32 / 0.125))[0, 0, 16, 4:-4]
    # a mean of neighbours keeps cos(pi / 4) = 0.71 of it; this kernel's taps are (-3, 19, 19, -3) / 32
    kept = (2 * 19 * math.cos(math.pi / 4) - 2 * 3 * math.cos(3 * math.pi / 4)) / 32
    expected = kept * torch.cos((torch.arange(32) - 0.5) * 2 * math.pi / 4)[4:-4]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mirror", ["mirrored", "upside_down"])
def test_a_picture_that_is_mirrored_and_moved_is_mirrored_once_and_first(mirror):
    x, move = pictures(), {"right": 2 / 8 / 0.125, "down": 1 / 8 / 0.125}
    torch.testing.assert_close(
        carried(x, numbers(**{mirror: 1}, **move)), carried(carried(x, numbers(**{mirror: 1})), numbers(**move))
    )


def test_values_stay_in_range():
    x = pictures(64).sign()
    drawn, maps = draw_numbers(0, 0, range(64), 1.0)
    assert transformed(x, drawn, maps).abs().max() <= 1


# --- maps ------------------------------------------------------------------------------------------------------------


def rotation(angle):
    return expm(angle * np.array([[0.0, -1.0], [1.0, 0.0]]))


@few
@given(
    st.tuples(st.booleans(), st.booleans()),
    st.floats(-3, 3),
    st.floats(-math.pi, math.pi),
    st.floats(-3, 3),
    st.floats(-math.pi, math.pi),
    st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_the_map_is_the_product_of_its_parts_in_their_order(mirrors, scale, angle, stretch, direction, moves):
    a = numbers(
        mirrored=mirrors[0],
        upside_down=mirrors[1],
        scale=scale,
        cos=math.cos(angle) - 1,
        sin=math.sin(angle),
        stretch=stretch * math.cos(2 * direction),
        slant=stretch * math.sin(2 * direction),
        right=moves[0],
        down=moves[1],
    )
    flipped = np.diag([-1.0 if mirror else 1.0 for mirror in mirrors])
    scaled = 2 ** (0.2 * scale) * np.eye(2)
    along = rotation(direction)
    stretched = along @ np.diag([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)]) @ along.T
    expected = stretched @ rotation(angle) @ scaled @ flipped
    np.testing.assert_allclose(map_of(a)[0, :, :2], expected, atol=1e-12)
    np.testing.assert_allclose(map_of(a)[0, :, 2], 0.125 * np.array(moves), atol=1e-12)


def test_numbers_alone_tell_the_map_and_no_two_the_same():
    drawn, maps = draw_numbers(3, 0, range(256), 0.7)
    torch.testing.assert_close(map_of(drawn.double()).float(), maps, atol=1e-5, rtol=1e-5)
    # a stretch along a direction and along its opposite is one map, and told by one set of numbers
    ways = ((0.8, 0.3), (0.8, 0.3 + math.pi), (-0.8, 0.3 + math.pi / 2))
    same = [[n * math.cos(2 * d), n * math.sin(2 * d)] for n, d in ways]
    torch.testing.assert_close(torch.tensor(same), torch.tensor(same[:1]).expand(3, 2))


def test_inverse_leads_back():
    _, maps = draw_numbers(4, 0, range(64), 1.0)
    back = inverse(maps.double())
    point = torch.randn(64, 2, 1, dtype=torch.float64)
    there = maps[:, :, :2].double() @ point + maps[:, :, 2:].double()
    torch.testing.assert_close(back[:, :, :2] @ (there + back[:, :, 2:]), point)


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.12, 1.0])
def test_each_transformation_comes_as_often_as_asked(p):
    a = draw_numbers(0, 0, MANY, p)[0]
    share = 4 * 0.5 / len(MANY) ** 0.5
    assert (a[:, 0] == 1).float().mean().item() == pytest.approx(0.5, abs=share)  # whatever p
    assert (a[:, 1] == 1).float().mean().item() == pytest.approx(p / 2, abs=share)
    parts = torch.stack([a[:, 2] != 0, a[:, 4] != 0, a[:, 5] != 0, a[:, 7] != 0])
    for part in parts:
        assert part.float().mean().item() == pytest.approx(p, abs=share)
    if p == 0.12:  # tried on their own
        columns = np.vstack([parts, a[:, 0] == 1, a[:, 1] == 1])
        assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < 5 / len(MANY) ** 0.5


def test_what_is_drawn_is_spread_as_it_says():
    a = draw_numbers(0, 0, MANY, 1.0)[0].double()
    stretch, direction = torch.hypot(a[:, 5], a[:, 6]), torch.atan2(a[:, 6], a[:, 5])
    for normal in (a[:, 2], a[:, 7], a[:, 8]):
        assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(stretch, "halfnorm").pvalue > 1e-3
    for angle in (torch.atan2(a[:, 4], a[:, 3] + 1), direction):
        assert stats.kstest(angle, "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-3
    torch.testing.assert_close((a[:, 3] + 1) ** 2 + a[:, 4] ** 2, torch.ones(len(a)).double(), atol=1e-5, rtol=0)
    assert np.abs(np.corrcoef(a.T) - np.eye(NUMBERS)).max() < 5 / len(MANY) ** 0.5


# --- batches ---------------------------------------------------------------------------------------------------------


@few
@given(inner=st.lists(st.integers(1, 499), max_size=4), step=st.integers(0, 10**6), flip=st.booleans())
def test_augmented_pictures_are_the_same_bit_for_bit_however_the_batch_is_cut(inner, step, flip):
    ours = batches(0.4, flip)
    whole = ours(step, range(500))
    parts = [ours(step, range(a, b)) for a, b in pairwise(sorted({0, 500, *inner}))]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    for kind in (0, 1):
        assert torch.equal(torch.cat([part[1][kind] for part in parts]), whole[1][kind])


def test_pictures_told_to_be_as_they_are_keep_every_bit_and_the_others_are_other_pictures():
    x_1, (labels, a) = batches(0.12)(5, range(500))
    plain, (names, _) = batches(0.0)(5, range(500))
    assert torch.equal(labels, names) and a.shape == (500, NUMBERS) and a.dtype == torch.float32
    as_they_are = (a == 0).all(1)
    assert 0.2 < as_they_are.float().mean() < 0.36
    same = (x_1 == plain).flatten(1).all(1)
    assert torch.equal(same, as_they_are)
    mirrored = (a[:, 0] == 1) & (a[:, 1:] == 0).all(1)
    assert mirrored.any() and torch.equal(x_1[mirrored], plain[mirrored].flip(-1))


def test_flips_that_are_not_told_come_before_those_that_are():
    plain, flipped = batches(0.0, flip=True)(1, range(500))[0], batches(0.12, flip=True)(1, range(500))
    as_they_are = (flipped[1][1] == 0).all(1)
    assert torch.equal(flipped[0][as_they_are], plain[as_they_are])


def test_held_out_pictures_and_some_are_never_augmented():
    plain, ours = batches(0.0), batches(1.0)
    (kept, cond), (others, same) = plain.held_out(9), ours.held_out(9)
    assert torch.equal(kept, others) and torch.equal(cond.label, same.label) and cond[1:] == same[1:] == (None,)
    one, other = plain.some(9), ours.some(9)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_every_step_and_seed_draws_afresh():
    first, step, seed = (draw_numbers(s, t, range(64), 1.0)[0] for s, t in ((0, 0), (0, 1), (1, 0)))
    for other in (step, seed):
        assert not (first[:, 2] == other[:, 2]).any()


def test_pictures_without_labels_come_with_numbers_alone():
    x_1, (labels, a) = batches(0.5, labels=False)(0, range(10))
    assert labels is None and a.shape == (10, NUMBERS) and len(x_1) == 10
