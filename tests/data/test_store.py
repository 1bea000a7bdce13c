import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.data.store import Images, hold_out, to_unit
from flowimg.sampling.generate import to_uint8

few = settings(max_examples=40, deadline=None, derandomize=True)
LEVELS = torch.arange(256, dtype=torch.uint8)


def numbered(n, labels=True):
    # the pixels of picture i, and its label, are i
    index = torch.arange(n)
    pixels = torch.stack([index % 256, index // 256], 1).to(torch.uint8)[:, :, None, None].expand(n, 2, 3, 3)
    return Images(pixels, index if labels else None, ("some", "names"))


def names(images):
    return (images.pixels[:, 0, 0, 0].long() + 256 * images.pixels[:, 1, 0, 0].long()).tolist()


def test_grey_levels_go_to_floats_and_come_back_as_they_were():
    assert torch.equal(to_uint8(to_unit(LEVELS)), LEVELS)


def test_grey_levels_are_spread_evenly_from_minus_one_to_one():
    x = to_unit(LEVELS)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x, torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)


def test_values_outside_are_clipped_and_values_between_rounded():
    x = torch.tensor([-7.0, -1.0, 1.0, 1.01, 1e9, to_unit(LEVELS)[10] + 0.4 / 127.5, to_unit(LEVELS)[10] + 0.6 / 127.5])
    assert to_uint8(x).tolist() == [0, 0, 255, 255, 255, 10, 11]


@few
@given(n=st.integers(2, 600), share=st.floats(0, 0.99))
def test_held_out_and_the_rest_are_disjoint_and_complete(n, share):
    count = int(share * n)
    learn, kept, rows = hold_out(numbered(n), count)
    assert rows.tolist() == names(learn)
    assert len(kept.pixels) == count
    assert sorted(names(learn) + names(kept)) == list(range(n))
    assert names(learn) == learn.labels.tolist() and names(kept) == kept.labels.tolist()
    assert learn.classes == kept.classes == ("some", "names")


def test_held_out_are_the_same_every_time_and_fewer_are_among_more():
    assert names(hold_out(numbered(500), 50)[1]) == names(hold_out(numbered(500), 50)[1])
    assert set(names(hold_out(numbered(500), 20)[1])) < set(names(hold_out(numbered(500), 50)[1]))


def test_held_out_come_from_all_over_the_set():
    # a set sorted by class must not lose its first or last class
    kept = torch.tensor(names(hold_out(numbered(1000), 100)[1]))
    assert torch.bincount(kept // 100, minlength=10).min() >= 3


def test_pictures_without_labels_are_held_out_without_labels():
    learn, kept, _ = hold_out(numbered(10, labels=False), 3)
    assert learn.labels is None and kept.labels is None


@pytest.mark.parametrize("labels", [True, False])
def test_take_keeps_the_order_asked_for(labels):
    taken = numbered(10, labels).take(torch.tensor([7, 2, 2]))
    assert names(taken) == [7, 2, 2]
    assert (taken.labels.tolist() == [7, 2, 2]) if labels else taken.labels is None


def test_moving_to_a_device_keeps_everything():
    moved = numbered(5).to(torch.device("meta"))
    assert moved.pixels.device.type == moved.labels.device.type == "meta"
    assert moved.classes == ("some", "names")
    assert numbered(5, labels=False).to(torch.device("cpu")).labels is None
