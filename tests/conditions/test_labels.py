"""A label that a user gives is the name of a class: never its position, whatever the label looks like."""

import numpy as np
import pytest
import torch

from flowimg.conditions.labels import class_number, parse_label
from flowimg.errors import SettingsError

NUMBERS = ("1", "10", "20")


@pytest.mark.parametrize("label", [10, "10", np.int64(10), np.uint8(10), np.str_("10"), torch.tensor(10)], ids=repr)
def test_a_number_and_its_digits_mean_the_class_of_that_name(label):
    assert class_number(label, NUMBERS) == 1


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (2, NUMBERS), ("2", NUMBERS), (0, NUMBERS), (-1, NUMBERS), (2, ("cat", "dog", "owl")), (0, ("cat",)),
        (1, ("01", "02")), ("1", ("01",)), ("01", ("1",)), ("1", ("1 ", " 1")), (10, ("010", "1e1", "10.0")),
        (True, NUMBERS), (np.True_, NUMBERS), (torch.tensor(True), NUMBERS), (1.0, NUMBERS), (np.float32(1), NUMBERS),
        (None, ("None",)), (b"1", NUMBERS), ([1], NUMBERS), (torch.tensor([1, 10]), NUMBERS), (np.array([1]), NUMBERS),
        ("Cat", ("cat",)), ("cat ", ("cat",)), ("", ("cat",)), (" ", ("cat",)), ("\u0661", NUMBERS), ("+1", NUMBERS),
    ],
    ids=repr,
)  # fmt: skip
def test_what_no_class_is_called_is_none_of_them(label, classes):
    assert class_number(label, classes) is None


def test_names_that_differ_in_case_spaces_or_zeros_are_different_classes():
    classes = ("1", "01", " 1", "-1", "Cat", "cat", "cat ", "", "none")
    assert [class_number(name, classes) for name in classes] == list(range(len(classes)))
    assert class_number(1, classes) == 0 and class_number(-1, classes) == 3


@pytest.mark.parametrize(
    ("label", "classes", "said"),
    [
        ("2", NUMBERS, "there are 20, 1, 10"),
        (1, ("7", "8", "01"), "there are 01, 7, 8"),
        ("CAT", ("owl", "dog", "cat"), "there are cat, owl, dog"),
        ("cat", ("owl", "cat ", "a\nb"), "there are 'cat ', owl, 'a\\nb'"),
        ("zebra", [f"class {n}" for n in range(100)], "there are class 0, class 1, class 2, "),
    ],
)
def test_a_label_of_no_class_is_refused_in_one_line_with_the_names_nearest_first(label, classes, said):
    with pytest.raises(SettingsError) as told:
        parse_label(label, classes, "runs/a")
    assert str(told.value).startswith(f"label {label} is no class of runs/a: {said}")
    assert len(str(told.value).splitlines()) == 1 and len(str(told.value)) < 300
    assert str(told.value).endswith(" and 84 more") == (len(classes) == 100)


@pytest.mark.parametrize("label", ["x\ny", "x" * 10_000, "\udcff"])
def test_whatever_was_typed_the_answer_is_one_short_line(label):
    with pytest.raises(SettingsError) as told:
        parse_label(label, NUMBERS, "runs/a")
    assert len(str(told.value).splitlines()) == 1 and len(str(told.value)) < 200 and str(told.value).isprintable()
