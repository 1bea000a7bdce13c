"""The set of letters: whole, the same every time, upright, and the letters that their labels say."""

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from flowimg.data.sources.known import NAMED
from flowimg.data.sources.letters import LETTERS, PLAIN, SIDE, letter_pictures


@pytest.fixture(scope="module")
def drawn():
    pictures, numbers = letter_pictures()
    return pictures, np.array(numbers)


def test_every_typeface_has_every_letter_once_and_none_is_a_box_or_another_one(drawn):
    pictures, numbers = drawn
    assert pictures.shape == (780, SIDE, SIDE) and pictures.dtype == np.uint8
    assert np.bincount(numbers).tolist() == [30] * 26
    # a font without a letter draws one picture for all that it lacks
    assert len({picture.tobytes() for picture in pictures}) >= 770
    again, _ = letter_pictures()
    np.testing.assert_array_equal(again, pictures)


def test_letters_are_whole_and_in_the_middle(drawn):
    pictures, _ = drawn
    assert pictures[:, [0, -1]].max() == pictures[:, :, [0, -1]].max() == 0
    for ink in (pictures.max(1) > 25, pictures.max(2) > 25):
        first, last = ink.argmax(1), SIDE - 1 - ink[:, ::-1].argmax(1)
        assert (np.abs(first + last - (SIDE - 1)) <= 1).all()


@pytest.mark.parametrize("letter", "FGJLPR")  # those that a turn or a mirror changes
def test_a_letter_is_that_of_matplotlibs_own_outline(drawn, letter):
    pictures, _ = drawn
    picture = pictures[PLAIN.index("DejaVuSans") * 26 + LETTERS.index(letter)] / 255
    outline = TextPath((0, 0), letter, size=100, prop=FontProperties(family="DejaVu Sans"))
    fine = 4 * SIDE
    where = (np.stack(np.meshgrid(np.arange(fine), np.arange(fine)), -1) + 0.5) / fine - 0.5
    box = outline.get_extents()
    points = where.reshape(-1, 2) * [125, -125] + [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
    # nonzero winding, as outlines of fonts are filled: a hole turns the other way
    inside = sum(np.where(part_area(part) < 0, 1, -1) * outline_holds(part, points) for part in outline.to_polygons())
    truth = (inside > 0).reshape(SIDE, 4, SIDE, 4).mean((1, 3))

    def likeness(other):
        return np.corrcoef(other.ravel(), truth.ravel())[0, 1]

    assert likeness(picture) > 0.97 > 0.9 > max(likeness(picture[::-1]), likeness(picture[:, ::-1]))


def part_area(polygon):
    x, y = polygon.T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def outline_holds(polygon, points):
    from matplotlib.path import Path

    return Path(polygon).contains_points(points).astype(int)


def test_letters_are_a_set_by_name():
    listing = NAMED["letters"]()
    assert listing.classes == tuple(LETTERS) and listing.count == 780 and listing.signature
