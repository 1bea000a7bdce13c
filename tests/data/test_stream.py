"""Streams: which picture comes when, that none is read twice, what happens to bad ones and to workers that die."""

import signal
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import imagecodecs
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import find, stored, table, tar
from safetensors.torch import load_file
from shards_made import SIDE, numbers, parquet, write_tars
from survival import ROOT, go_on

from flowimg.data.arrays import READING, Reading
from flowimg.data.augment import augmented
from flowimg.data.decode import Decoding
from flowimg.data.prefetch import Prefetch
from flowimg.data.sources.streams import open_stream
from flowimg.data.stream import StreamBatches, keep_apart, look_into
from flowimg.errors import DataError, WorkerError
from flowimg.spaces.depth import WORDS, Depth
from flowimg.spaces.pixels import Pixels

few = settings(max_examples=40, deadline=None, derandomize=True)
COUNTS = [40, 7, 25, 33, 18, 60, 1, 21]
TOTAL = sum(COUNTS)
CPU = torch.device("cpu")
SPACE = Pixels((1, SIDE, SIDE))
GREY = Decoding(1, (SIDE, SIDE), "crop", (255, 255, 255))


def opened(source, cache, **asked):
    usual = {"subset": None, "split": "train", "image_column": None, "label_column": None, "labels": True}
    return open_stream(str(source), cache, **{**usual, **asked})


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = write_tars(tmp_path_factory.mktemp("shards"), COUNTS)
    return opened(folder, tmp_path_factory.mktemp("cache"))


def how(batch_size, seed=0, flip=False):
    return {"space": SPACE, "flip": flip, "seed": seed, "batch_size": batch_size, "device": CPU}


@pytest.fixture
def batches_of():
    """Batches of a stream, whose workers go when the test does."""
    made = []

    def batches_of(stream, held=5, batch_size=16, seed=0, open_shards=4, max_bad=0.01, flip=False):
        apart = keep_apart(stream.counts, held)
        made.append(StreamBatches(stream, GREY, apart, open_shards, 1, **how(batch_size, seed, flip)))
        made[-1].max_bad = max_bad
        return made[-1]

    yield batches_of
    for batches in made:
        batches.close()


def recorded(stream):
    """The same stream, and the list of all (shard, row) that are read of it."""
    read = []

    def open_one(shard):
        found = stream.open(shard)

        def picture(row):
            read.append((shard, row))
            return found.picture(row)

        return found._replace(picture=picture)

    return replace(stream, open=open_one), read


def lengths(batches):
    """Pictures of each lane in an epoch."""
    lanes, total = batches.order.lanes, batches.size
    return [(lane + 1) * total // lanes - lane * total // lanes for lane in range(lanes)]


def test_labels_follow_their_pictures(stream, batches_of):
    x_1, (labels, _) = batches_of(stream)(3, range(16))
    assert x_1.shape == (16, 1, SIDE, SIDE) and x_1.dtype == torch.float32 and labels.dtype == torch.int64
    assert labels.tolist() == [number % 5 for number in numbers(x_1)]
    assert stream.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(("batch_size", "open_shards"), [(16, 4), (6, 16), (7, 2)])
def test_every_epoch_shows_each_picture_once_and_reads_it_once(stream, batches_of, batch_size, open_shards):
    watched, read = recorded(stream)
    batches = batches_of(watched, batch_size=batch_size, open_shards=open_shards)
    width = batch_size // batches.order.lanes
    seen = [numbers(batches(step, range(batch_size))[0]) for step in range(2 + 2 * max(lengths(batches)) // width)]
    learned = set(range(TOTAL)) - set(numbers(batches.held_out(5)[0]))
    for epoch in range(2):
        shown = []
        for lane, length in enumerate(lengths(batches)):
            row = [number for step in seen for number in step[lane * width : (lane + 1) * width]]
            shown += row[epoch * length : (epoch + 1) * length]
        assert sorted(shown) == sorted(learned)
    # read as often as shown, and no more; the held-out ones were read at the end
    assert len(read) == sum(len(step) for step in seen) + 5


@few
@given(step=st.integers(0, 10**6), inner=st.lists(st.integers(1, 15), max_size=4))
def test_rows_are_the_same_however_the_batch_is_cut(stream, step, inner):
    batches = StreamBatches(stream, GREY, keep_apart(stream.counts, 5), 4, 1, **how(16))
    parts = [batches.rows(step, range(a, b)) for a, b in pairwise(sorted({0, 16, *inner}))]
    assert [row for part in parts for row in part] == batches.rows(step, range(16))


def test_pictures_are_the_numbers_of_their_rows(stream, batches_of):
    batches = batches_of(stream)
    assert numbers(batches(5, range(4, 12))[0]) == batches.rows(5, range(4, 12))


def test_streamed_pictures_are_augmented_as_stored_ones_are(stream, batches_of):
    plain, ours = batches_of(stream), batches_of(stream)
    ours.augment = 0.5
    x_1, (labels, a) = ours(5, range(4, 12))
    before, (named, _) = plain(5, range(4, 12))
    expected, numbers_told = augmented(before, 0, 5, range(4, 12), 0.5)
    assert torch.equal(x_1, expected) and torch.equal(a, numbers_told) and not torch.equal(x_1, before)
    assert torch.equal(labels, named)
    assert torch.equal(ours.held_out(5)[0], plain.held_out(5)[0])
    assert torch.equal(ours.some(9).pixels, plain.some(9).pixels)


def test_a_run_that_goes_on_at_step_37_sees_what_the_one_that_never_stopped_sees(stream, batches_of):
    straight = batches_of(stream)
    seen = [numbers(straight(step, range(16))[0]) for step in range(50)]
    first, second = batches_of(stream), batches_of(stream)
    assert [numbers(first(step, range(16))[0]) for step in range(37)] == seen[:37]
    assert [numbers(second(step, range(16))[0]) for step in range(37, 50)] == seen[37:]


def test_two_processes_read_no_picture_of_each_other_and_hardly_a_shard(stream, batches_of):
    watched = [recorded(stream) for _ in range(2)]
    for (mine, _), places in zip(watched, (range(8), range(8, 16)), strict=True):
        batches = batches_of(mine, open_shards=4)
        steps = min(lengths(batches)) * batches.order.lanes // 16
        for step in range(steps):
            batches(step, places)
    one, two = (set(read) for _, read in watched)
    assert not one & two and len(one | two) >= 0.9 * TOTAL
    # lanes are stretches of a row of shards: two halves share the one that lies across their border
    assert len({shard for shard, _ in one} & {shard for shard, _ in two}) <= 1


def test_few_shards_are_open_at_a_time(stream, batches_of):
    batches = batches_of(stream, open_shards=2, batch_size=4)
    for step in range(60):
        batches(step, range(4))
        assert len(batches._opened) <= 4


def test_seed_and_epoch_change_the_order(stream, batches_of):
    one, other = batches_of(stream, seed=0), batches_of(stream, seed=1)
    assert one.rows(0, range(16)) != other.rows(0, range(16))
    length = lengths(one)[0] * one.order.lanes // 16
    assert one.rows(0, range(16)) != one.rows(length, range(16))


def test_held_out_pictures_are_never_learned_from_and_come_from_several_shards(stream, batches_of):
    batches = batches_of(stream, held=20)
    apart, (labels, _) = batches.held_out(20)
    assert labels.tolist() == [number % 5 for number in numbers(apart)] and len(set(numbers(apart))) == 20
    seen = {row for step in range(60) for row in batches.rows(step, range(16))}
    assert seen == set(range(TOTAL)) - set(numbers(apart))
    assert numbers(batches.held_out(7)[0]) == numbers(apart)[:7]
    assert (batches.held > 0).sum() >= 4 and batches.size == TOTAL - 20
    assert numbers(batches_of(stream, held=20, seed=9).held_out(20)[0]) == numbers(apart)


@few
@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=20), share=st.floats(0, 1))
def test_no_more_than_half_of_a_shard_is_kept_apart(counts, share):
    counts = np.array(counts)
    most = int((counts // 2).sum())
    count = int(share * most)
    held = keep_apart(counts, count)
    assert held.sum() == count and (held >= 0).all() and (held <= counts // 2).all()
    with pytest.raises(ValueError, match="more than half"):
        keep_apart(counts, most + 1)


def test_flips_are_exact_mirrors(stream, batches_of):
    plain, flipped = (batches_of(stream, flip=flip)(2, range(16))[0] for flip in (False, True))
    mirrored = [bool((a == b.flip(-1)).all()) for a, b in zip(plain, flipped, strict=True)]
    kept = [bool((a == b).all()) for a, b in zip(plain, flipped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True)) and 2 < sum(mirrored) < 14


def test_some_are_as_many_as_asked_for_with_their_labels(stream, batches_of):
    images = batches_of(stream).some(21)
    assert images.pixels.dtype == torch.uint8 and len(images.pixels) == 21
    assert images.labels.tolist() == [number % 5 for number in numbers(images.pixels)]


def test_made_ahead_the_batches_are_the_same(stream, batches_of):
    batches = batches_of(stream)
    places = [range(0, 8), range(8, 16)]
    ahead = Prefetch(batches_of(stream), places)
    for step in (0, 1, 2, 2, 7):
        for mine in places:
            assert numbers(ahead(step, mine)[0]) == numbers(batches(step, mine)[0])
    ahead.close()


# --- bad pictures and dead workers -----------------------------------------------------------------------------------

BROKEN = {3, 50, 51, 130}


@pytest.fixture
def spoilt(tmp_path):
    return opened(write_tars(tmp_path / "shards", COUNTS, BROKEN), tmp_path / "cache")


def test_a_bad_picture_is_replaced_by_the_same_one_of_its_shard_every_time(spoilt, stream, batches_of, capsys):
    bad, good = batches_of(spoilt, max_bad=0.5), batches_of(stream)
    again = batches_of(spoilt, max_bad=0.5)
    places = np.cumsum([0, *COUNTS])
    replaced = 0
    for step in range(15):
        expected = good.rows(step, range(16))
        x_1, (labels, _) = bad(step, range(16))
        found = numbers(x_1)
        assert found == numbers(again(step, range(16))[0])
        assert labels.tolist() == [number % 5 for number in found]
        for there, want in zip(found, expected, strict=True):
            if want in BROKEN:
                replaced += 1
                assert there not in BROKEN
                assert np.searchsorted(places, there, "right") == np.searchsorted(places, want, "right")
            else:
                assert there == want
    assert replaced >= 3
    held = set(numbers(good.held_out(5)[0]))
    assert not held & {row for step in range(15) for row in numbers(bad(step, range(16))[0])}
    told = capsys.readouterr().err
    assert "part-0000.tar:000003.png" in told and "replaced by another" in told
    assert told.count("000003.png") == 2  # once by each of the two that read it


def test_too_many_bad_pictures_stop_the_run(tmp_path, batches_of):
    broken = opened(write_tars(tmp_path / "shards", COUNTS, set(range(0, TOTAL, 3))), tmp_path / "cache")
    batches = batches_of(broken)

    def train():
        for step in range(12):
            batches(step, range(16))

    with pytest.raises(DataError, match=r"pictures read cannot be used, more than data.max_bad 0.01 .*tar:") as caught:
        train()
    assert "\n" not in str(caught.value)


def test_a_shard_of_bad_pictures_alone_is_replaced_from_others(tmp_path, batches_of):
    broken = opened(write_tars(tmp_path / "shards", [3, 60], {0, 1, 2}), tmp_path / "cache")
    batches = batches_of(broken, max_bad=0.9)
    seen = [number for step in range(4) for number in numbers(batches(step, range(16))[0])]
    assert len(seen) == 64 and min(seen) >= 3


def test_where_all_are_bad_one_is_named(tmp_path, batches_of):
    broken = opened(write_tars(tmp_path / "shards", [30, 30], set(range(60))), tmp_path / "cache")
    with pytest.raises(DataError, match=r"part-000\d.tar:0000\d\d.png: .*so are 8 others"):
        batches_of(broken, max_bad=0.9)(0, range(16))


def test_a_worker_that_dies_is_one_sentence(stream, batches_of):
    batches = batches_of(stream)
    batches(0, range(16))
    for child in psutil.Process().children():
        if "flowimg.data.workers" in child.cmdline():
            child.send_signal(signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"died \(signal 9.*data.workers") as caught:
        batches(1, range(16))
    assert caught.value.exit_status == 4 and "\n" not in str(caught.value)


def test_workers_are_gone_when_they_are_closed(stream, batches_of):
    batches = batches_of(stream)
    batches(0, range(16))
    mine = [child for child in psutil.Process().children() if "flowimg.data.workers" in child.cmdline()]
    assert mine
    batches.close()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in mine)


# --- what is looked at beforehand ------------------------------------------------------------------------------------


def test_shape_and_colour_are_those_of_the_pictures(stream):
    shape, told = look_into(stream, None, "auto", (255, 255, 255), READING)
    assert shape == (1, SIDE, SIDE) and told.startswith("L among the")
    assert look_into(stream, (9, 9), "rgb", (255, 255, 255), READING)[0] == (3, 9, 9)


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_row_groups_are_the_shards_of_parquet(tmp_path, batches_of):
    (tmp_path / "set").mkdir()
    for part in range(2):
        (tmp_path / f"set/train-{part:05d}-of-00002.parquet").write_bytes(parquet(range(part * 50, part * 50 + 50), 20))
    stream = opened(tmp_path / "set", tmp_path)
    assert stream.counts.tolist() == [20, 20, 10] * 2 and stream.classes == tuple(f"kind {n}" for n in range(5))
    watched, read = recorded(stream)
    batches = batches_of(watched, batch_size=10, held=2, open_shards=2)
    seen = Counter()
    for step in range(98 // 10):
        x_1, (labels, _) = batches(step, range(10))
        assert labels.tolist() == [number % 5 for number in numbers(x_1)]
        seen.update(numbers(x_1))
    assert max(seen.values()) == 1 and len(read) == 90


def test_parquet_at_an_address_is_read_from_there(batches_of, tmp_path):
    import fsspec

    with fsspec.open("memory://far/away/train-0.parquet", "wb") as file:
        file.write(parquet(range(60), 16, label=False))
    stream = opened("memory://far/away", tmp_path)
    assert stream.counts.tolist() == [16, 16, 16, 12] and stream.classes == ()
    x_1, (labels, _) = batches_of(stream)(0, range(16))
    assert labels is None and len(set(numbers(x_1))) == 16


# --- whole runs ------------------------------------------------------------------------------------------------------

ENOUGH = """
data: {kind: images, source: SHARDS, stream: true, held_out: 4, open_shards: 4}
field: {kind: unet, channels: [64], layers: 1, zero_output: false}
train: {steps: 44, batch_size: 16, log_every: 44, sample_every: 100, checkpoint_every: 100}
grid: {count: 1, num_steps: 1}
figures: false
"""


@pytest.mark.slow
def test_two_processes_stopped_after_step_37_see_the_rest_and_nothing_twice(tmp_path):
    shards = write_tars(tmp_path / "shards", [90, 110, 100, 120, 95, 105, 80, 100])
    (tmp_path / "c.yaml").write_text(ENOUGH.replace("SHARDS", str(shards)))

    def seen(name, run, *more, many=2):
        recorder = ROOT / "tests" / "jobs" / "record_draws.py"
        go_on(many, recorder, tmp_path / name, 1, "train", tmp_path / "c.yaml", "--run", tmp_path / run, *more)
        found = {}
        for rank in range(many):
            for place, rows in load_file(tmp_path / name / f"{rank}.safetensors").items():
                step, start, column = place.split(".")
                if column == "x_1":
                    found.setdefault(int(step), {})[int(start)] = rows
        return {step: torch.cat([rows for _, rows in sorted(parts.items())]) for step, parts in found.items()}

    before, after = seen("before", "cut", "--train.stop-at", "37"), seen("after", "cut")
    alone = seen("alone", "alone", many=1)  # by one process that never stopped
    assert sorted(alone) == list(range(44)) and min(after) == 37 and not set(before) & set(after)
    assert all(torch.equal(alone[step], (after if step >= 37 else before)[step]) for step in range(44))
    # an epoch is 796 of them
    trained = [number for step in range(44) for number in numbers((after if step >= 37 else before)[step])]
    assert len(set(trained)) == len(trained) == 44 * 16


def test_some_are_fetched_without_opening_a_shard_again_and_again(stream, batches_of):
    opens = []
    watched = replace(stream, open=lambda shard: opens.append(shard) or stream.open(shard))
    batches_of(watched).some(96)
    assert len(opens) <= 2 * len(set(opens))


def test_a_bad_picture_kept_apart_is_replaced_by_another_kept_apart(tmp_path, batches_of):
    whole = batches_of(opened(write_tars(tmp_path / "whole", COUNTS), tmp_path / "c1"), held=16)
    apart = numbers(whole.held_out(16)[0])
    spoilt = opened(write_tars(tmp_path / "spoilt", COUNTS, set(apart[::4])), tmp_path / "c2")
    found = numbers(batches_of(spoilt, held=16, max_bad=0.5).held_out(16)[0])
    assert set(found) <= set(apart) - set(apart[::4]) and len(found) == 16


# --- other depths ----------------------------------------------------------------------------------------------------


def sixteen(count):
    """Pictures of 16 bits (N, 1, 4, 5), and their PNG files."""
    pictures = np.random.default_rng(0).integers(0, 65536, (count, 1, 4, 5), np.uint16)
    return pictures, [imagecodecs.png_encode(picture[0]) for picture in pictures]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("depth", [WORDS, Depth("float32", 0, 65535)])
def test_streamed_pictures_of_16_bits_are_those_that_the_store_has(tmp_path, kind, depth):
    pictures, files = sixteen(12)
    folder, plain = tmp_path / "shards", tmp_path / "files"
    plain.mkdir()
    for number, file in enumerate(files):
        (plain / f"{number:02d}.png").write_bytes(file)
    for part in range(2):
        some = files[6 * part : 6 * part + 6]
        if kind == "tar":
            tar(folder / f"{part}.tar", [(f"{6 * part + row:02d}.png", file) for row, file in enumerate(some)])
        else:
            table(folder / f"{part}.parquet", image=[{"bytes": file, "path": None} for file in some])
    found = opened(folder, tmp_path / "cache", labels=False)
    shape, kinds = look_into(found, None, "auto", (255,) * 3, Reading(depth))
    assert shape == (1, 4, 5) and "L;16" in kinds
    asked = {"space": Pixels(shape, depth), "seed": 0, "batch_size": 12, "device": CPU}
    how = Decoding(1, (4, 5), "crop", (255,) * 3, Reading(depth))
    streamed = StreamBatches(found, how, np.zeros(2, int), 2, 1, flip=False, **asked)
    try:
        x, rows = streamed(0, range(12))[0], streamed.rows(0, range(12))
    finally:
        streamed.close()
    images = stored(find(plain, depth=depth), reading=Reading(depth)).images
    assert images.pixels.dtype == getattr(torch, depth.type)
    assert sorted(rows) == list(range(12)) and torch.equal(x, Pixels(shape, depth).encode(images.pixels)[rows])
    assert np.array_equal(Pixels(shape, WORDS).decode(x).numpy(), pictures[rows])
