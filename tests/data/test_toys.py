import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from flowimg.build.data import TOYS
from flowimg.data.toys import OFF, Checkerboard, EightGaussians, Moons, Rings, Spirals
from flowimg.settings.data import PointData

EVERY = {name: TOYS[name](PointData(source=name)) for name in TOYS} | {
    f"{n} cells": Checkerboard(n) for n in range(2, 10)
}
# the least and the largest numbers torch.rand draws, and what lies close to them
CLOSE = [0.0, 2**-24, 1e-6, 1e-5, 1e-4, 0.25, 0.5, 0.75, 1 - 1e-4, 1 - 1e-5, 1 - 1e-6, 1 - 2**-24]


@pytest.fixture(params=EVERY)
def toy(request):
    return EVERY[request.param]


def samples(toy, n=20_000, seed=0):
    return toy.sample(torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)))


def test_samples_lie_on_the_support_within_the_extent(toy):
    x = samples(toy, 200_000)
    assert x.shape == (200_000, 2) and x.dtype == torch.float32
    part = toy.part(x)
    assert part.dtype == torch.int64
    assert part.min() == 0 and part.max() == toy.parts - 1
    assert x.abs().max() <= toy.extent + 1e-6


def test_samples_at_the_very_edges_lie_in_the_part_they_were_drawn_for(toy):
    edges = [(k / toy.parts) for k in range(toy.parts)]
    first = [min(max(e + d, 0), 1 - 2**-24) for e in [*edges, 1.0] for d in (-1e-6, 1e-6)]
    u = torch.tensor(list(product(first, CLOSE, CLOSE)))
    middle = u.clone()
    middle[:, 1:] = 0.5
    assert torch.equal(toy.part(toy.sample(u)), toy.part(toy.sample(middle)))


def test_first_number_picks_every_part_in_an_equal_share(toy):
    u = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1))
    u[:, 0] = (torch.arange(5000) + 0.5) / 5000
    counts = torch.bincount(toy.part(toy.sample(u)), minlength=toy.parts)
    assert (counts - 5000 / toy.parts).abs().max() <= 1


def test_parts_have_equal_mass(toy):
    counts = np.bincount(toy.part(samples(toy)), minlength=toy.parts)
    assert len(counts) == toy.parts
    assert stats.chisquare(counts).pvalue > 1e-3


def test_points_outside_the_extent_and_points_that_are_none_lie_off(toy):
    far = toy.extent * 1.001
    line = torch.linspace(-far, far, 101)
    edge = torch.full_like(line, far)
    square = [torch.stack(pair, 1) for pair in ((line, edge), (line, -edge), (edge, line), (-edge, line))]
    none = torch.tensor([[torch.nan, 0], [torch.inf, 0], [0, -torch.inf], [torch.nan, torch.nan], [1e30, -1e30]])
    assert (toy.part(torch.cat([*square, none])) == OFF).all()


def test_part_of_a_point_does_not_depend_on_its_neighbours(toy):
    x = samples(toy, 50)
    assert torch.equal(toy.part(x), torch.cat([toy.part(row[None]) for row in x]))


# closed forms: squares; rings 2 pi r times their width; discs; and for the spirals the integral of r dr dtheta
AREAS = {
    "checkerboard": (Checkerboard(), (4 / 0.45) ** 2 / 2),
    "3 cells": (Checkerboard(3), (4 / 0.45) ** 2 * 5 / 9),
    "5 cells": (Checkerboard(5), (4 / 0.45) ** 2 * 13 / 25),
    "8 cells": (Checkerboard(8), (4 / 0.45) ** 2 / 2),
    "moons": (Moons(), 2 * math.pi * 2 * 0.6),
    "eight_gaussians": (EightGaussians(), 8 * math.pi * 0.9**2),
    "spirals": (Spirals(), 2 * 0.4 * 4 / (3 * math.pi) * ((3 * math.pi) ** 2 - (math.pi / 2) ** 2) / 2),
    "rings": (Rings(), 2 * math.pi * (1 + 2 + 3 + 4) * 0.3),
}


@pytest.mark.parametrize("name", AREAS)
def test_support_has_the_area_of_its_closed_form(name):
    toy, area = AREAS[name]
    n, share = 400_000, area / (2 * toy.extent) ** 2
    x = toy.extent * (2 * torch.rand(n, 2, generator=torch.Generator().manual_seed(0)) - 1)
    error = 4 * (share * (1 - share) / n) ** 0.5
    assert (toy.part(x) != OFF).float().mean().item() == pytest.approx(share, abs=error)


def test_support_is_no_larger_than_where_samples_fall(toy):
    # every small square that the support holds well inside is hit by samples: nothing is declared and never drawn
    side = 2 * toy.extent / 60
    centre = (torch.arange(60) + 0.5) * side - toy.extent
    squares = torch.cartesian_prod(centre, centre)
    corners = torch.stack([squares + side / 2 * torch.tensor(s) for s in product((-1.0, 0.0, 1.0), repeat=2)])
    inside = torch.stack([toy.part(c) != OFF for c in corners]).all(0)
    cell = ((samples(toy, 400_000) + toy.extent) / side).floor().long().clamp(0, 59)
    hits = torch.bincount(cell[:, 0] * 60 + cell[:, 1], minlength=3600)
    assert inside.sum() > 50
    assert (hits[inside] > 0).all()


def test_checkerboard_of_four_cells_is_the_notebooks():
    # facebookresearch/flow_matching's notebook: floor(x1) + floor(x2) is even on (-2, 2)^2, and all is divided by 0.45
    x = 5 * (2 * torch.rand(50_000, 2, generator=torch.Generator().manual_seed(0)) - 1)
    unscaled = x.double() * 0.45
    expected = (unscaled.floor().sum(1) % 2 == 0) & (unscaled.abs() < 2).all(1)
    assert torch.equal(Checkerboard().part(x) != OFF, expected)
    drawn = samples(Checkerboard()).double() * 0.45
    assert (drawn.floor().sum(1) % 2 == 0).all() and drawn.abs().max() < 2


@pytest.mark.parametrize("cells", [2, 3, 4, 7])
def test_checkerboard_is_uniform_on_filled_cells_and_empty_between(cells):
    side = 2 * Checkerboard.extent / cells
    place = (samples(Checkerboard(cells), 50_000).double().numpy() + Checkerboard.extent) / side
    column, row = np.floor(place).astype(int).T
    assert ((column + row) % 2 == 0).all()
    assert len(set(zip(column.tolist(), row.tolist(), strict=True))) == sum(
        (i + j) % 2 == 0 for i in range(cells) for j in range(cells)
    )
    for within in (place % 1).T:
        assert stats.kstest(within, "uniform").pvalue > 1e-3


def parts(toy, *points):
    return toy.part(torch.tensor(points)).tolist()


def test_moons_are_two_half_rings_that_turn_into_each_other():
    assert parts(Moons(), (-1.0, 1.5), (1.0, -1.5)) == [0, 1]  # the top of one, the bottom of the other
    assert parts(Moons(), (-1.0, 1.79), (-1.0, 1.81), (-1.0, 1.21), (-1.0, 1.19)) == [0, OFF, 0, OFF]
    assert parts(Moons(), (1.0, -0.49), (1.0, -0.51), (-1.0, 0.49), (-1.0, 0.51)) == [0, OFF, 1, OFF]
    x = samples(Moons())
    assert torch.equal(Moons().part(-x), 1 - Moons().part(x))


def test_moons_are_uniform_in_angle_and_in_radius():
    x = samples(Moons()).double()
    upper = x[Moons().part(x.float()) == 0] - torch.tensor([-1.0, -0.5])
    radius, angle = upper.norm(dim=1).numpy(), torch.atan2(upper[:, 1], upper[:, 0]).numpy()
    assert stats.kstest(radius, stats.uniform(1.7, 0.6).cdf).pvalue > 1e-3
    assert stats.kstest(angle, stats.uniform(0, math.pi).cdf).pvalue > 1e-3


def test_eight_gaussians_stand_on_a_circle_and_are_cut_at_three_deviations():
    for k in range(8):
        direction = math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)
        inner, outer = [tuple(r * d for d in direction) for r in (3.0 - 0.899, 3.0 - 0.901)]
        assert parts(EightGaussians(), inner, outer, tuple(3 * d for d in direction)) == [k, OFF, k]


def test_eight_gaussians_are_gaussian_where_they_are_not_cut():
    x = samples(EightGaussians()).double()
    angle = EightGaussians().part(x.float()).double() * math.pi / 4
    offset = x - 3 * torch.stack([angle.cos(), angle.sin()], 1)
    # half the squared radius, in deviations, is exponential, here cut at 3^2 / 2; the direction is any
    energy = (offset.square().sum(1) / 0.3**2 / 2).numpy()
    assert stats.kstest(energy, stats.truncexpon(b=4.5).cdf).pvalue > 1e-3
    direction = torch.atan2(offset[:, 1], offset[:, 0]).numpy()
    assert stats.kstest(direction, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_spirals_wind_one_and_a_quarter_turns_half_a_turn_apart():
    # r = 4 theta / (3 pi): at theta = pi, 2 pi, 3 pi the first arm is 4/3, 8/3 and 4 from the centre
    assert parts(Spirals(), (-4 / 3, 0.0), (8 / 3, 0.0), (-3.99, 0.01)) == [0, 0, 0]
    assert parts(Spirals(), (4 / 3, 0.0), (-8 / 3, 0.0), (3.99, -0.01)) == [1, 1, 1]
    assert parts(Spirals(), (0.0, 2 / 3 + 0.19), (0.01, 2 / 3), (-0.01, 2 / 3)) == [0, OFF, 0]  # it begins at pi / 2
    assert parts(Spirals(), (-3.99, -0.01), (-4.0, 0.01)) == [OFF, 0]  # and ends at 3 pi
    assert parts(Spirals(), (-4 / 3 - 0.199, 0.0), (-4 / 3 - 0.201, 0.0), (0.0, 0.0)) == [0, OFF, OFF]
    x = samples(Spirals())
    assert torch.equal(Spirals().part(-x), 1 - Spirals().part(x))


def test_rings_have_radius_one_to_four():
    for k in range(1, 5):
        edges = (k - 0.151, k - 0.149, k, k + 0.149, k + 0.151)
        points = [(r * math.cos(k), r * math.sin(k)) for r in edges]
        assert parts(Rings(), *points) == [OFF, k - 1, k - 1, k - 1, OFF]
    x = samples(Rings()).double()
    angle = torch.atan2(x[:, 1], x[:, 0]).numpy()
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    assert stats.kstest(((x.norm(dim=1) + 0.5) % 1).numpy(), stats.uniform(0.35, 0.3).cdf).pvalue > 1e-3
