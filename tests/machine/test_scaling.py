"""Predictions where they are known without the formula: limits, cases worked out by hand, and others' arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowimg.machine import scaling
from flowimg.machine.scaling import GPUS, Links, Memory, Work, efficiency, memory_of, step_seconds, ways

ENDLESS = Links(math.inf, math.inf, hop_inside=0.0, hop_between=0.0)
H100 = GPUS["h100"].links
GIB = 2**30
counts = st.sampled_from([1, 2, 4, 8, 16, 64, 512, 4096])
works = st.builds(
    Work,
    gather=st.sampled_from([2, 4]),
    casts=st.sampled_from([0, 2]),
    numbers=st.integers(10**5, 10**10),
    blocks=st.integers(1, 64),
    forward=st.floats(1e-4, 1.0),
    backward=st.floats(1e-4, 2.0),
    micro_batches=st.integers(1, 4),
    averages=st.integers(1, 3),
    recomputes=st.booleans(),
)


@pytest.fixture
def no_stragglers(monkeypatch):
    monkeypatch.setattr(scaling, "STRAGGLING", (0.0, 0.0, 0.0, 0.0))


def share_of(work, links, processes, shard, kept=True, **how):
    return efficiency(work, step_seconds(work, links, processes, shard, kept, **how))


# --- time ------------------------------------------------------------------------------------------------------------


@given(work=works, kept=st.booleans(), overlap=st.booleans())
def test_one_process_only_computes(work, kept, overlap):
    seconds = step_seconds(work, H100, 1, 1, kept, overlap)
    assert seconds == pytest.approx(work.micro_batches * (work.forward + work.backward))


@given(work=works, processes=counts, kept=st.booleans(), overlap=st.booleans())
def test_endless_links_cost_what_stragglers_cost(work, processes, kept, overlap):
    for shard in ways(processes):
        wanted = 1 / (1 + scaling.straggling(processes))
        assert share_of(work, ENDLESS, processes, shard, kept, overlap=overlap) == pytest.approx(wanted)


@given(work=works, processes=counts, kept=st.booleans())
def test_what_is_sent_costs_time_and_less_beside_computing(work, processes, kept):
    for shard in ways(processes):
        beside, after = (step_seconds(work, H100, processes, shard, kept, overlap) for overlap in (True, False))
        assert work.micro_batches * (work.forward + work.backward) <= beside * (1 + 1e-9)
        assert beside <= 2 * after  # the first gather and the last scatter are beside nothing, of a single block all


@given(work=works, processes=counts.filter(lambda n: n > 1))
def test_dropped_weights_are_gathered_once_more(work, processes):
    kept, dropped = (step_seconds(work, H100, processes, processes, keep, overlap=False) for keep in (True, False))
    bytes_, nodes = work.gather * work.numbers * (processes - 1) / processes, processes > 8
    rate = 0.8 * (400e9 if nodes else 450e9)
    hops = processes // 8 if nodes else 0
    latency = work.blocks * (8e-6 * hops + 1.5e-6 * (processes - 1 - hops))
    more = work.micro_batches * (bytes_ / rate + latency) * (1 + scaling.straggling(processes))
    assert dropped - kept == pytest.approx(more, rel=1e-6)


def test_two_machines_worked_out_by_hand(no_stragglers):
    """6,000,000 numbers over 100 MB/s without overlap: each sends half of 24 MB twice, 0.24 s, and two hops of 1 ms."""
    wire = Links(1e8, 1e8, node=1, hop_inside=1e-3, hop_between=1e-3, reached=1.0)
    work = Work(6e6, forward=0.05, backward=0.1, casts=0)
    assert step_seconds(work, wire, 2, 1, True, overlap=False) == pytest.approx(0.15 + 0.24 + 0.002)
    # sharded: gather 12 MB, scatter 12 MB, a hop each; and gather again where they were dropped
    assert step_seconds(work, wire, 2, 2, True, overlap=False) == pytest.approx(0.15 + 2 * 0.121)
    assert step_seconds(work, wire, 2, 2, False, overlap=False) == pytest.approx(0.15 + 3 * 0.121)
    # where a gather takes 1.5 times as long as a ring, and a scatter twice, as with gloo
    slow = wire._replace(gathers=1.5, scatters=2.0)
    assert step_seconds(work, slow, 2, 2, True, overlap=False) == pytest.approx(0.15 + 0.18 + 0.24 + 0.002)
    # with two micro-batches the gather is repeated, the scatter is not
    twice = work._replace(micro_batches=2)
    assert step_seconds(twice, wire, 2, 2, True, overlap=False) == pytest.approx(0.3 + 3 * 0.121)


def test_sending_hides_behind_computing_but_for_its_ends(no_stragglers):
    """Ten blocks of 1 ms forward and 2 ms backward; a gather takes 1.5 ms, a scatter 1.5: T = 1.5 + 15 + 20 + 1.5."""
    links = Links(1e9, 1e9, node=2, hop_inside=0.0, hop_between=0.0, reached=1.0)
    work = Work(10 * 0.75e6, 10, 0.010, 0.020)  # 3 MB a block, of which half is sent
    assert step_seconds(work, links, 2, 2, True) == pytest.approx(0.0015 + 0.015 + 0.020 + 0.0015)
    # dropped: gather and scatter together take longer than a block's backward pass
    assert step_seconds(work, links, 2, 2, False) == pytest.approx(0.0015 + 0.015 + 0.030 + 0.0015)
    # a block of which less is sent than computed costs the ends only
    light = work._replace(numbers=10 * 0.25e6)
    assert step_seconds(light, links, 2, 2, True) == pytest.approx(0.0005 + 0.010 + 0.020 + 0.0005)
    # two micro-batches of what takes 3 ms to gather, dropped: only the last of them scatters
    heavy = work._replace(numbers=10 * 1.5e6, micro_batches=2)
    assert step_seconds(heavy, links, 2, 2, False) == pytest.approx(2 * (0.003 + 0.030) + 0.030 + 0.060 + 0.003)


def test_copies_are_added_up_over_the_network_cards(no_stragglers):
    """8 copies of a node of 8: each GPU sends its eighth, 2 x 10 MB x 7/8, through its own card at 40 GB/s."""
    work = Work(20e6, 1, 0.1, 0.2)  # 80 MB
    links = H100._replace(hop_inside=0.0, hop_between=0.0)
    inside = 80e6 * 7 / 8 / 360e9
    across = 2 * 10e6 * 7 / 8 / 40e9
    found = step_seconds(work, links, 64, 8, True, overlap=False)
    assert found == pytest.approx(0.3 + 2 * inside + across)
    # one copy on each GPU (DDP): eight cards a node share the ring, 2 x 80 MB x 63/64 at 320 GB/s
    assert step_seconds(work, links, 64, 1, True, overlap=False) == pytest.approx(0.3 + 2 * 80e6 * 63 / 64 / 320e9)


def test_a_ring_over_512_gpus_waits_a_millisecond_before_a_byte_is_moved(no_stragglers):
    nothing = Work(1.0, 1, 0.1, 0.2)
    assert step_seconds(nothing, H100, 512, 512, True, overlap=False) == pytest.approx(0.3 + 2 * 1.18e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        # a table made before this code: weights gathered in bf16; blocks, ms of compute, kept all at 8, 64, 512,
        # dropped at 512, one copy a node at 8, 64, 512
        ((35.7e6, 9, 24.1), (99, 97, 79, 66, 99, 97, 95)),
        ((66.6e6, 7, 30.8), (99, 97, 89, 89, 99, 97, 95)),
        ((302e6, 16, 26), (98, 96, 54, 37, 98, 95, 93)),
        ((669e6, 28, 57), (99, 96, 68, 46, 99, 96, 94)),
        ((2491e6, 33, 100), (98, 96, 75, 53, 98, 95, 93)),
        ((7984e6, 47, 149), (98, 89, 54, 39, 98, 63, 56)),
    ],
)
def test_efficiencies_are_those_that_were_computed_before_by_other_code(row, wanted):
    numbers, blocks, ms = row
    work = Work(numbers, blocks, ms / 3000, 2 * ms / 3000, gather=2)
    asked = [(8, 8, True), (64, 64, True), (512, 512, True), (512, 512, False), (8, 8, True), (64, 8, True)]
    found = [100 * share_of(work, H100, *way) for way in [*asked, (512, 8, True)]]
    assert found == pytest.approx(wanted, abs=2)


def test_stragglers_lie_on_a_line_between_the_points():
    assert [scaling.straggling(n) for n in (1, 8, 64, 512)] == pytest.approx([0, 0.005, 0.02, 0.04])
    assert scaling.straggling(128) == pytest.approx(0.02 + 0.02 / 3)
    assert scaling.straggling(4096) == pytest.approx(0.06)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "blocks", "wanted"),
    [
        # a table made before this code, GiB with EMA and two power averages: DDP, one copy a node
        # kept and dropped, shard 64 dropped, a whole average
        (35.7e6, 9, (1.0, 0.4, 0.2, 0.1, 0.1)),
        (302e6, 16, (8.4, 3.1, 1.6, 0.8, 1.1)),
        (669e6, 28, (18.7, 6.5, 3.0, 1.1, 2.5)),
        (2491e6, 33, (69.6, 23.7, 10.7, 3.5, 9.3)),
        (7984e6, 47, (223.1, 74.4, 31.7, 8.9, 29.7)),
    ],
)
def test_memory_is_that_of_the_table(numbers, blocks, wanted):
    work = Work(numbers, blocks, averages=3)
    again = work._replace(recomputes=True)
    ways = [(work, 1, True), (work, 8, True), (again, 8, False), (again, 64, False)]
    memories = [memory_of(*way) for way in ways]
    found = [*(memory.state + memory.copies for memory in memories), memories[-1].whole]
    assert [size / GIB for size in found] == pytest.approx(wanted, rel=0.015, abs=0.06)


def test_bytes_of_a_million_numbers_by_hand():
    work = Work(1e6, 4, averages=3, casts=2)
    assert memory_of(work, 1, True) == Memory(4e6, 4e6, 8e6, 12e6, 2e6, 0)
    # an eighth each; kept: 4 + 2 of all; two blocks of four in flight, three buffers of 4 each
    assert memory_of(work, 8, True) == Memory(0.5e6, 0.5e6, 1e6, 1.5e6, 4e6 + 2e6 + 6e6, 4e6)
    # dropped: 4 of two blocks; autograd keeps the rounded weights, unless the blocks are computed again
    assert memory_of(work, 8, False).copies == 2e6 + 2e6 + 6e6
    assert memory_of(work._replace(recomputes=True), 8, False).copies == 2e6 + 1e6 + 6e6
    # micro-batches add up whole gradients before they are scattered
    assert memory_of(work._replace(micro_batches=2), 8, True).gradients == 4e6


def test_the_peak_is_a_step_or_a_whole_average():
    memory = Memory(1, 2, 3, 4, 5, 100)
    assert memory.state == 10 and memory.peak(6) == 110 and memory.peak(200) == 215


@given(work=works, processes=counts)
def test_sharing_a_copy_with_more_never_takes_more_state(work, processes):
    states = [memory_of(work._replace(micro_batches=1), k, True).state for k in ways(processes)]
    assert states == sorted(states, reverse=True)
    assert states[-1] == pytest.approx((16 + 4 * work.averages) * work.numbers / processes)


# --- what is known of machines and ways ------------------------------------------------------------------------------


def test_ways_are_one_a_node_and_all():
    assert [ways(n) for n in (1, 2, 8, 16, 64)] == [[1], [1, 2], [1, 8], [1, 8, 16], [1, 8, 64]]


def test_the_share_of_peak_is_that_of_the_measured_network_nearest_in_size():
    assert scaling.share_of_peak(1_000_000)[0] == scaling.share_of_peak(40_000_000)[0] == 0.20
    assert scaling.share_of_peak(60_000_000)[0] == scaling.share_of_peak(8_000_000_000)[0] == 0.27


def test_the_measured_shares_are_speed_times_operations():
    """docs/results.md: 5,309 and 2,077 samples/s on an H100; 37.3 and 127 GFLOP each."""
    shares = [share for _, share in scaling.REACHED.values()]
    assert shares == pytest.approx([5309 * 37.3e9 / 989e12, 2077 * 127e9 / 989e12], abs=0.005)
