import math

import pytest
import torch
from torch import nn

from flowimg.fields.mlp import MLPField, class_rows
from flowimg.flow.condition import NO_CLASS, Condition


def inputs(field, x, t):
    seen = []
    hook = field.enter.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    field(x, t)
    hook.remove()
    return sorted(seen[0][0].tolist())


def test_network_sees_the_point_the_time_and_their_waves():
    field = MLPField(2, width=8, depth=1, x_frequencies=2, t_frequencies=3, x_range=4.0)
    x, t = (1.0, -3.0), 0.3
    waves_x = [f(math.pi * k * value / 4) for f in (math.sin, math.cos) for k in (1, 2) for value in x]
    waves_t = [f(2 * math.pi * k * t) for f in (math.sin, math.cos) for k in (1, 2, 3)]
    expected = sorted([*x, t, *waves_x, *waves_t])
    assert inputs(field, torch.tensor([x]), torch.tensor([t])) == pytest.approx(expected, abs=1e-6)


def test_network_sees_only_point_and_time_without_frequencies():
    assert inputs(MLPField(2, width=8), torch.tensor([[1.0, -3.0]]), torch.tensor([0.25])) == [-3.0, 0.25, 1.0]


def test_waves_repeat_every_two_ranges():
    field = MLPField(2, width=8, x_frequencies=3, x_range=4.0, zero_output=False)
    with torch.no_grad():
        field.enter.weight[:, :2] = 0  # all that does not repeat
    t, x = torch.tensor([0.3]), torch.tensor([[0.7, -1.1]])
    torch.testing.assert_close(field(x + 8.0, t), field(x, t), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(field(x + 4.0, t), field(x, t), atol=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_counts_the_hidden_layers(depth):
    linear = [m for m in MLPField(2, width=16, depth=depth).modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [16] * depth + [2]


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_points_of_any_dimension(dim):
    field = MLPField(dim, width=8, x_frequencies=2, t_frequencies=2, zero_output=False)
    assert field(torch.randn(3, dim), torch.rand(3)).shape == (3, dim)


def test_class_rows_put_no_class_last():
    cpu = torch.device("cpu")
    assert class_rows(Condition(torch.tensor([0, NO_CLASS, 4])), 3, 5, cpu).tolist() == [0, 5, 4]
    assert class_rows(None, 2, 5, cpu).tolist() == class_rows(Condition(), 2, 5, cpu).tolist() == [5, 5]


def test_whole_field_runs_in_float64():
    field = MLPField(2, 3, width=8, x_frequencies=2, t_frequencies=1, zero_output=False).double()
    v = field(torch.randn(3, 2).double(), torch.rand(3).double(), Condition(torch.tensor([0, 1, NO_CLASS])))
    assert v.dtype == torch.float64
