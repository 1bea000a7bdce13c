import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowimg.training.schedules import constant, cosine, ema_decay, learning_rate, linear

SHAPES = [constant, cosine, linear]


@pytest.mark.parametrize("shape", SHAPES)
@given(steps=st.integers(2, 10_000), share=st.floats(0, 0.9))
def test_rate_rises_to_the_peak_then_never_rises_and_stays_positive(shape, steps, share):
    warmup = int(share * steps)
    rates = [learning_rate(step, 0.1, steps, warmup, shape) for step in {0, warmup // 2, warmup, steps // 2, steps - 1}]
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates)
    assert learning_rate(warmup, 0.1, steps, warmup, shape) == pytest.approx(0.1)
    after = [learning_rate(step, 0.1, steps, warmup, shape) for step in range(warmup, steps, max(1, steps // 50))]
    assert all(a >= b for a, b in zip(after, after[1:], strict=False))


def test_warmup_is_a_straight_line_that_starts_above_zero():
    assert [learning_rate(step, 1.0, 100, 4, cosine) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_known_values_half_way():
    half = 50 + (1000 - 50) / 2
    assert learning_rate(int(half), 2.0, 1000, 50, constant) == 2.0
    assert learning_rate(int(half), 2.0, 1000, 50, linear) == pytest.approx(1.0, abs=2e-3)
    quarter = 50 + (1000 - 50) // 4
    progress = (quarter - 50) / 950
    assert learning_rate(quarter, 2.0, 1000, 50, cosine) == pytest.approx(2 * math.cos(math.pi * progress / 2) ** 2)


def test_ema_decay_rises_to_its_limit():
    assert ema_decay(0, 0.999) == 0.1
    assert ema_decay(90, 0.999) == 0.91
    assert ema_decay(10**6, 0.999) == 0.999
    decays = [ema_decay(step, 0.999) for step in range(20_000)]
    assert decays == sorted(decays)
