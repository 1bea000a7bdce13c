import random
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowimg.flow.randomness import (
    BLOCK,
    LARGE_BLOCK,
    ROWS,
    STEPS,
    block_of,
    draw_blocks,
    generator,
    key,
    lot_of,
    normal,
    uniform,
)

few = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def structured_keys():
    # what a run really asks for: small, dense, structured numbers
    return np.array(
        [
            key(seed, purpose, step, block)
            for seed in (0, 1, 2, 100, 2**62)
            for purpose in ("noise", "time")
            for step in range(2000)
            for block in range(10)
        ],
        dtype=np.uint64,
    )


def test_structured_keys_never_collide(structured_keys):
    assert len(np.unique(structured_keys)) == len(structured_keys) == 200_000


def test_lower_half_of_keys_collides_as_often_as_a_random_function(structured_keys):
    # a CPU generator keeps only these 32 bits; a random function has Poisson(n^2 / 2^33) collisions: 4.7 here
    lower = structured_keys & np.uint64(2**32 - 1)
    collisions = len(lower) - len(np.unique(lower))
    expected = len(lower) ** 2 / 2**33
    assert stats.poisson.sf(collisions - 1, expected) > 1e-3


def test_every_bit_of_a_key_is_set_half_of_the_time(structured_keys):
    n = len(structured_keys)
    share = np.array([((structured_keys >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(63)])
    assert np.abs(share - 0.5).max() < 5 * 0.5 / n**0.5
    assert structured_keys.max() < 2**63


def test_keys_tell_apart_where_one_part_ends_and_the_next_begins():
    parts = [("noise", 12), ("noise1", 2), ("noise", 1, 2), (1, 23), (12, 3), (123,), ("123",), ("1", 23), (23, 1), ()]
    assert len({key(*p) for p in parts}) == len(parts)


def test_key_of_today_is_the_key_of_any_machine_and_day():
    # a run continued next year must draw the same numbers: printf "0\x1f'noise'\x1f3" | b2sum -l 64
    digest = "87fcabd5134dd31e"
    assert key(0, "noise", 3) == int.from_bytes(bytes.fromhex(digest), "little") // 2


def test_generator_is_on_the_cpu_and_starts_afresh():
    assert generator("a", 1).device.type == "cpu"
    assert torch.equal(torch.rand(5, generator=generator("a", 1)), torch.rand(5, generator=generator("a", 1)))


@pytest.mark.parametrize("shape", [(), (2,), (3,), (3, 8, 8)])
@pytest.mark.parametrize("draw", [normal, uniform])
def test_seed_purpose_step_and_block_all_matter(draw, shape):
    block = block_of(shape)
    places, second = range(block), range(block, 2 * block)
    draws = [
        draw(0, "noise", 0, places, shape),
        draw(1, "noise", 0, places, shape),
        draw(0, "time", 0, places, shape),
        draw(0, "noise", 1, places, shape),
        draw(0, "noise", 0, second, shape),
        draw(1, "noise", 1, places, shape),
    ]
    for a, b in combinations(draws, 2):
        assert (a == b).float().mean() < 1e-3  # some of many are alike by chance
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.5


def cuts(batch_size):
    inner = st.lists(st.integers(1, max(1, batch_size - 1)), max_size=5)
    return inner.map(lambda c: list(pairwise(sorted({0, batch_size, *(min(i, batch_size) for i in c)}))))


@few
@given(
    cut=st.one_of(st.integers(1, 300), st.integers(300, 3000)).flatmap(cuts),
    step=st.integers(0, 10**6),
    shape=st.sampled_from([(), (2,), (3,), (3, 2, 2), (1, 8, 8)]),
)
def test_rows_are_the_same_bit_for_bit_however_the_batch_is_cut(cut, step, shape):
    for draw in (normal, uniform):
        whole = draw(7, "noise", step, range(cut[-1][1]), shape)
        parts = [draw(7, "noise", step, range(a, b), shape) for a, b in cut]
        assert whole.shape == (cut[-1][1], *shape)
        assert torch.equal(torch.cat(parts), whole)


def test_a_block_is_drawn_whole_and_only_where_it_is_needed():
    asked = []

    def draw(count, g):
        asked.append(count)
        return torch.zeros(count)

    assert len(draw_blocks(0, "x", 0, range(3 * BLOCK - 1, 4 * BLOCK + 1), draw)) == BLOCK + 2
    assert asked == [BLOCK] * 3
    assert len(draw_blocks(0, "x", 0, range(BLOCK, 2 * BLOCK), draw)) == BLOCK
    assert asked == [BLOCK] * 4


def test_more_rows_share_a_generator_where_they_are_of_few_numbers():
    assert [block_of(shape) for shape in ((), (1,), (2, 2), (5,), (3, 32, 32))] == [LARGE_BLOCK] * 3 + [BLOCK] * 2
    for shape in ((), (2,), (3,)):
        size = block_of(shape)
        second = torch.rand(size, *shape, generator=generator(1, "x", 2, 1))
        assert torch.equal(uniform(1, "x", 2, range(size - 3, 2 * size), shape)[3:], second)


@few
@given(step=st.integers(0, 10**7), rows=st.integers(0, 10**6))
def test_every_step_is_in_one_lot_of_few_rows(step, rows):
    lot = lot_of(step, rows)
    assert step in lot and all(lot_of(other, rows) == lot for other in (lot[0], lot[-1]))
    assert 1 <= len(lot) <= STEPS and (len(lot) * rows <= ROWS or len(lot) == 1)
    assert lot_of(step, 512) == range(step // 16 * 16, step // 16 * 16 + 16)


def test_normal_numbers_are_normal_and_independent():
    x = normal(3, "noise", 5, range(20_000), ()).double().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    # neighbours within a block, and the same place in neighbouring blocks
    for lag in (1, LARGE_BLOCK):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / len(x) ** 0.5


def test_uniform_numbers_are_uniform_and_below_one():
    u = uniform(3, "time", 5, range(20_000)).double().numpy()
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    for lag in (1, LARGE_BLOCK):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / len(u) ** 0.5


def test_global_random_state_is_neither_read_nor_changed():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    torch.manual_seed(0)
    before = states()
    first = normal(0, "noise", 0, range(100), (2,)), uniform(0, "time", 0, range(100))
    assert states() == before
    torch.manual_seed(1)
    second = normal(0, "noise", 0, range(100), (2,)), uniform(0, "time", 0, range(100))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
