import pytest
import torch

from flowimg.fields.guidance import Guided, guided
from flowimg.fields.mlp import MLPField
from flowimg.flow.objective import NO_CLASS


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(2, 3, width=16, zero_output=False).eval().requires_grad_(False)


X, T, LABELS = torch.linspace(-2, 2, 8).view(4, 2), torch.tensor([0.0, 0.3, 0.6, 1.0]), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_velocity_goes_from_no_class_towards_the_class(field, scale):
    free, towards = field(X, T, torch.full((4,), NO_CLASS)), field(X, T, LABELS)
    assert (free - towards).abs().min() > 1e-4
    expected = (1 - scale) * free + scale * towards
    torch.testing.assert_close(Guided(field, scale)(X, T, LABELS), expected)
    torch.testing.assert_close(guided(field, scale)(X, T, LABELS), expected)


def test_scale_zero_forgets_the_class(field):
    torch.testing.assert_close(guided(field, 0.0)(X, T, LABELS), field(X, T, None))


def test_a_row_that_has_no_class_is_not_guided(field):
    none = torch.full((4,), NO_CLASS)
    torch.testing.assert_close(guided(field, 3.0)(X, T, none), field(X, T, none))


def test_scale_one_is_the_field_itself(field):
    assert guided(field, 1.0) is field
    assert guided(field, 1) is field


def test_both_evaluations_are_one_call_of_twice_the_batch(field):
    calls = []

    def counting(x, t, cond):
        calls.append((len(x), len(t), cond.tolist()))
        return field(x, t, cond)

    velocity = guided(counting, 2.0)
    v = velocity(X, T, LABELS)
    assert v.shape == X.shape
    assert calls == [(8, 8, [0, 1, 2, 0, *[NO_CLASS] * 4])]
    assert velocity.evaluations(0.5) == 2


def test_guidance_without_labels_is_refused(field):
    with pytest.raises(ValueError, match="needs labels"):
        guided(field, 2.0)(X, T)
