import pytest
import torch

from flowimg.build.sampler import SOLVERS
from flowimg.fields.guidance import Guide, Guided, guided, unguided
from flowimg.fields.mlp import MLPField
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.flow.solvers import EULER, integrate
from flowimg.flow.times import uniform_grid


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(2, 3, width=16, zero_output=False).eval().requires_grad_(False)


X, T = torch.linspace(-2, 2, 8).view(4, 2), torch.tensor([0.0, 0.3, 0.6, 1.0])
LABELS = Condition(torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guided_velocity_goes_from_no_class_towards_the_class(field, scale):
    free, towards = field(X, T, Condition(torch.full((4,), NO_CLASS))), field(X, T, LABELS)
    assert (free - towards).abs().min() > 1e-4
    expected = (1 - scale) * free + scale * towards
    torch.testing.assert_close(Guided(field, scale)(X, T, LABELS), expected)
    torch.testing.assert_close(guided(field, scale)(X, T, LABELS), expected)


def test_scale_zero_forgets_the_class(field):
    torch.testing.assert_close(guided(field, 0.0)(X, T, LABELS), field(X, T, None))


def test_a_row_that_has_no_class_is_not_guided(field):
    none = Condition(torch.full((4,), NO_CLASS))
    torch.testing.assert_close(guided(field, 3.0)(X, T, none), field(X, T, none))


def test_scale_one_is_the_field_itself(field):
    assert guided(field, 1.0) is field
    assert guided(field, 1) is field


def test_both_evaluations_are_one_call_of_twice_the_batch(field):
    calls = []

    def counting(x, t, cond):
        calls.append((len(x), len(t), cond.label.tolist()))
        return field(x, t, cond)

    velocity = guided(counting, 2.0)
    v = velocity(X, T, LABELS)
    assert v.shape == X.shape
    assert calls == [(8, 8, [0, 1, 2, 0, *[NO_CLASS] * 4])]
    assert velocity.evaluations(0.5) == 2


def test_guidance_without_labels_is_refused(field):
    with pytest.raises(ValueError, match="needs labels"):
        guided(field, 2.0)(X, T)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("interval", [(0.2, 0.8), (0.0, 0.5), (0.5, 1.0), (0.3, 0.4)])
def test_outside_its_interval_guidance_is_the_plain_field_at_half_the_cost(field, interval, t):
    rows = []
    field.register_forward_hook(lambda module, given, v: rows.append(len(v)))
    velocity, times = guided(field, 3.0, interval), torch.full((4,), t)
    v = velocity(X, times, LABELS)
    inside = interval[0] <= t <= interval[1]
    assert rows == [8 if inside else 4]
    assert velocity.evaluations(t) == (2 if inside else 1)
    free, towards = field(X, times, None), field(X, times, LABELS)
    torch.testing.assert_close(v, free + 3 * (towards - free) if inside else towards)


def test_the_edges_of_the_interval_are_inside_however_they_are_rounded(field):
    # a solver's time is float64, the field's float32, and a grid's 0.3 is 3 * 0.1
    for edges in ((0.1, 0.7), (0.3, 0.6)):
        velocity = guided(field, 3.0, edges)
        for t in (*edges, *(torch.tensor(edges).tolist()), 3 * 0.1, 7 * 0.1, 0.1 + 0.2):
            inside = edges[0] - 1e-9 <= t <= edges[1] + 1e-7 or round(t, 6) in edges
            assert velocity.evaluations(t) == (2 if inside else 1), t


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "interval", [(0.0, 1.0), (0.2, 0.6), (0.3, 0.7), (0.0, 0.1), (0.9, 1.0), (1 / 3, 2 / 3), (0.51, 0.52)]
)
def test_evaluations_counted_are_those_that_the_network_saw(field, name, interval):
    rows = []
    field.register_forward_hook(lambda module, given, v: rows.append(len(v)))
    velocity = guided(field, 2.0, interval)
    with torch.no_grad():
        for steps in (3, 10):
            rows.clear()
            flow = integrate(velocity, X, uniform_grid(steps), SOLVERS[name], LABELS, noise=lambda n, x: 0.1 * X)
            assert flow.nfe == sum(rows) / len(X)


def test_evaluations_of_euler_with_an_interval(field):
    # times 0, 0.1, ..., 0.9; guided at 0.3, 0.4, 0.5, 0.6 and 0.7
    assert integrate(guided(field, 2.0, (0.3, 0.7)), X, uniform_grid(10), EULER, LABELS).nfe == 15
    assert integrate(guided(field, 2.0), X, uniform_grid(10), EULER, LABELS).nfe == 20
    assert integrate(guided(field, 1.0, (0.3, 0.7)), X, uniform_grid(10), EULER, LABELS).nfe == 10


def test_what_a_field_is_told_of_an_augmentation_goes_with_both_halves():
    cond = Condition(torch.tensor([3, 5]), torch.randn(2, 9))

    def field(x, t, told):
        assert told.label.tolist() == [3, 5, NO_CLASS, NO_CLASS]
        assert torch.equal(told.augmentation, torch.cat([cond.augmentation, cond.augmentation]))
        return told.label[:, None] + told.augmentation[:, :1]

    v = Guided(field, 3.0)(torch.zeros(2, 2), torch.zeros(2), cond)
    torch.testing.assert_close(v, NO_CLASS + 3.0 * (cond.label[:, None] - NO_CLASS) + cond.augmentation[:, :1])
    with pytest.raises(ValueError, match="needs labels"):
        Guided(field, 3.0)(torch.zeros(2, 2), torch.zeros(2), Condition(None, cond.augmentation))


# --- autoguidance ----------------------------------------------------------------------------------------------------


@pytest.fixture
def worse():
    torch.manual_seed(1)
    return MLPField(2, 3, width=8, zero_output=False).eval().requires_grad_(False)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_autoguidance_goes_away_from_its_guide(field, worse, w):
    main, bad = field(X, T, LABELS), worse(X, T, LABELS)
    assert (main - bad).abs().min() > 1e-4
    velocity = guided(field, 1.0, guide=Guide(worse, w))
    torch.testing.assert_close(velocity(X, T, LABELS), bad + w * (main - bad))
    assert velocity is field if w == 1 else velocity.evaluations(0.5) == 2


def test_autoguidance_needs_no_class(field, worse):
    v = guided(field, 1.0, guide=Guide(worse, 3.0))(X, T)
    torch.testing.assert_close(v, 3 * field(X, T) - 2 * worse(X, T))


def test_both_kinds_together_add_what_each_adds(field, worse):
    free, towards, bad = field(X, T), field(X, T, LABELS), worse(X, T, LABELS)
    v = guided(field, 2.0, guide=Guide(worse, 1.5))(X, T, LABELS)
    torch.testing.assert_close(v, towards + (towards - free) + 0.5 * (towards - bad))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_evaluations_of_the_guide_are_counted_inside_its_own_interval(field, worse, name, scale):
    rows = []
    for network in (field, worse):
        network.register_forward_hook(lambda module, given, v: rows.append(len(v)))
    velocity = guided(field, scale, (0.0, 0.5), Guide(worse, 2.0, (0.3, 0.7)))
    flow = integrate(velocity, X, uniform_grid(10), SOLVERS[name], LABELS, noise=lambda n, x: 0.1 * X)
    assert flow.nfe == sum(rows) / len(X)
    # 0, 0.1 ... 0.9: six of them guided towards the class, five away from the guide
    if name == "euler":
        assert flow.nfe == 10 + 5 + (6 if scale == 2 else 0)
    assert unguided(velocity) is field and unguided(field) is field
