"""Rows of a condition against rows of plain lists; a part that is absent stays absent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.flow.condition import NO_CLASS, NULLS, STEERED, Condition

few = settings(max_examples=40, deadline=None, derandomize=True)


def condition(count, parts=Condition._fields, start=0):
    """Rows that say which they are: label = row, augmentation = (row, row + 1, ...); only the parts named."""
    row = torch.arange(start, start + count)
    whole = {"label": row, "augmentation": row[:, None] + torch.arange(9.0)}
    return Condition(**{name: value for name, value in whole.items() if name in parts})


def plain(cond):
    """The parts as lists."""
    return [None if part is None else part.tolist() for part in cond]


PARTS = st.sets(st.sampled_from(Condition._fields))
INDEX = st.lists(st.integers(0, 5), max_size=8)


@few
@given(PARTS, INDEX)
def test_rows_are_those_of_lists(parts, index):
    cond = condition(6, parts)
    wanted = [None if part is None else [part[row] for row in index] for part in plain(cond)]
    assert plain(cond.rows(torch.tensor(index, dtype=torch.long))) == wanted
    assert plain(cond.rows(index)) == wanted


@few
@given(PARTS, st.slices(6).filter(lambda part: part.step is None or part.step > 0))
def test_a_slice_of_rows_is_that_of_lists(parts, part):
    cond = condition(6, parts)
    assert plain(cond.rows(part)) == [None if rows is None else rows[part] for rows in plain(cond)]


@few
@given(PARTS, st.integers(0, 4), st.integers(0, 4))
def test_what_is_put_together_is_taken_apart_again(parts, first, second):
    one, other = condition(first, parts), condition(second, parts, start=first)
    both = one.cat(other)
    assert plain(both) == plain(condition(first + second, parts))
    assert plain(both.rows(slice(first))) == plain(one) and plain(both.rows(slice(first, None))) == plain(other)


def test_a_part_that_one_of_two_lacks_is_not_lost():
    one, other = Condition(torch.zeros(2, dtype=torch.int64)), Condition(augmentation=torch.zeros(2, 9))
    for a, b in ((one, other), (other, one), (one, Condition())):
        with pytest.raises(ValueError, match="cannot be joined"):
            a.cat(b)


@few
@given(PARTS, st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from(Condition._fields))
def test_a_part_is_dropped_in_the_rows_of_the_mask_and_nowhere_else(parts, mask, name):
    cond = condition(5, parts)
    before = plain(cond)
    dropped = cond.drop(name, torch.tensor(mask))
    for field, was, now in zip(Condition._fields, before, plain(dropped), strict=True):
        if field != name or was is None:
            assert now == was
        else:
            null = NO_CLASS if name == "label" else [0.0] * 9
            assert now == [null if gone else row for row, gone in zip(was, mask, strict=True)]
    assert plain(cond) == before  # a draw may be the same tensors again
    assert [part.dtype for part in dropped if part is not None] == [part.dtype for part in cond if part is not None]


@few
@given(PARTS)
def test_null_has_no_class_and_keeps_what_guidance_does_not_steer(parts):
    cond = condition(4, parts)
    null = cond.null()
    assert null.label is None if cond.label is None else null.label.tolist() == [NO_CLASS] * 4
    assert plain(null)[1] == plain(cond)[1]
    assert plain(null.null()) == plain(null)
    assert cond.steers == null.steers == ("label" in parts)


@few
@given(PARTS)
def test_all_parts_go_to_a_device_and_absent_ones_stay_absent(parts):
    there = condition(3, parts).to("meta")
    assert {name for name, part in there._asdict().items() if part is not None} == parts
    assert all(part.device.type == "meta" for part in there if part is not None)


def test_rows_are_taken_on_the_device_of_each_part():
    there = condition(3).to("meta").rows(torch.tensor([2, 0]))
    assert there.label.shape == (2,) and there.augmentation.shape == (2, 9) and there.label.device.type == "meta"


def test_nothing_given_is_nothing_after_everything():
    none = Condition()
    mask = torch.tensor([True, False])
    assert none.rows([0]) == none.cat(none) == none.null() == none.drop("label", mask) == none.to("cpu") == none
    assert not none.steers


def test_every_part_has_a_null():
    assert set(NULLS) == set(Condition._fields) and set(STEERED) <= set(NULLS)


def test_a_part_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError):
        condition(2).drop("colour", torch.tensor([True, False]))
