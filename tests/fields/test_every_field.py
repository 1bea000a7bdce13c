from typing import get_args

import pytest
import torch

from flowimg.build.facts import DataFacts
from flowimg.build.field import FIELDS
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

# options that keep the tests quick; a new kind needs no entry
SMALL = {"width": 32, "depth": 2, "heads": 2}
TINY = {"mlp": {"width": 32, "depth": 2}, "unet": {"channels": [32, 64], "layers": 1}, "dit": SMALL, "jit": SMALL}
SETTINGS = {member.model_fields["kind"].default: member for member in get_args(Config.model_fields["field"].annotation)}
CLASSES = ("zero", "one", "two")


@pytest.fixture(params=FIELDS)
def kind(request):
    return request.param


@pytest.fixture
def conditional(kind):
    """The kind, if it takes classes."""
    if not hasattr(build(kind, CLASSES), "num_classes"):
        pytest.skip(f"{kind} takes no classes")
    return kind


def build(kind, classes=(), **options):
    data = {"kind": SETTINGS[kind].learns}
    config = validate(Config, {"data": data, "field": {"kind": kind, **TINY.get(kind, {}), **options}}, "test")
    torch.manual_seed(0)
    return FIELDS[kind](config.field, DataFacts(shape(kind), classes)).eval()


def shape(kind):
    return (2,) if SETTINGS[kind].learns == "points" else (1, 8, 8)


def states(kind, n=4):
    return torch.randn(n, *shape(kind), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_velocity_has_the_shape_of_the_state(kind, classes):
    for n in (1, 4):
        x, cond = states(kind, n), Condition(torch.zeros(n, dtype=torch.long)) if classes else None
        v = build(kind, classes, zero_output=False)(x, torch.rand(n), cond)
        assert v.shape == x.shape and v.dtype == x.dtype


@torch.no_grad()
def test_velocity_starts_at_exactly_zero_where_asked(kind):
    x, t = states(kind), torch.linspace(0, 1, 4)
    assert (build(kind, zero_output=True)(x, t) == 0).all()
    assert (build(kind, zero_output=False)(x, t) != 0).any()


def test_a_field_that_starts_at_zero_can_leave_it(kind):
    field = build(kind, zero_output=True)
    (field(states(kind), torch.rand(4)) - 1).square().mean().backward()
    assert any((p.grad is not None) and (p.grad != 0).any() for p in field.parameters())


@torch.no_grad()
def test_velocity_depends_on_time_over_the_whole_range(kind):
    field = build(kind, zero_output=False)
    x = states(kind, 1)
    v = torch.stack([field(x, torch.tensor([t])) for t in torch.linspace(0, 1, 11).tolist()])
    assert v.isfinite().all()
    apart = torch.cdist(v.flatten(1), v.flatten(1)) + torch.eye(11)
    assert apart.min() > 1e-5 * v.norm()


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0002, 0.3712, 0.9992])
def test_velocity_tells_nearby_times_apart(kind, t):
    # times a tenth of a diffusers timestep apart: a network that is fed whole numbers would not see the difference
    field = build(kind, zero_output=False)
    x = states(kind, 1)
    assert not torch.equal(field(x, torch.tensor([t])), field(x, torch.tensor([t + 0.0001])))


@torch.no_grad()
def test_every_row_is_computed_from_its_own_state_time_and_label(conditional):
    field = build(conditional, CLASSES, zero_output=False)
    x, t, cond = states(conditional), torch.tensor([0.0, 0.2, 0.7, 1.0]), Condition(torch.tensor([0, 2, NO_CLASS, 1]))
    rows = [field(x[i : i + 1], t[i : i + 1], cond.rows(slice(i, i + 1))) for i in range(4)]
    torch.testing.assert_close(field(x, t, cond), torch.cat(rows), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_none_means_no_class_for_all(conditional):
    field = build(conditional, CLASSES, zero_output=False)
    x, t = states(conditional), torch.rand(4)
    assert torch.equal(field(x, t, None), field(x, t, Condition(torch.full((4,), NO_CLASS))))


@torch.no_grad()
def test_every_class_and_no_class_have_their_own_velocity(conditional):
    field = build(conditional, CLASSES, zero_output=False)
    x, t = states(conditional, 1), torch.tensor([0.4])
    v = torch.cat([field(x, t, Condition(torch.tensor([label]))).flatten(1) for label in (NO_CLASS, 0, 1, 2)])
    assert (torch.cdist(v, v) + torch.eye(4)).min() > 1e-4 * v.norm()


def test_gradient_reaches_the_rows_of_the_classes_seen_alone(conditional):
    field = build(conditional, CLASSES, zero_output=False)
    labels = torch.tensor([0, 2, NO_CLASS, 2])
    field(states(conditional), torch.rand(4), Condition(labels)).square().sum().backward()
    tables = [m for m in field.modules() if isinstance(m, torch.nn.Embedding)]
    assert tables
    for table in tables:
        reached = (table.weight.grad != 0).any(1).nonzero().flatten().tolist()
        # one, which nobody asked for, is left alone; the last is "no class"
        assert reached == [0, 2, len(table.weight) - 1]


@torch.no_grad()
def test_an_unconditional_field_takes_no_class(kind):
    field = build(kind, zero_output=False)
    x, t = states(kind), torch.rand(4)
    assert torch.equal(field(x, t, Condition(torch.tensor([0, 1, 0, NO_CLASS]))), field(x, t))


def test_a_label_that_no_class_has_is_an_error(conditional):
    with pytest.raises(IndexError):
        build(conditional, CLASSES)(states(conditional, 1), torch.rand(1), Condition(torch.tensor([len(CLASSES) + 1])))


@torch.no_grad()
def test_dropout_is_active_in_training_alone(kind):
    if "dropout" not in SETTINGS[kind].model_fields:
        pytest.skip(f"{kind} has no dropout")
    field = build(kind, zero_output=False, dropout=0.5)
    x, t = states(kind), torch.rand(4)
    assert torch.equal(field(x, t), field(x, t))
    field.train()
    assert not torch.equal(field(x, t), field(x, t))


def test_no_state_lies_in_buffers(kind):
    # the moving average and the checkpoints carry parameters alone
    field = build(kind, CLASSES)
    assert set(field.state_dict()) == {name for name, _ in field.named_parameters()}


@pytest.mark.parametrize("zero_output", [True, False])
def test_every_parameter_that_is_used_gets_a_finite_gradient(kind, zero_output):
    field = build(kind, CLASSES, zero_output=zero_output)
    labels = Condition(torch.tensor([0, 1, 2, NO_CLASS]))
    field(states(kind), torch.tensor([0.0, 0.5, 0.5, 1.0]), labels).sum().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name  # DDP would wait for it
        assert parameter.grad.isfinite().all(), name
