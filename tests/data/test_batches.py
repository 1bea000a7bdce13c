import threading
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowimg.build.data import KINDS, TOYS
from flowimg.build.flow import COUPLINGS, build_objective
from flowimg.data.batches import ImageBatches, PointBatches
from flowimg.data.prefetch import Prefetch, keep_last
from flowimg.data.store import Images, hold_out
from flowimg.flow.condition import Condition
from flowimg.flow.randomness import uniform
from flowimg.settings.data import PointData
from flowimg.settings.reading import validate
from flowimg.settings.run import Config
from flowimg.spaces.pixels import Pixels

few = settings(max_examples=20, deadline=None, derandomize=True)
CPU = torch.device("cpu")
GREY = Pixels((1, 4, 4))


def pictures(n=120, size=4):
    # picture i has a pixel of value i in its upper left corner, a bright one below, and the label i
    pixels = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(n)
    pixels[:, 0, 1, 0] = 255
    return Images(pixels, torch.arange(n), tuple(map(str, range(n))))


def how(space, batch_size, seed=0, flip=False):
    return {"space": space, "flip": flip, "seed": seed, "batch_size": batch_size, "device": CPU}


def image_batches(flip=False, batch_size=50, seed=0, images=None):
    images = images or pictures()
    return ImageBatches(images, hold_out(len(images.pixels), 20), **how(GREY, batch_size, seed, flip))


def point_batches(name="checkerboard", labels=True, seed=0):
    return PointBatches(TOYS[name](PointData(source=name)), labels, seed, CPU)


def flat(drawn):
    """All tensors of a batch or of a draw."""
    *tensors, cond = drawn
    return [*tensors, *(part for part in cond if part is not None)]


def grey(x):
    return ((x + 1) * 127.5).round().long()


def mirrored(x):
    # where the bright pixel stands says which way round a picture is
    right, left = grey(x[:, 0, 1, -1]) == 255, grey(x[:, 0, 1, 0]) == 255
    assert (right ^ left).all()
    return right


def names(x):
    return torch.where(mirrored(x), grey(x[:, 0, 0, -1]), grey(x[:, 0, 0, 0]))


@pytest.mark.parametrize("flip", [False, True])
def test_labels_follow_their_pictures(flip):
    x_1, (labels, _) = image_batches(flip)(3, range(50))
    assert x_1.shape == (50, 1, 4, 4) and x_1.dtype == torch.float32
    assert torch.equal(names(x_1), labels)


def test_pictures_without_labels_have_none():
    batches = image_batches(images=pictures()._replace(labels=None))
    assert batches(0, range(5))[1] == Condition() and batches.held_out(5)[1] == Condition()


def test_flips_are_exact_mirrors_of_about_half():
    images = Images(torch.randint(256, (500, 3, 5, 5), dtype=torch.uint8), None, ())
    plain, flipped = (image_batches(flip, 480, images=images)(0, range(480))[0] for flip in (False, True))
    straight = (flipped == plain).flatten(1).all(1)
    mirror = (flipped == torch.from_numpy(plain.numpy()[..., ::-1].copy())).flatten(1).all(1)
    assert (straight ^ mirror).all()
    assert mirror.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 480**0.5)


def test_a_picture_is_flipped_afresh_in_every_epoch():
    batches = image_batches(flip=True, batch_size=100)
    ways = torch.zeros(120, 20, dtype=torch.bool)
    for epoch in range(20):
        x_1, (labels, _) = batches(epoch, range(100))
        ways[labels, epoch] = mirrored(x_1)
    learned = ways[labels]
    assert (learned.any(1) & ~learned.all(1)).all()  # every picture is seen both ways within twenty epochs
    # nor does its place decide: the same places are flipped otherwise at the next step
    ways = [mirrored(batches(step, range(100))[0]) for step in (0, 1)]
    assert 0.25 < (ways[0] ^ ways[1]).float().mean() < 0.75


def test_nothing_is_flipped_unless_asked():
    assert not mirrored(image_batches(flip=False)(0, range(50))[0]).any()


@few
@given(
    inner=st.lists(st.integers(1, 199), max_size=4),
    step=st.integers(0, 10**6),
    flip=st.booleans(),
    batch_size=st.integers(2, 200),
)
def test_pictures_are_the_same_however_the_batch_is_cut(inner, step, flip, batch_size):
    batches = image_batches(flip, batch_size)
    whole = flat(batches(step, range(batch_size)))
    cut = pairwise(sorted({0, batch_size, *(i for i in inner if i < batch_size)}))
    parts = [flat(batches(step, range(a, b))) for a, b in cut]
    for kind in (0, 1):
        assert torch.equal(torch.cat([part[kind] for part in parts]), whole[kind])


def test_every_epoch_shows_each_picture_once():
    batches = image_batches(batch_size=40)  # 100 pictures to learn: batches straddle the epochs
    seen = torch.cat([batches(step, range(40))[1].label for step in range(10)]).view(4, 100)
    assert torch.equal(seen.sort(dim=1).values, seen[0].sort().values.expand(4, 100))
    assert len(seen[0].unique()) == 100


def test_held_out_pictures_are_never_learned_from():
    batches = image_batches(flip=True)
    kept, (labels, _) = batches.held_out(20)
    assert torch.equal(names(kept), labels) and len(labels.unique()) == 20
    assert not mirrored(kept).any()
    seen = {int(label) for step in range(10) for label in batches(step, range(50))[1].label}
    assert seen | set(labels.tolist()) == set(range(120)) and not seen & set(labels.tolist())


def test_held_out_pictures_do_not_depend_on_the_seed_and_fewer_come_first():
    few_of_them, (labels, _) = image_batches(seed=1).held_out(7)
    assert torch.equal(few_of_them, image_batches(seed=2).held_out(20)[0][:7])
    assert torch.equal(names(few_of_them), labels)
    assert len(image_batches().held_out(1000)[0]) == 20


def test_seed_and_step_decide_which_pictures_come():
    first = image_batches(seed=0)(0, range(50))[1].label
    assert not torch.equal(first, image_batches(seed=1)(0, range(50))[1].label)
    assert not torch.equal(first, image_batches(seed=0)(1, range(50))[1].label)


def test_pictures_are_scaled_to_minus_one_and_one():
    images = pictures()
    x_1, (labels, _) = image_batches(images=images)(0, range(50))
    assert torch.equal(x_1, GREY.encode(images.pixels[labels]))
    assert x_1.min() == -1 and x_1.max() == 1


def test_rows_say_which_pictures_of_the_whole_set_a_step_sees():
    batches = image_batches(flip=True)
    assert batches.rows(3, range(10, 40)) == batches(3, range(10, 40))[1].label.tolist()


@few
@given(n=st.integers(2, 400), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_whatever_is_kept_apart_the_rest_is_learned_each_once(n, share, seed):
    apart = hold_out(n, int(share * (n - 1)))
    index = torch.arange(n)
    images = Images(index.to(torch.uint8)[:, None, None, None], index, ("a",) * n)
    batches = ImageBatches(images, apart, **how(Pixels((1, 1, 1)), n, seed))
    assert batches.size == n - len(apart)
    seen = batches(0, range(batches.size))[1].label
    assert sorted(seen.tolist() + apart.tolist()) == list(range(n))
    assert batches.some(10**6).labels.tolist() == sorted(seen.tolist())


def test_some_are_spread_evenly_over_those_that_are_learned_and_are_as_they_are():
    batches = image_batches(flip=True)
    some = batches.some(30)
    kept = set(batches.held_out(20)[1].label.tolist())
    learned = [n for n in range(120) if n not in kept]
    assert some.labels.tolist() == [learned[place * len(learned) // 30] for place in range(30)]
    assert torch.equal(some.pixels, pictures().pixels[some.labels]) and some.classes == pictures().classes


def test_samples_seen_before_a_batch_was_changed_are_counted_on():
    before, after = image_batches(batch_size=40), replace(image_batches(batch_size=25), offset=3 * 40 - 2 * 25)
    seen = [*(before(step, range(40))[1].label for step in range(3)), after(2, range(25))[1].label]
    steady = torch.cat([image_batches(batch_size=5)(step, range(5))[1].label for step in range(29)])
    assert torch.equal(torch.cat(seen), steady)


def test_pictures_in_this_machines_memory_come_to_the_device_with_their_labels():
    batches = replace(image_batches(), device=torch.device("meta"))
    for x_1, (labels, _) in (batches(0, range(7)), batches.held_out(7)):
        assert x_1.device.type == labels.device.type == "meta"


# --- windows ---------------------------------------------------------------------------------------------------------


def places_told(n=60, size=9):
    """Pictures whose pixels tell where they are: the row, the column, and the number of the picture."""
    down, across = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    which = torch.arange(n)[:, None, None].expand(n, size, size)
    pixels = torch.stack([down.expand(n, -1, -1), across.expand(n, -1, -1), which], 1).to(torch.uint8)
    return Images(pixels, torch.arange(n), ("a",) * n)


def windowed(flip=False, seed=0, batch_size=40, window=(5, 4)):
    cut = how(Pixels((3, *window)), batch_size, seed, flip)
    return ImageBatches(places_told(), hold_out(60, 10), window=window, **cut)


def corners(x):
    """The upper left corner of each window, which is held to be a whole rectangle of one picture."""
    rows, columns, which = grey(x).unbind(1)
    top, left = rows[:, :1, :1], columns[:, :1, :1]
    tall, wide = (torch.arange(side) for side in x.shape[-2:])
    assert torch.equal(rows, (top + tall[:, None]).expand_as(rows))
    assert torch.equal(columns, (left + wide).expand_as(columns))
    assert (which == which[:, :1, :1]).all()
    return torch.stack([top.flatten(), left.flatten()], 1)


def test_windows_are_rectangles_of_their_pictures():
    x_1, (labels, _) = windowed()(4, range(40))
    assert x_1.shape == (40, 3, 5, 4)
    corners(x_1)
    assert torch.equal(grey(x_1)[:, 2, 0, 0], labels)


def test_every_window_comes_and_none_more_often_than_others():
    found = torch.cat([corners(windowed(seed=1)(step, range(40))[0]) for step in range(100)])
    assert found.amin(0).tolist() == [0, 0] and found.amax(0).tolist() == [4, 5]  # 9 - 5 and 9 - 4 pixels to go
    counts = torch.bincount(found[:, 0] * 6 + found[:, 1], minlength=30)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_windows_are_of_the_step_the_place_and_the_seed_alone():
    one = corners(windowed()(3, range(40))[0])
    assert torch.equal(one, corners(windowed()(3, range(40))[0]))
    others = ImageBatches(places_told(90), hold_out(90, 3), window=(5, 4), **how(Pixels((3, 5, 4)), 40))
    assert torch.equal(one, corners(others(3, range(40))[0]))  # of other pictures the same squares
    for other in (windowed()(4, range(40))[0], windowed(seed=1)(3, range(40))[0]):
        assert (one != corners(other)).any(1).float().mean() > 0.8  # by chance 29 of 30
    assert (one != one.roll(1, 0)).any(1).float().mean() > 0.8


@few
@given(inner=st.lists(st.integers(1, 199), max_size=4), step=st.integers(0, 10**6), flip=st.booleans())
def test_windows_are_the_same_however_the_batch_is_cut(inner, step, flip):
    batches = windowed(flip, batch_size=200)
    whole = batches(step, range(200))[0]
    parts = [batches(step, range(a, b))[0] for a, b in pairwise(sorted({0, 200, *inner}))]
    assert torch.equal(torch.cat(parts), whole)


def test_flipping_mirrors_the_same_windows():
    plain, flipped = (windowed(flip)(2, range(40))[0] for flip in (False, True))
    straight, mirror = ((flipped == other).flatten(1).all(1) for other in (plain, plain.flip(-1)))
    assert (straight ^ mirror).all() and 5 < mirror.sum() < 35


def test_nothing_is_drawn_where_nothing_is_learned_the_middle_is_taken():
    batches = windowed(flip=True)
    kept, (labels, _) = batches.held_out(10)
    assert corners(kept).tolist() == [[2, 2]] * 10 and torch.equal(grey(kept)[:, 2, 0, 0], labels)
    some = batches.some(7)
    assert corners(GREY.encode(some.pixels)).tolist() == [[2, 2]] * 7
    assert torch.equal(some.pixels[:, 2, 0, 0].long(), some.labels)


def test_a_window_of_the_whole_side_is_the_picture():
    whole = replace(windowed(window=(9, 9)), window=None)
    assert torch.equal(windowed(window=(9, 9))(0, range(40))[0], whole(0, range(40))[0])


# --- made ready ahead ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_what_is_made_ready_is_what_would_have_been_made(accumulation, depth):
    batches, size = windowed(flip=True), 40 // accumulation
    places = [range(at, at + size) for at in range(0, 40, size)]
    ahead = Prefetch(batches, places, depth)
    for step in (0, 1, 2, 7, 8, 3):  # a run that goes on elsewhere
        for some in places:
            for made, wanted in zip(flat(ahead(step, some)), flat(batches(step, some)), strict=True):
                assert torch.equal(made, wanted)
    other = range(3, 17)  # nobody's micro-batch
    assert torch.equal(ahead(1, other)[0], batches(1, other)[0])
    ahead.close()


def test_data_are_made_before_they_are_asked_for_and_only_so_many():
    made, enough = [], threading.Event()

    def data(step, places):
        made.append((step, places.start))
        if len(made) == 4:
            enough.set()
        return torch.tensor([step]), None

    ahead = Prefetch(data, [range(0, 2), range(2, 4)], depth=3)
    ahead(5, range(0, 2))
    assert enough.wait(10)
    ahead.close()
    assert made == [(5, 0), (5, 2), (6, 0), (6, 2)]


def test_what_was_asked_for_last_is_not_made_again():
    made = []

    def data(step, places):
        made.append((step, places.start))
        return torch.tensor([step, places.start]), None

    once = keep_last(data)
    for step in range(3):
        for places in (range(0, 4), range(0, 4), range(4, 8), range(4, 8)):
            assert once(step, places)[0].tolist() == [step, places.start]
    assert made == [(step, at) for step in range(3) for at in (0, 4)]


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_made_ahead_steps_see_what_they_would_have_seen_and_each_row_is_made_once(coupling):
    # the block of a coupling may be more than a micro-batch
    batches, asked = windowed(flip=True), []
    block = {"block": 20} if coupling == "ot" else {}
    values = {"train": {"batch_size": 40, "label_drop": 0.3}, "coupling": {"kind": coupling, **block}}
    objective = build_objective(validate(Config, values, "test"))
    places = [range(at, at + 10) for at in range(0, 40, 10)]
    once = keep_last(lambda step, some: asked.append((step, some)) or batches(step, some))
    ahead = Prefetch(partial(objective.draw, once), places)
    for step in (0, 1, 2, 6):
        for some in places:
            for made, wanted in zip(flat(ahead(step, some)), flat(objective.draw(batches, step, some)), strict=True):
                assert torch.equal(made, wanted)
    ahead.close()
    rows = [(step, row) for step, some in asked for row in some if step < 3]
    assert len(rows) == len(set(rows)) and set(rows) == {(step, row) for step in range(3) for row in range(40)}


def test_what_goes_wrong_in_the_thread_is_raised_where_the_data_are_asked_for():
    def data(step, places):
        if step == 2:
            raise ValueError(f"no data at {step}")
        return torch.tensor([step]), None

    ahead = Prefetch(data, [range(4)])
    assert [int(ahead(step, range(4))[0]) for step in (0, 1)] == [0, 1]
    with pytest.raises(ValueError, match="no data at 2"):
        ahead(2, range(4))
    ahead.close()


# --- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_labels_of_points_are_the_parts_they_lie_in(name):
    batches = point_batches(name)
    x_1, (labels, _) = batches(0, range(200))
    assert x_1.shape == (200, 2)
    assert torch.equal(labels, batches.toy.part(x_1)) and labels.min() >= 0
    assert point_batches(name, labels=False)(0, range(200))[1] == Condition()
    assert torch.equal(point_batches(name, labels=False)(0, range(200))[0], x_1)
    assert batches.rows(0, range(200)) is None  # they are made, not taken from a set


@pytest.mark.parametrize("name", TOYS)
@few
@given(inner=st.lists(st.integers(1, 299), max_size=4), step=st.integers(0, 10**6))
def test_points_are_the_same_bit_for_bit_however_the_batch_is_cut(name, inner, step):
    batches = point_batches(name)
    whole = flat(batches(step, range(300)))
    parts = [flat(batches(step, range(a, b))) for a, b in pairwise(sorted({0, 300, *inner}))]
    for kind in (0, 1):
        assert torch.equal(torch.cat([part[kind] for part in parts]), whole[kind])


@pytest.mark.parametrize("name", TOYS)
def test_points_of_a_step_are_of_its_own_random_numbers_alone(name):
    # bit for bit, though those of several steps are made together
    ours = point_batches(name)
    for step, places in (
        (0, range(9)),
        (3, range(9)),
        (3, range(9)),
        (16, range(5, 700)),
        (47, range(1)),
        (2, range(9000)),
    ):
        x_1, (labels, _) = ours(step, places)
        alone = ours.toy.sample(uniform(ours.seed, "data", step, places, (3,)))
        assert torch.equal(x_1, alone) and torch.equal(labels, ours.toy.part(alone))


def test_points_come_afresh_with_every_step_and_seed_and_apart_from_the_held_out():
    batches = point_batches()
    draws = [
        batches(0, range(300)),
        batches(1, range(300)),
        point_batches(seed=1)(0, range(300)),
        batches.held_out(300),
    ]
    points = torch.cat([x_1 for x_1, _ in draws])
    assert len(points.unique(dim=0)) == 1200
    assert torch.equal(batches.held_out(300)[0][:100], batches.held_out(100)[0])


DATA = {"points": {}, "images": {"field": {"kind": "unet"}}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_answers_steps_with_data_of_the_shape_it_declares(kind):
    config = validate(Config, {"data": {"kind": kind, "labels": True}, **DATA.get(kind, {})}, "test")
    facts, story, load, _ = KINDS[kind](config)
    assert config.data.source in story
    batches = load(CPU)
    x_1, (labels, _) = batches(2, range(10, 30))
    assert x_1.shape == (20, *facts.shape) and x_1.dtype == torch.float32
    assert labels.shape == (20,) and labels.min() >= 0 and labels.max() < len(facts.classes)
    kept, (kept_labels, _) = batches.held_out(5)
    assert kept.shape == (5, *facts.shape) and kept_labels.shape == (5,)
    if kind == "images":
        assert batches.size + config.data.held_out == 1797
        assert f"{config.data.held_out} held out" in story and batches.fingerprint
