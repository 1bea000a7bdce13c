import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowimg.data.order import permute, sample_indices

few = settings(max_examples=60, deadline=None, derandomize=True)


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


@pytest.mark.parametrize(("n", "keys"), [(2, 2000), (3, 2000), (5, 2000), (16, 2000), (40, 1000)])
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
    seen = run(n, batch_size, steps=12 * n)
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
