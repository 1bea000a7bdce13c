from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp

from flowimg.build.flow import COUPLINGS, PATHS, TIMES, build_objective
from flowimg.flow import objectives as flow_objective
from flowimg.flow import randomness
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.flow.objectives import Draw
from flowimg.flow.paths import Linear, expand_like
from flowimg.flow.times import shift_times, stratify
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

few = settings(max_examples=8, deadline=None, derandomize=True)


def objective(batch_size=300, label_drop=0.1, **groups):
    train = {"batch_size": batch_size, "label_drop": label_drop}
    return build_objective(validate(Config, {"seed": 5, "train": train, **groups}, "test"))


def numbered(step, places):
    # every row says where it comes from: x_1 = (place, step, 0), label = place
    place = torch.arange(places.start, places.stop)
    x_1 = torch.stack([place.float(), torch.full_like(place, step).float(), torch.zeros(len(place))], 1)
    return x_1, Condition(place)


def unlabelled(step, places):
    return numbered(step, places)[0], Condition()


@pytest.mark.parametrize(("coupling", "times", "stratified"), list(product(COUPLINGS, TIMES, [True, False])))
@few
@given(inner=st.lists(st.integers(1, 299), max_size=4), step=st.integers(0, 10**6))
def test_draw_is_the_same_bit_for_bit_however_the_batch_is_cut(coupling, times, stratified, inner, step):
    groups = {"coupling": {"kind": coupling}, "times": {"kind": times, "stratified": stratified, "shift": 2.0}}
    ours = objective(300, 0.3, **groups)
    whole = ours.draw(numbered, step, range(300))
    parts = [ours.draw(numbered, step, range(a, b)) for a, b in pairwise(sorted({0, 300, *inner}))]
    for name in ("x_0", "x_1", "t"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert torch.equal(torch.cat([part.cond.label for part in parts]), whole.cond.label)


def test_data_without_labels_draw_the_same_without_labels():
    ours = objective(label_drop=0.3)
    with_labels, without = ours.draw(numbered, 2, range(300)), ours.draw(unlabelled, 2, range(300))
    assert without.cond == Condition()
    assert all(torch.equal(a, b) for a, b in zip(with_labels[:3], without[:3], strict=True))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_data_and_labels_stay_at_their_place(coupling):
    ours = objective(label_drop=0.0, coupling={"kind": coupling})
    draw = ours.draw(numbered, 3, range(40, 290))
    assert draw.x_1[:, 0].tolist() == list(range(40, 290)) == draw.cond.label.tolist()
    assert set(draw.x_1[:, 1].tolist()) == {3.0}
    assert len(draw.x_0) == len(draw.t) == 250


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_noise_of_the_batch_is_standard_normal(coupling):
    # a coupling rearranges noise over the batch but must neither lose nor repeat any
    x_0 = objective(4096, coupling={"kind": coupling}).draw(unlabelled, 0, range(4096)).x_0
    assert len(x_0.unique(dim=0)) == 4096
    assert x_0.mean().abs() < 0.04 and abs(x_0.std() - 1) < 0.03


def test_optimal_transport_reaches_the_draw():
    def line(step, places):
        g = torch.Generator().manual_seed(0)
        return torch.randn(64, 1, generator=g)[places.start : places.stop], Condition()

    # in one dimension the least cost pairs in order
    draw = objective(64, coupling={"kind": "ot", "block": 64}).draw(line, 0, range(64))
    assert (draw.x_0[draw.x_1.flatten().argsort()].flatten().diff() > 0).all()


def numbered_and_told(step, places):
    x_1, (place, _) = numbered(step, places)
    return x_1, Condition(place, place[:, None] + torch.arange(9) / 16)


@pytest.mark.parametrize("coupling", COUPLINGS)
@few
@given(inner=st.lists(st.integers(1, 299), max_size=4))
def test_numbers_of_an_augmentation_stay_at_their_place_however_the_batch_is_cut(coupling, inner):
    ours = objective(300, 0.3, coupling={"kind": coupling})
    plain = ours.draw(numbered, 4, range(300))
    parts = [ours.draw(numbered_and_told, 4, range(a, b)) for a, b in pairwise(sorted({0, 300, *inner}))]
    assert all(isinstance(part.cond, Condition) for part in parts)
    assert torch.equal(torch.cat([part.cond.label for part in parts]), plain.cond.label)  # dropped as ever
    numbers = torch.cat([part.cond.augmentation for part in parts])
    assert torch.equal(numbers, torch.arange(300)[:, None] + torch.arange(9) / 16)
    assert torch.equal(torch.cat([part.x_0 for part in parts]), plain.x_0)


def test_numbers_come_without_labels_too():
    told = Condition(None, torch.ones(64, 9))
    draw = objective().draw(lambda step, places: (numbered(step, places)[0], told), 0, range(64))
    assert draw.cond.label is None and torch.equal(draw.cond.augmentation, torch.ones(64, 9))


def test_every_step_and_seed_draws_afresh():
    ours = objective()
    first, later = ours.draw(numbered, 0, range(300)), ours.draw(numbered, 1, range(300))
    assert not (first.x_0 == later.x_0).any() and (first.t != later.t).float().mean() > 0.99
    other = build_objective(validate(Config, {"seed": 6, "train": {"batch_size": 300}}, "test"))
    assert not (first.x_0 == other.draw(numbered, 0, range(300)).x_0).any()


@pytest.mark.parametrize("times", TIMES)
def test_stratified_times_are_one_a_stratum_before_they_are_warped(times):
    settings = validate(Config, {"times": {"kind": times}}, "test").times
    ours = objective(250, times={"kind": times, "stratified": True, "shift": 2.0})
    edges = shift_times(TIMES[times](settings)(torch.arange(251) / 250), 2.0)
    t = ours.draw(unlabelled, 0, range(250)).t.sort().values
    assert (t >= edges[:-1] - 1e-6).all() and (t <= edges[1:] + 1e-6).all()


def test_times_not_stratified_are_independent():
    t = objective(250, times={"kind": "uniform", "stratified": False}).draw(unlabelled, 0, range(250)).t
    filled = len((t * 250).long().unique())
    assert 0.55 < filled / 250 < 0.72  # 1 - 1/e of the strata are hit


def test_share_of_dropped_labels_is_as_asked():
    draw = objective(20_000, label_drop=0.1).draw(numbered, 0, range(20_000))
    dropped = draw.cond.label == NO_CLASS
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 20_000) ** 0.5)
    assert torch.equal(draw.cond.label[~dropped], torch.arange(20_000)[~dropped])
    # dropped at all times alike, and whatever the noise
    assert draw.t[dropped].mean().item() == pytest.approx(0.5, abs=0.03)
    assert draw.x_0[dropped].mean().abs() < 0.06


@pytest.mark.parametrize(("label_drop", "left"), [(0.0, 300), (1.0, 0)])
def test_no_label_or_every_label_is_dropped(label_drop, left):
    assert (objective(label_drop=label_drop).draw(numbered, 0, range(300)).cond.label != NO_CLASS).sum() == left


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_data_are_asked_for_places_of_the_batch_alone(coupling):
    asked = []
    ours = objective(300, coupling={"kind": coupling, **({"block": 128} if coupling == "ot" else {})})
    ours.draw(lambda step, places: asked.append(places) or numbered(step, places), 0, range(290, 300))
    (places,) = asked
    assert places.start <= 290 and places.stop == 300


def test_no_generator_is_used_twice_in_a_batch(monkeypatch):
    # noise, times and drops would know of each other
    asked = []
    real = randomness.generator
    flow_objective._noises.cache_clear()  # of what another test may have drawn
    flow_objective._times.cache_clear()
    monkeypatch.setattr(randomness, "generator", lambda *parts: asked.append(parts) or real(*parts))
    ours, steps = objective(2600, label_drop=0.1), 2 * len(randomness.lot_of(0, 2600))
    for step in range(steps):
        ours.draw(numbered, step, range(2600))
    assert len(set(asked)) == len(asked) == steps * 3 * 6  # noise, times and drops; blocks
    assert steps > 2


@pytest.mark.parametrize(("times", "stratified"), list(product(TIMES, [True, False])))
def test_noise_and_times_of_a_step_are_of_its_own_random_numbers_alone(times, stratified):
    # bit for bit, though those of several steps are made together
    ours = objective(20_000, times={"kind": times, "stratified": stratified, "shift": 2.0})
    few, many = range(7, 200), range(19_000)
    for step, places in ((0, range(300)), (5, range(300)), (16, few), (16, few), (47, range(1)), (4, many)):
        u = randomness.uniform(5, "time", step, places)
        u = stratify(u, places, 20_000) if stratified else u
        draw = ours.draw(numbered, step, places)
        assert torch.equal(draw.t, shift_times(ours.times(u), 2.0))
        assert torch.equal(draw.x_0, randomness.normal(5, "noise", step, places, (3,)))


def test_noise_times_and_drops_do_not_know_each_other():
    ours = objective(20_000, label_drop=0.5, times={"kind": "uniform", "stratified": False})
    draw = ours.draw(numbered, 0, range(20_000))
    columns = np.stack([draw.x_0[:, 0], draw.x_0[:, 1], draw.t, draw.cond.label == NO_CLASS])
    off_diagonal = np.corrcoef(columns) - np.eye(4)
    assert np.abs(off_diagonal).max() < 5 / 20_000**0.5


def flow_matching_loss(velocity, path, draw):
    return replace(objective(), path=path).loss(velocity, draw)


def test_loss_in_numbers():
    # u_t = x_1 - x_0 = (3, -4) and (0, 2); the velocity is x_t = (1.5, -2) and (1, 2)
    x_0, x_1 = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, -4.0], [1.0, 3.0]])
    draw = Draw(x_0, x_1, torch.full((2,), 0.5), Condition())
    loss = flow_matching_loss(lambda x, t, cond: x, Linear(), draw)
    assert loss.tolist() == [(1.5**2 + 2**2) / 2, (1 + 0) / 2]


def test_loss_hands_the_velocity_point_time_and_labels():
    labels = Condition(torch.tensor([4, 5, NO_CLASS]))
    draw = Draw(torch.zeros(3, 2), torch.ones(3, 2), torch.tensor([0.0, 0.5, 1.0]), labels)

    def velocity(x, t, cond):
        assert torch.equal(x, draw.t[:, None].expand(3, 2)) and t is draw.t and cond is draw.cond
        return torch.ones_like(x)

    assert flow_matching_loss(velocity, Linear(), draw).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(6, 2), (6, 3, 8, 8)])
def test_loss_is_a_mean_over_the_dimensions_of_each_example(shape):
    draw = Draw(torch.zeros(shape), torch.zeros(shape), torch.rand(6), Condition())
    row = torch.arange(6.0)
    loss = flow_matching_loss(lambda x, t, cond: expand_like(row, x).expand_as(x), Linear(), draw)
    assert loss.shape == (6,)
    torch.testing.assert_close(loss, row.square())


@pytest.mark.parametrize("kind", PATHS)
def test_loss_of_the_true_velocity_of_a_single_point_is_zero(kind):
    path = PATHS[kind](None)
    point = torch.tensor([2.0, -3.0], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randn(50, 2, generator=g, dtype=torch.float64)
    t = torch.rand(50, generator=g, dtype=torch.float64) * 0.99

    def velocity(x, t, cond):
        # the noise that led here is known, as all data are one point; derivatives by automatic differentiation
        t = t[:, None]
        alpha, alpha_prime = jvp(path.alpha, (t,), (torch.ones_like(t),))
        sigma, sigma_prime = jvp(path.sigma, (t,), (torch.ones_like(t),))
        return alpha_prime * point + sigma_prime * (x - alpha * point) / sigma

    loss = flow_matching_loss(velocity, path, Draw(x_0, point.expand(50, 2), t, Condition()))
    assert loss.max() < 1e-24


def test_linear_velocity_of_a_single_point_points_at_it():
    point = torch.tensor([2.0, -3.0], dtype=torch.float64)
    x_0, t = torch.randn(50, 2, dtype=torch.float64), torch.linspace(0, 0.9, 50, dtype=torch.float64)
    draw = Draw(x_0, point.expand(50, 2), t, Condition())
    assert flow_matching_loss(lambda x, t, cond: (point - x) / (1 - t[:, None]), Linear(), draw).max() < 1e-24


@pytest.mark.parametrize("kind", PATHS)
def test_gradient_is_finite_at_all_times(kind):
    weight = torch.ones(2, requires_grad=True)
    draw = Draw(torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0.0, 0.5, 1.0]), Condition())
    flow_matching_loss(lambda x, t, cond: weight * x, PATHS[kind](None), draw).mean().backward()
    assert weight.grad.isfinite().all() and (weight.grad != 0).all()


def test_loss_of_a_half_precision_velocity_is_float32():
    draw = Draw(torch.zeros(2, 2), torch.ones(2, 2), torch.rand(2), Condition())
    assert flow_matching_loss(lambda x, t, cond: x.bfloat16(), Linear(), draw).dtype == torch.float32
