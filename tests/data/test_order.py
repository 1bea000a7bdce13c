import tracemalloc
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowimg.data.order import ShardOrder, permute, sample_indices

few = settings(max_examples=40, deadline=None, derandomize=True)
fewer = settings(max_examples=15, deadline=None, derandomize=True)


def order(n, keyed):
    return permute(np.arange(n, dtype=np.uint64), n, keyed).astype(np.int64)


@few
@given(n=st.integers(1, 3000), keyed=st.integers(0, 2**63 - 1))
def test_order_is_a_permutation(n, keyed):
    assert np.array_equal(np.sort(order(n, keyed)), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 256, 257, 1024, 1025])
def test_order_is_a_permutation_around_powers_of_two(n):
    for keyed in range(5):
        assert np.array_equal(np.sort(order(n, keyed)), np.arange(n))


def test_order_is_a_permutation_at_every_size():
    sizes = [*range(1, 300), *np.random.default_rng(0).integers(300, 4200, 100).tolist()]
    for n in sizes:
        assert (np.bincount(order(n, 7 * n), minlength=n) == 1).all()


def test_no_two_of_a_million_among_a_billion_meet():
    n = 10**9
    index = np.random.default_rng(0).choice(n // 1000, 10**6, replace=False).astype(np.uint64) * np.uint64(1000)
    sent = permute(index, n, 3)
    assert sent.max() < n and len(np.unique(sent)) == 10**6
    # and they lie evenly: ten thousand bins of a hundred each
    assert stats.chisquare(np.bincount(sent.astype(np.int64) // 10**5, minlength=10**4)).pvalue > 1e-3


@few
@given(
    n=st.integers(1, 2**62), index=st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=20), keyed=st.integers(0)
)
def test_each_index_is_sent_on_its_own_and_stays_below_n(n, index, keyed):
    index = np.array([i % n for i in index], dtype=np.uint64)
    sent = permute(index, n, keyed)
    assert (sent < n).all()
    assert len(np.unique(sent)) == len(np.unique(index))
    assert [permute(index[i : i + 1], n, keyed)[0] for i in range(len(index))] == sent.tolist()


def test_other_keys_give_other_orders():
    orders = {tuple(order(50, keyed)) for keyed in range(200)}
    assert len(orders) == 200


def test_neighbouring_keys_agree_no_more_often_than_chance():
    # two random orders agree at one place on average
    agree = [(order(200, keyed) == order(200, keyed + 1)).sum() for keyed in range(200)]
    assert np.mean(agree) == pytest.approx(1, abs=4 / 200**0.5)


@pytest.mark.parametrize(("n", "keys"), [(2, 1000), (3, 1000), (5, 1000), (16, 1000), (40, 1000)])
def test_every_index_goes_everywhere_alike(n, keys):
    counts = np.zeros((n, n))
    for keyed in range(keys):
        counts[np.arange(n), order(n, keyed)] += 1
    # a table of permutations has (n - 1)^2 free cells, each of variance (1/n) (1 - 1/n), hence the factor
    statistic = ((counts - keys / n) ** 2 / (keys / n)).sum() * (n - 1) / n
    assert stats.chi2.sf(statistic, (n - 1) ** 2) > 1e-3


def test_neighbours_are_torn_apart():
    # the mean distance of two random places among n is n / 3
    steps = np.abs(np.diff(order(20_000, 1)))
    assert steps.mean() == pytest.approx(20_000 / 3, rel=0.03)
    assert abs(stats.spearmanr(np.arange(20_000), order(20_000, 1)).statistic) < 0.03


def run(n, batch_size, steps, seed=0, start=0):
    rows = [sample_indices(seed, step, range(batch_size), batch_size, n) for step in range(start, start + steps)]
    return torch.cat(rows)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 5), (10, 7), (7, 10), (3, 8), (1, 4), (100, 100), (97, 64)])
def test_every_epoch_visits_each_sample_once_and_in_its_own_order(n, batch_size):
    # 7 of 10: batches straddle the end of an epoch; 8 of 3: a set smaller than the batch wraps round
    seen = run(n, batch_size, steps=-(-12 * n // batch_size))
    epochs = seen[: len(seen) // n * n].view(-1, n)
    assert len(epochs) >= 12
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(n).expand_as(epochs))
    if n > 10:
        assert len(epochs.unique(dim=0)) == len(epochs)


def test_epochs_are_exact_however_far_into_the_run():
    # position 7 * 10^16 and on, where neighbouring floats are 16 apart
    epochs = run(10, 7, steps=10, start=10**16).view(-1, 10)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(10).expand_as(epochs))


def test_batch_size_changes_the_cut_and_not_the_order():
    assert torch.equal(run(97, 10, steps=32), run(97, 32, steps=10))


def test_seed_decides_the_order():
    assert not torch.equal(run(97, 97, 1, seed=0), run(97, 97, 1, seed=1))


@few
@given(
    n=st.integers(1, 500),
    batch_size=st.integers(1, 300),
    step=st.integers(0, 10**9),
    inner=st.lists(st.integers(1, 299), max_size=4),
)
def test_rows_are_the_same_however_the_batch_is_cut(n, batch_size, step, inner):
    whole = sample_indices(3, step, range(batch_size), batch_size, n)
    cut = pairwise(sorted({0, batch_size, *(i for i in inner if i < batch_size)}))
    parts = [sample_indices(3, step, range(a, b), batch_size, n) for a, b in cut]
    assert whole.dtype == torch.int64 and whole.shape == (batch_size,)
    assert torch.equal(torch.cat(parts), whole)


def test_a_billion_samples_take_no_more_memory_than_a_thousand():
    n = 10**9 + 7
    tracemalloc.start()
    index = sample_indices(0, 10**6, range(512), 512, n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(index.unique()) == 512 and index.min() >= 0 and index.max() < n
    assert index.double().mean().item() == pytest.approx(n / 2, rel=0.2)  # from all over the set


# --- shards ----------------------------------------------------------------------------------------------------------

shards = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def shard_order(counts, open_shards=4, batch_size=12, seed=0):
    return ShardOrder(np.array(counts), open_shards, seed, batch_size)


def stream(made, first, last, batch_size, offset=0):
    """(shard, row) at every place of the steps from first to before last: (steps, batch_size)."""
    steps = [made(step, range(batch_size), offset) for step in range(first, last)]
    return [list(zip(shard.tolist(), row.tolist(), strict=True)) for shard, row in steps]


@fewer
@given(counts=shards, open_shards=st.integers(1, 8), batch_size=st.integers(1, 24), seed=st.integers(0, 9))
def test_every_epoch_of_shards_visits_each_sample_once(counts, open_shards, batch_size, seed):
    made = shard_order(counts, open_shards, batch_size, seed)
    total = sum(counts)
    everything = sorted((shard, row) for shard, count in enumerate(counts) for row in range(count))
    width = batch_size // made.lanes
    steps = 3 * -(-total // batch_size) + 3
    batches = stream(made, 0, steps, batch_size)
    lengths = [(lane + 1) * total // made.lanes - lane * total // made.lanes for lane in range(made.lanes)]
    lanes = [
        [sample for batch in batches for sample in batch[lane * width : (lane + 1) * width]]
        for lane in range(made.lanes)
    ]
    for epoch in range(2):
        seen = [
            sample
            for lane, length in zip(lanes, lengths, strict=True)
            for sample in lane[epoch * length : (epoch + 1) * length]
        ]
        assert sorted(seen) == everything


@fewer
@given(
    counts=shards,
    open_shards=st.integers(1, 8),
    batch_size=st.integers(1, 24),
    step=st.integers(0, 10**6),
    inner=st.lists(st.integers(1, 23), max_size=4),
)
def test_shards_and_rows_are_the_same_however_the_batch_is_cut(counts, open_shards, batch_size, step, inner):
    whole = shard_order(counts, open_shards, batch_size)(step, range(batch_size))
    cut = pairwise(sorted({0, batch_size, *(i for i in inner if i < batch_size)}))
    parts = [shard_order(counts, open_shards, batch_size)(step, range(a, b)) for a, b in cut]
    for kind in (0, 1):
        assert np.array_equal(np.concatenate([part[kind] for part in parts]), whole[kind])
        assert whole[kind].shape == (batch_size,)


def test_batches_of_one_epoch_hold_nothing_twice():
    batches = stream(shard_order([25] * 12, 4, 12), 0, 25, 12)  # 300 samples, 25 batches: an epoch to the last sample
    assert len({sample for batch in batches for sample in batch}) == 300


def test_processes_read_other_shards_but_at_their_borders():
    made = shard_order([20] * 40, open_shards=8, batch_size=16)
    halves = [
        {shard for step in range(50) for shard in made(step, places)[0].tolist()} for places in (range(8), range(8, 16))
    ]
    assert halves[0] | halves[1] == set(range(40))
    assert len(halves[0] & halves[1]) <= 1  # where the row is cut in two


@pytest.mark.parametrize(("open_shards", "batch_size"), [(1, 16), (3, 16), (4, 16), (8, 16), (16, 16), (16, 8)])
def test_few_shards_are_open_at_a_time(open_shards, batch_size):
    made = shard_order([20] * 64, open_shards, batch_size)
    assert made.lanes <= open_shards and made.lanes * made.group <= open_shards
    batches = stream(made, 0, 64 * 20 // batch_size, batch_size)
    width = batch_size // made.lanes
    in_use = 0
    for lane in range(made.lanes):
        seen = [shard for batch in batches for shard, _ in batch[lane * width : (lane + 1) * width]]
        first, last = {}, {}
        for place, shard in enumerate(seen):
            first.setdefault(shard, place)
            last[shard] = place
        # shards that were begun and not yet ended, at every place
        most = max(sum(first[s] <= place <= last[s] for s in first) for place in range(0, len(seen), 7))
        assert most <= made.group
        in_use += most
    assert in_use <= open_shards


def test_samples_of_open_shards_are_mixed():
    made = shard_order([100] * 10, open_shards=5, batch_size=1)  # one lane of five shards at a time
    shard, row = (np.concatenate(part) for part in zip(*(made(step, range(1)) for step in range(500)), strict=True))
    assert sorted(np.bincount(shard, minlength=10).tolist()) == [0] * 5 + [100] * 5
    for some in np.unique(shard):
        assert abs(stats.spearmanr(np.arange(100), row[shard == some]).statistic) < 0.35
        assert stats.kstest(np.flatnonzero(shard == some) / 500, "uniform").pvalue > 1e-3


def test_each_shard_is_shuffled_in_its_own_way():
    made = shard_order([50] * 12, open_shards=4, batch_size=4)  # four lanes, in each a shard at a time
    seen = list(chain.from_iterable(stream(made, 0, 150, 4)))
    assert len({tuple(row for shard, row in seen if shard == number) for number in range(12)}) == 12


def test_seed_and_epoch_decide_the_order_of_shards_and_samples():
    def epoch(number, seed):
        return stream(shard_order([10] * 10, 2, 10, seed), 10 * number, 10 * number + 10, 10)

    orders = [list(chain.from_iterable(epoch(number, seed))) for number in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    rows = [tuple(dict.fromkeys(shard for shard, _ in order)) for order in orders]
    assert len(set(rows)) == 9  # the shards too, not their samples alone


@fewer
@given(counts=shards, open_shards=st.integers(1, 8), batch_size=st.integers(1, 24), steps=st.integers(0, 10**6))
def test_samples_seen_before_are_counted_on(counts, open_shards, batch_size, steps):
    made = shard_order(counts, open_shards, batch_size)
    assert stream(made, 0, 3, batch_size, steps * batch_size) == stream(made, steps, steps + 3, batch_size)


def test_a_resumed_run_of_shards_needs_nothing_but_the_step():
    used, fresh = shard_order([9, 30, 2, 17]), shard_order([9, 30, 2, 17])
    through = stream(used, 0, 40, 12)
    assert stream(fresh, 31, 40, 12) == through[31:]
