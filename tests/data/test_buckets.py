"""Buckets: which one a step takes, how often before, and that each batch is of one shape and each picture seen once."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import noise, save
from PIL import Image

from flowimg.build.data import build_source, build_space, portions
from flowimg.build.images import shapes_of_buckets
from flowimg.data.buckets import Turns, cut_away, floor_sum, nearest_shapes, shapes_of, share_out
from flowimg.errors import DataError, SettingsError
from flowimg.settings.data import Buckets, ImageData
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

few = settings(max_examples=60, deadline=None, derandomize=True)
CPU = torch.device("cpu")
COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=5).map(tuple)


# --- shapes ----------------------------------------------------------------------------------------------------------


@few
@given(st.integers(256, 2**18), st.lists(st.floats(0.2, 5), min_size=1, max_size=6), st.sampled_from([1, 2, 4, 8, 16]))
def test_shapes_are_multiples_of_about_the_area_and_the_ratio(area, ratios, multiple):
    for ratio, (height, width) in zip(ratios, shapes_of(area, ratios, multiple), strict=True):
        assert height % multiple == width % multiple == 0
        for side, wanted in ((height, math.sqrt(area / ratio)), (width, math.sqrt(area * ratio))):
            assert abs(side - wanted) <= multiple / 2 + 1e-9 or side == multiple


def test_a_picture_goes_to_the_shape_nearest_in_ratio_as_a_factor():
    shapes = [(64, 64), (48, 96), (96, 48)]
    sizes = np.array([(10, 10), (10, 14), (10, 15), (14, 10), (15, 10), (1, 40), (400, 3)])
    # the middle between 1 and 2, as factors, is the root of 2
    assert nearest_shapes(sizes, shapes).tolist() == [0, 0, 1, 0, 2, 1, 2]


def test_what_crop_cuts_away_is_counted_in_area():
    assert cut_away(np.array([(30, 60), (60, 30), (45, 45)]), [(8, 8)]) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert cut_away(np.array([(30, 60), (60, 30), (45, 45)]), [(8, 8), (8, 16), (16, 8)]) == 0
    assert cut_away(np.array([(30, 90)]), [(8, 16)]) == pytest.approx(1 / 3)


# --- turns -----------------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 300), st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_sum_of_floors_is_the_sum_of_floors(n, m, a, b):
    assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


@few
@given(COUNTS, st.integers(0, 10**6))
def test_a_bucket_is_taken_as_often_as_it_has_pictures_and_every_step_knows_how_often_before(counts, seed):
    turns, taken, total = Turns(counts, seed), Counter(), sum(counts)
    for step in range(2 * total):
        bucket = turns.bucket(step)
        assert turns.before(step) == taken[bucket]
        taken[bucket] += 1
        if (step + 1) % total == 0:
            assert [taken[n] for n in range(len(counts))] == [(step + 1) // total * count for count in counts]
        for other, count in enumerate(counts):
            assert abs(taken[other] - (step + 1) * count / total) < 8  # in proportion all the way


def test_a_step_far_out_is_known_at_once():
    turns = Turns((10**6, 3 * 10**5, 17), 3)
    step = 7 * 1_300_017  # whole periods
    assert [turns.before(step + n) for n in range(40)] == [
        7 * turns.counts[turns.bucket(step + n)] + turns.before(n) for n in range(40)
    ]
    assert turns.bucket(10**15) in (0, 1, 2)


def test_other_seeds_take_other_turns():
    turns = [[Turns((50, 30, 20), seed).bucket(step) for step in range(30)] for seed in (0, 1)]
    assert turns[0] != turns[1]


@few
@given(st.lists(st.integers(2, 60), min_size=1, max_size=5), st.floats(0, 0.5))
def test_held_out_pictures_are_shared_out_and_leave_one_in_each_bucket(counts, share):
    count = min(int(share * sum(counts)), sum(counts) - len(counts))
    held = share_out(count, counts)
    assert sum(held) == count and all(0 <= one < there for one, there in zip(held, counts, strict=True))


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 pictures of three ratios; the level of a picture is its number."""
    root = tmp_path_factory.mktemp("shapes")
    for number in range(60):
        size = [(20, 20), (40, 20), (20, 40), (22, 20)][number % 4]
        save(root / "ab"[number % 2] / f"{number:02d}.png", Image.new("L", size, 3 * number))
    return root


def config(folder, batch_size=8, **more):
    data = {"kind": "images", "source": str(folder), "held_out": 6, "resize": "stretch", **more}
    data.setdefault("buckets", {"area": 64, "ratios": [0.5, 1.0, 2.0], "multiple": 2})
    settings = {"data": data, "field": {"kind": "unet", "channels": [32, 64]}, "train": {"batch_size": batch_size}}
    return validate(Config, settings, "test")


@pytest.fixture(scope="module")
def batches(folder):
    return build_source(config(folder)).load(CPU)


def numbers(x):
    """The numbers of pictures, which are their levels."""
    return ((x[:, 0, 0, 0] + 1) * 127.5 / 3).round().long().tolist()


def test_the_facts_know_the_shapes_and_how_many_pictures_each_has(folder):
    source = build_source(config(folder))
    assert source.facts.shape == (1, 8, 8)
    assert [bucket[:2] for bucket in source.facts.buckets] == [(8, 8), (12, 6), (6, 12)]
    assert sum(count for *_, count in source.facts.buckets) == 54
    assert "8 x 8 (30), 12 x 6 (15), 6 x 12 (15)" in source.story


def test_where_no_picture_is_nearly_square_the_commonest_shape_is_drawn(folder):
    settings = config(folder)
    facts = build_source(settings).facts
    assert build_space(settings, facts).shape == (1, 8, 8)
    without = facts._replace(buckets=((12, 6, 3), (6, 12, 9)))
    assert without.shape == (1, 8, 8) and build_space(settings, without).shape == (1, 6, 12)


def test_each_batch_has_one_shape_and_each_picture_is_seen_once_a_pass(batches):
    seen = {}
    for step in range(4 * 54):
        x_1, cond = batches(step, range(8))
        seen.setdefault(x_1.shape[1:], []).extend(zip(numbers(x_1), cond.label.tolist(), strict=True))
    assert len(seen) == 3
    everything = set()
    for shape, pairs in seen.items():
        bucket = batches.part(tuple(shape))
        passes = [pairs[start : start + bucket.size] for start in range(0, len(pairs) - bucket.size + 1, bucket.size)]
        assert len(passes) >= 8 * 4 * 12 // bucket.size // 2
        for one in passes:
            assert len(set(one)) == bucket.size and set(one) == set(passes[0])  # each once
        assert passes[0] != passes[1]  # in another order
        everything |= set(passes[0])
    assert len(everything) == 54 and all(number % 2 == label for number, label in everything)
    apart = {number for part in batches.parts for number in numbers(part.held_out(6)[0])}
    assert len(apart) == 6 and not apart & {number for number, _ in everything}


@pytest.mark.parametrize("processes", [2, 4])
def test_the_batch_is_the_same_however_many_processes_share_it(folder, processes):
    whole = build_source(config(folder, flip=True, augment=0.5)).load(CPU)
    again = build_source(config(folder, flip=True, augment=0.5)).load(CPU)
    each = 8 // processes
    for step in (0, 3, 4, 57, 1000):
        x_1, cond = whole(step, range(8))
        parts = [again(step, range(each * rank, each * rank + each)) for rank in range(processes)]
        assert torch.equal(torch.cat([part for part, _ in parts]), x_1)
        for name in ("label", "augmentation"):
            assert torch.equal(torch.cat([getattr(some, name) for _, some in parts]), getattr(cond, name))
        rows = (again.rows(step, range(each * rank, each * rank + each)) for rank in range(processes))
        assert whole.rows(step, range(8)) == [row for some in rows for row in some]


def test_memory_is_looked_for_with_the_largest_shape(folder):
    some = build_source(config(folder, buckets={"area": 64, "ratios": [0.6, 1.0, 2.0], "multiple": 2})).load(CPU)
    shapes = {bucket.space.shape for bucket in some.buckets}
    assert {math.prod(shape) for shape in shapes} == {60, 64, 72}
    assert math.prod(some(some.largest, range(2))[0].shape[1:]) == 72


def test_batches_of_another_size_are_refused_in_the_middle_of_a_run(batches):
    assert batches.seen_from(0) is batches
    with pytest.raises(DataError, match=r"give back the train\.batch_size"):
        batches.seen_from(8)


def test_samples_have_the_shapes_in_proportion(folder):
    settings = config(folder)
    facts = build_source(settings).facts
    parts = portions(settings, facts, range(100, 1100))
    assert sorted(row for _, rows in parts for row in rows) == list(range(1000))
    for (space, rows), (height, width, count) in zip(parts, facts.buckets, strict=True):
        assert space.shape == (1, height, width)
        assert len(rows) == pytest.approx(1000 * count / 54, abs=3)
    one = facts._replace(shape=(1, 6, 12), buckets=())
    assert portions(settings, one, range(5)) == [(parts[2][0], [0, 1, 2, 3, 4])]
    # a seed has its shape whatever the others are
    again = portions(settings, facts, [107])
    assert again[0].space == next(space for space, rows in parts if 7 in rows)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"size": 8}, "buckets and size"),
        ({"size": 8, "random_crop": 9}, "buckets and size"),
        ({"stream": True}, "buckets and stream"),
        ({"resize": "keep"}, "buckets and resize keep"),
        ({"buckets": {"area": 64, "ratios": []}}, "ratios"),
        ({"buckets": {"area": 64, "ratios": [0.01]}}, "ratios"),
        ({"buckets": {"area": 64, "ratios": ["16:9"]}}, "'16:9' is none of the numbers from 0.05 to 20; 16:9 is 1.78"),
        ({"buckets": {"area": 3}}, "area"),
    ],
)
def test_what_means_nothing_with_buckets_is_refused(folder, more, said):
    with pytest.raises(SettingsError, match=said):
        config(folder, **more)


def test_two_ratios_of_one_shape_are_refused():
    data = ImageData(buckets=Buckets(area=64, ratios=(1.0, 1.05), multiple=8))
    with pytest.raises(SettingsError, match="gives the shape 8 8 twice"):
        shapes_of_buckets(data)


def test_levels_that_a_bucket_does_not_have_are_refused_by_its_multiple(folder, refused, tmp_path):
    import yaml

    settings = config(folder, buckets={"area": 64, "ratios": [0.5, 1.0], "multiple": 1}).model_dump(mode="json")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    status, said = refused("train", tmp_path / "c.yaml", "--run", tmp_path / "run")
    assert status == 3 and "data.buckets.multiple 2" in said


def test_small_buckets_spare_what_they_can_and_others_the_rest():
    assert share_out(90, (1, 1, 1, 1, 96)) == [0, 0, 0, 0, 90]
    assert sum(share_out(97, (2, 2, 96))) == 97


@pytest.fixture
def few_tall(tmp_path):
    """40 wide pictures and two tall ones, of which one is cut off."""
    for number in range(40):
        save(tmp_path / f"{number:02d}.png", Image.new("L", (40, 20), number))
    for number in (40, 41):
        save(tmp_path / f"{number}.jpg", Image.fromarray(noise(100, 200)))
    whole = (tmp_path / "41.jpg").read_bytes()
    (tmp_path / "41.jpg").write_bytes(whole[: len(whole) // 2])  # which only decoding finds out
    return tmp_path


def test_a_broken_picture_of_a_small_bucket_counts_among_all(few_tall):
    batches = build_source(config(few_tall, max_bad=0.03, held_out=20)).load(CPU)
    assert [bucket.size for bucket in batches.buckets] == [1, 20] and len(batches.left_out) == 1
    assert sum(len(part.held_out(20)[0]) for part in batches.parts) == 20
    with pytest.raises(DataError, match=r"1 of 42 pictures cannot be used, more than data\.max_bad 0\.01"):
        build_source(config(few_tall, max_bad=0.01, held_out=20)).load(CPU)


def test_a_bucket_of_broken_pictures_is_named_and_does_not_vanish(few_tall):
    (few_tall / "40.jpg").write_bytes((few_tall / "41.jpg").read_bytes())
    with pytest.raises(DataError, match="no picture for the shape 12 x 6 can be decoded, such as "):
        build_source(config(few_tall, max_bad=0.5, held_out=2)).load(CPU)


def test_shapes_longer_than_pictures_can_be_are_refused():
    data = ImageData(buckets=Buckets(area=2**20, ratios=(20.0,)))
    with pytest.raises(SettingsError, match="232 x 4576 pixels, and a side has 4096 at most"):
        shapes_of_buckets(data)


def test_more_held_out_than_buckets_can_spare_is_one_sentence(folder):
    with pytest.raises(DataError, match=r"data\.held_out 58 leaves too little"):
        build_source(config(folder, held_out=58))
