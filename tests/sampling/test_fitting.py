"""Work in parts that fit in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowimg.sampling.fitting import in_parts


@given(count=st.integers(0, 60), size=st.integers(1, 70), room=st.integers(1, 70))
def test_all_is_done_once_in_order_in_parts_that_fit(count, size, room):
    refused = []

    def work(part):
        if part.stop - part.start > room:
            refused.append(part.stop - part.start)
            raise MemoryError
        return list(range(count))[part]

    parts = list(in_parts(work, count, size))
    assert [place for part in parts for place in part] == list(range(count))
    assert all(0 < len(part) <= min(size, room) for part in parts)
    assert refused == sorted(refused, reverse=True)  # what did not fit once is not tried again


@pytest.mark.parametrize(("least", "tried"), [(1, [8, 4, 2, 1]), (3, [8, 4, 2]), (4, [8, 4]), (9, [8])])
def test_what_must_fit_is_not_cut(least, tried):
    asked = []

    def work(part):
        asked.append(part.stop - part.start)
        raise MemoryError

    with pytest.raises(MemoryError):
        list(in_parts(work, 8, 8, least))
    assert asked == tried
