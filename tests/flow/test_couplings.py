from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from flowimg.build.flow import COUPLINGS
from flowimg.flow.couplings import OptimalTransport, whole_blocks
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

few = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(params=COUPLINGS)
def coupling(request):
    return COUPLINGS[request.param](validate(Config, {"coupling": {"kind": request.param}}, "test").coupling)


def pair(n, shape=(2,), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g), 2 + torch.randn(n, *shape, generator=g)


def cost(x_0, x_1):
    return (x_0 - x_1).double().square().sum().item()


def rows(x):
    return sorted(map(tuple, x.flatten(1).tolist()))


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@pytest.mark.parametrize("n", [1, 2, 100, 600])
def test_noise_is_permuted_within_its_block(coupling, n, shape):
    x_0, x_1 = pair(n, shape)
    keep = x_0.clone(), x_1.clone()
    out = coupling(x_0, x_1)
    assert out.shape == x_0.shape and out.dtype == x_0.dtype
    for start in range(0, n, coupling.block):
        block = slice(start, start + coupling.block)
        assert rows(out[block]) == rows(x_0[block])
    assert torch.equal(x_0, keep[0]) and torch.equal(x_1, keep[1])


def test_pairs_cost_no_more_than_as_they_were_drawn(coupling):
    x_0, x_1 = pair(300)
    assert cost(coupling(x_0, x_1), x_1) <= cost(x_0, x_1)


def test_blocks_do_not_see_each_other(coupling):
    # what a process gets that computes only the last block is what everybody gets
    n = 2 * coupling.block + 10
    x_0, x_1 = pair(n)
    start = 2 * coupling.block
    assert torch.equal(coupling(x_0[start:], x_1[start:]), coupling(x_0, x_1)[start:])


def test_independent_pairs_stay_as_they_were_drawn():
    x_0, x_1 = pair(50)
    independent = COUPLINGS["independent"](None)
    assert torch.equal(independent(x_0, x_1), x_0)
    assert independent.block == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 3, 6])
def test_optimal_transport_is_the_best_of_all_permutations(n, seed):
    x_0, x_1 = pair(n, seed=seed)
    best = min(permutations(range(n)), key=lambda p: cost(x_0[list(p)], x_1))
    assert torch.equal(OptimalTransport(block=n)(x_0, x_1), x_0[list(best)])


@pytest.mark.parametrize("shape", [(2,), (3, 2, 2)])
def test_optimal_transport_is_the_assignment_of_least_squared_distance(shape):
    x_0, x_1 = pair(64, shape)
    squared = cdist(x_1.flatten(1).double().numpy(), x_0.flatten(1).double().numpy(), "sqeuclidean")
    _, match = linear_sum_assignment(squared)
    assert torch.equal(OptimalTransport(block=64)(x_0, x_1), x_0[match])


def test_optimal_transport_in_one_dimension_pairs_in_order():
    x_0, x_1 = pair(200, (1,))
    out = OptimalTransport(block=200)(x_0, x_1)
    assert torch.equal(out[x_1.flatten().argsort()], x_0.sort(dim=0).values)


def test_classes_exchange_no_noise_so_that_noise_is_normal_given_the_class():
    x_0, x_1 = pair(512)
    labels = torch.arange(512) % 3
    x_1[labels == 1] += 4
    out = OptimalTransport(block=128)(x_0, x_1, labels)
    for start in range(0, 512, 128):
        for label in range(3):
            mine = torch.arange(start, start + 128)[labels[start : start + 128] == label]
            assert torch.equal(out[mine], OptimalTransport(block=128)(x_0[mine], x_1[mine]))
    assert rows(out[labels == 1]) == rows(x_0[labels == 1])
    across = OptimalTransport(block=128)(x_0, x_1)
    assert across[labels == 1].mean() > 0.5 > 0.2 > out[labels == 1].mean().abs()


def test_optimal_transport_of_a_larger_block_costs_less():
    x_0, x_1 = pair(256)
    costs = [cost(OptimalTransport(block)(x_0, x_1), x_1) for block in (1, 4, 16, 64, 256)]
    assert costs[0] == cost(x_0, x_1)
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.9 * costs[0]


@st.composite
def places_in_a_batch(draw):
    batch_size = draw(st.integers(1, 1000))
    start = draw(st.integers(0, batch_size - 1))
    stop = draw(st.integers(start + 1, batch_size))
    return range(start, stop), draw(st.integers(1, 600)), batch_size


@few
@given(places_in_a_batch())
def test_whole_blocks_are_the_least_blocks_that_hold_the_places(case):
    places, block, batch_size = case
    touched = {place // block for place in places}
    expected = [place for place in range(batch_size) if place // block in touched]
    assert list(whole_blocks(places, block, batch_size)) == expected
