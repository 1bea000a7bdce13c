import pytest
import torch
from sklearn.datasets import load_digits

from flowimg.data.sources import NAMED, DataError, load_images


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", labels=True)


@pytest.mark.parametrize("name", NAMED)
def test_every_collection_is_uint8_pictures_with_one_label_each(name):
    pixels, labels, classes = load_images(name, labels=True)
    assert pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3)
    assert labels.dtype == torch.int64 and labels.shape == pixels.shape[:1]
    assert labels.unique().tolist() == list(range(len(classes)))
    assert len(set(classes)) == len(classes)


def test_digits_are_1797_small_grey_pictures_of_ten_classes(digits):
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_keep_their_17_grey_levels_over_the_whole_range(digits):
    levels = digits.pixels.unique()
    assert len(levels) == 17 and levels[0] == 0 and levels[-1] == 255
    bunch = load_digits()
    exact = torch.from_numpy(bunch.images) * 255 / 16
    assert (digits.pixels[:, 0].double() - exact).abs().max() <= 0.5  # rounded, not cut
    assert digits.labels.tolist() == bunch.target.tolist()


def test_digits_are_drawn_in_white_on_black_the_right_way_up(digits):
    # the first one of all, a 0: dark in its middle and its corners, light around
    first = digits.pixels[0, 0]
    assert first[3:5, 3:5].max() < 100 and first[0, 0] == first[7, 7] == 0
    # a 7 is heavier at its top, a mean over all of them
    seven = digits.pixels[digits.labels == 7, 0].float().mean(0)
    assert seven[:3].sum() > seven[-3:].sum()


def test_labels_are_left_out_where_they_are_not_asked_for(digits):
    images = load_images("digits", labels=False)
    assert images.labels is None and images.classes == ()
    assert torch.equal(images.pixels, digits.pixels)


@pytest.mark.parametrize("name", ["digit", "Digits", "dgits"])
def test_a_name_close_to_a_known_one_is_answered_with_it(name):
    with pytest.raises(DataError, match=rf"'{name}'.*did you mean 'digits'"):
        load_images(name, labels=True)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(DataError, match=r"'zebra'.*known are digits"):
        load_images("zebra", labels=True)
