"""The watchdog on the step: when a run is held to be stuck."""

import pytest

from flowimg.runs import watchdog as module
from flowimg.runs.watchdog import FEW, LEAST, TIMES, Watchdog


@pytest.fixture
def clock(monkeypatch):
    passed = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: passed[0])
    return passed


def after(clock, *seconds):
    """A watchdog that saw steps of these seconds."""
    dog = Watchdog()
    dog.begin()
    for step in seconds:
        clock[0] += step
        dog.step()
    return dog


def beats_until_due(dog, most=10_000):
    return next((beat for beat in range(1, most) if dog.beat(1.0) or dog.due()), None)


@pytest.mark.parametrize(
    ("steps", "limit"),
    [
        ([0.01] * FEW, LEAST),
        ([0.01] * 100 + [90.0], LEAST),  # an unusual step
        ([100.0, 40.0] + [5.0] * FEW, TIMES * 5.0),  # the first ones compile
        ([4.0, 6.0] * 100, TIMES * 5.0),
    ],
)
def test_the_limit_is_a_minute_or_twenty_usual_steps(clock, steps, limit):
    assert beats_until_due(after(clock, *steps)) == pytest.approx(limit, abs=TIMES)


def test_there_is_no_limit_for_the_first_steps(clock):
    assert beats_until_due(after(clock, *[1.0] * (FEW - 1))) is None


def test_progress_begins_the_wait_anew(clock):
    dog = after(clock, *[1.0] * FEW)
    for progress in (dog.moved, dog.begin, dog.step):
        for _ in range(int(LEAST) - 1):
            dog.beat(1.0)
        assert not dog.due()
        progress()
        assert dog.still == 0
    assert beats_until_due(dog) == LEAST


def test_time_between_steps_is_not_that_of_a_step(clock):
    dog = after(clock, *[1.0] * FEW)
    clock[0] += 500  # a grid is drawn
    dog.begin()
    clock[0] += 1
    dog.step()
    assert dog.usual == 1.0


def test_it_asks_again_after_a_rest(clock):
    dog = after(clock, *[1.0] * FEW)
    assert beats_until_due(dog) == LEAST
    dog.rest(30.0)
    assert beats_until_due(dog) == 30
