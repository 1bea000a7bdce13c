from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.config import Config, PointData, validate
from flowimg.data.batches import ImageBatches, PointBatches
from flowimg.data.store import Images, hold_out, to_unit
from flowimg.jobs.build import SOURCES, TOYS

few = settings(max_examples=20, deadline=None, derandomize=True)
CPU = torch.device("cpu")


def pictures(n=120, size=4):
    # picture i has a pixel of value i in its upper left corner, a bright one below, and the label i
    pixels = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(n)
    pixels[:, 0, 1, 0] = 255
    return Images(pixels, torch.arange(n), tuple(map(str, range(n))))


def image_batches(flip=False, batch_size=50, seed=0, images=None):
    return ImageBatches(*hold_out(images or pictures(), 20)[:2], flip, seed, batch_size)


def point_batches(name="checkerboard", labels=True, seed=0):
    return PointBatches(TOYS[name](PointData(source=name)), labels, seed, CPU)


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
    x_1, labels = image_batches(flip)(3, range(50))
    assert x_1.shape == (50, 1, 4, 4) and x_1.dtype == torch.float32
    assert torch.equal(names(x_1), labels)


def test_pictures_without_labels_have_none():
    batches = image_batches(images=pictures()._replace(labels=None))
    assert batches(0, range(5))[1] is None and batches.held_out(5)[1] is None


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
        x_1, labels = batches(epoch, range(100))
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
    whole = batches(step, range(batch_size))
    cut = pairwise(sorted({0, batch_size, *(i for i in inner if i < batch_size)}))
    parts = [batches(step, range(a, b)) for a, b in cut]
    for kind in (0, 1):
        assert torch.equal(torch.cat([part[kind] for part in parts]), whole[kind])


def test_every_epoch_shows_each_picture_once():
    batches = image_batches(batch_size=40)  # 100 pictures to learn: batches straddle the epochs
    seen = torch.cat([batches(step, range(40))[1] for step in range(10)]).view(4, 100)
    assert torch.equal(seen.sort(dim=1).values, seen[0].sort().values.expand(4, 100))
    assert len(seen[0].unique()) == 100


def test_held_out_pictures_are_never_learned_from():
    batches = image_batches(flip=True)
    kept, labels = batches.held_out(20)
    assert torch.equal(names(kept), labels) and len(labels.unique()) == 20
    assert not mirrored(kept).any()
    seen = {int(label) for step in range(10) for label in batches(step, range(50))[1]}
    assert seen | set(labels.tolist()) == set(range(120)) and not seen & set(labels.tolist())


def test_held_out_pictures_do_not_depend_on_the_seed_and_fewer_come_first():
    few_of_them, labels = image_batches(seed=1).held_out(7)
    assert torch.equal(few_of_them, image_batches(seed=2).held_out(20)[0][:7])
    assert torch.equal(names(few_of_them), labels)
    assert len(image_batches().held_out(1000)[0]) == 20


def test_seed_and_step_decide_which_pictures_come():
    first = image_batches(seed=0)(0, range(50))[1]
    assert not torch.equal(first, image_batches(seed=1)(0, range(50))[1])
    assert not torch.equal(first, image_batches(seed=0)(1, range(50))[1])


def test_pictures_are_scaled_to_minus_one_and_one():
    images = pictures()
    x_1, labels = image_batches(images=images)(0, range(50))
    assert torch.equal(x_1, to_unit(images.pixels[labels]))
    assert x_1.min() == -1 and x_1.max() == 1


@pytest.mark.parametrize("name", TOYS)
def test_labels_of_points_are_the_parts_they_lie_in(name):
    batches = point_batches(name)
    x_1, labels = batches(0, range(200))
    assert x_1.shape == (200, 2)
    assert torch.equal(labels, batches.toy.part(x_1)) and labels.min() >= 0
    assert point_batches(name, labels=False)(0, range(200))[1] is None
    assert torch.equal(point_batches(name, labels=False)(0, range(200))[0], x_1)


@pytest.mark.parametrize("name", TOYS)
@few
@given(inner=st.lists(st.integers(1, 299), max_size=4), step=st.integers(0, 10**6))
def test_points_are_the_same_bit_for_bit_however_the_batch_is_cut(name, inner, step):
    batches = point_batches(name)
    whole = batches(step, range(300))
    parts = [batches(step, range(a, b)) for a, b in pairwise(sorted({0, 300, *inner}))]
    for kind in (0, 1):
        assert torch.equal(torch.cat([part[kind] for part in parts]), whole[kind])


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


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_answers_steps_with_data_of_the_shape_it_declares(kind):
    config = validate(Config, {"data": {"kind": kind, "labels": True}, **DATA.get(kind, {})}, "test")
    facts, size, story, load = SOURCES[kind](config)
    assert config.data.source in story
    batches = load(CPU)
    x_1, labels = batches(2, range(10, 30))
    assert x_1.shape == (20, *facts.shape) and x_1.dtype == torch.float32
    assert labels.shape == (20,) and labels.min() >= 0 and labels.max() < len(facts.classes)
    kept, kept_labels = batches.held_out(5)
    assert kept.shape == (5, *facts.shape) and kept_labels.shape == (5,)
    assert size is None or size + config.data.held_out == 1797
