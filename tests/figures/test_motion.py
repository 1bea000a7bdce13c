"""Points in motion: what is measured of paths, and what the animation holds."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from flowimg.figures import motion
from flowimg.figures.motion import density_figure, detours, flow_animation, straightness_figure, write_animation


def test_a_straight_path_is_no_detour_whatever_its_speed():
    t = torch.linspace(0, 1, 30)[:, None, None] ** 2
    ends = torch.tensor([[3.0, 4.0], [-1.0, 0.5]])
    assert torch.allclose(detours(t * ends), torch.ones(2, dtype=torch.float64))


def test_half_a_circle_is_longer_than_its_diameter_by_half_pi():
    angle = torch.linspace(0, math.pi, 2000)
    path = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]
    assert float(detours(path)) == pytest.approx(math.pi / 2, rel=1e-6)


def test_there_and_back_is_a_long_way():
    path = torch.tensor([0.0, 2.0, 1.0])[:, None, None].expand(3, 1, 1)
    assert float(detours(path)) == pytest.approx(3)


def test_density_is_a_share_of_all_points_a_unit_of_area():
    points = (
        torch.rand(50_000, 2, generator=torch.Generator().manual_seed(0)) * 2
    )  # the square (0, 2)^2: 1/4 everywhere
    density = motion._density(points, 3.0)
    middle = (np.arange(motion.BINS) + 0.5) / motion.BINS * 6 - 3
    inside = (middle > 0.1) & (middle < 1.9)
    assert density[np.ix_(inside, inside)].mean() == pytest.approx(0.25, rel=0.02)
    assert density[:, middle < -0.1].max() == 0
    assert density.sum() * (6 / motion.BINS) ** 2 == pytest.approx(1)
    only_right = motion._density(points + torch.tensor([1.0, -2.0]), 3.0)  # x is the first axis
    assert only_right[middle < 0.9].max() == 0


@pytest.fixture
def moving():
    start = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, 7).tolist()
    return torch.stack([start * (1 + t) for t in times]), times


@pytest.mark.parametrize("chosen", [0, 40], ids=["particles", "trails"])
def test_the_animation_has_a_frame_a_time_and_all_that_moves_moves(chosen, moving, tmp_path):
    states, times = moving
    flow_animation(states, times, lambda x, t: x, states[-1], 2.0, tmp_path / "flow.webp", "outwards", chosen)
    with Image.open(tmp_path / "flow.webp") as film:
        assert film.n_frames == len(times)
        assert film.info["loop"] == 0
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB"), dtype=int))
    moved = [np.abs(a - b).max(axis=2) > 60 for a, b in zip(frames[1:], frames[:-1], strict=True)]
    assert all(change.mean() > 0.0005 for change in moved)
    assert Image.open(tmp_path / "flow.png").size[0] > 600


def test_arrows_point_along_the_velocity(moving, tmp_path, monkeypatch):
    states, times = moving
    seen = []
    from matplotlib.quiver import Quiver

    real = Quiver.set_UVC
    monkeypatch.setattr(Quiver, "set_UVC", lambda self, u, v, *rest: (seen.append((u, v)), real(self, u, v, *rest)))
    asked = []

    def velocity(x, t):
        asked.append(t)
        return torch.stack([torch.full((len(x),), 1 + t), torch.zeros(len(x))], dim=1)

    flow_animation(states, times, velocity, states[-1], 2.0, tmp_path / "flow.webp", "right")
    assert asked == times
    u, v = (np.stack(part) for part in zip(*seen[-len(times) :], strict=True))
    assert (u > 0).all() and (v == 0).all()
    assert (np.diff(u[:, 0]) >= 0).all() and u[0, 0] < u[-1, 0]  # one scale for all times


def test_an_animation_holds_its_last_frame_and_repeats(tmp_path):
    frames = [Image.new("RGB", (40, 30), (shade, 0, 0)) for shade in (0, 80, 160, 250)]
    write_animation(frames, tmp_path / "a.webp", 50)
    with Image.open(tmp_path / "a.webp") as film:
        film.load()
        lengths = []
        for number in range(film.n_frames):
            film.seek(number)
            film.load()
            lengths.append(film.info["duration"])
            assert abs(film.convert("RGB").getpixel((5, 5))[0] - (0, 80, 160, 250)[number]) < 12
    assert lengths == [motion.HOLD_MS // 2, 50, 50, motion.HOLD_MS]


def test_an_animation_that_would_be_heavy_is_made_lighter(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)) for _ in range(6)]
    write_animation(frames, tmp_path / "heavy.webp")
    heavy = (tmp_path / "heavy.webp").stat().st_size
    monkeypatch.setattr(motion, "MAX_BYTES", heavy // 3)
    write_animation(frames, tmp_path / "light.webp")
    assert (tmp_path / "light.webp").stat().st_size <= heavy // 3
    assert Image.open(tmp_path / "light.webp").n_frames == 6


def test_density_and_straightness_are_drawn_of_any_number_of_times(moving, tmp_path):
    states, times = moving
    for count in (1, 2, 6):
        density_figure(list(states[:count]), times[:count], states[-1], 2.0, tmp_path / f"{count}.png", "outwards")
        assert Image.open(tmp_path / f"{count}.png").size[0] == 1350
    straightness_figure(states, 2.0, tmp_path / "straight.png", "outwards")
    assert Image.open(tmp_path / "straight.png").size[0] == 1350
