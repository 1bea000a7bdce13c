"""The blocks for a CPU in bfloat16, against the stock ones and against group norm in float64."""

import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowimg.fields.cpu import norm
from flowimg.fields.cpu.blocks import QuickBlock, quicken
from flowimg.fields.cpu.norm import Norm
from flowimg.fields.unet import UNetField, new_unet

STEP = 2.0**-8
"""Of bfloat16, relative."""

COMPILES = sys.platform == "linux" and (shutil.which("cc") or shutil.which("gcc"))
needs_compiler = pytest.mark.skipif(not COMPILES, reason="no C compiler")


def far(a: Tensor | None, b: Tensor | None) -> float:
    """Distance of two, relative to the second."""
    assert a is not None
    assert b is not None
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm())


@needs_compiler
@settings(deadline=None, max_examples=30)
@given(
    images=st.integers(1, 5), side=st.sampled_from([2, 3, 8]), groups=st.sampled_from([1, 2, 32]),
    wide=st.integers(2, 5), silu=st.booleans(), shifted=st.booleans(), mean=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_norm_is_group_norm_in_float64(
    images: int, side: int, groups: int, wide: int, silu: bool, shifted: bool, mean: float, seed: int
) -> None:
    torch.manual_seed(seed)
    channels = groups * wide
    x = (torch.randn(images, channels, side, side) + mean).bfloat16().requires_grad_()
    e = torch.randn(images, channels).requires_grad_() if shifted else None
    weight, bias = (torch.randn(channels).requires_grad_() for _ in range(2))
    dy = torch.randn_like(x)
    y = Norm.apply(x, e, weight, bias, groups, 1e-5, silu)
    y.backward(dy)

    exact = [None if part is None else part.detach().double().requires_grad_() for part in (x, e, weight, bias)]
    whole = exact[0] if exact[1] is None else exact[0] + exact[1][:, :, None, None]  # type: ignore[operator]
    wanted = F.group_norm(whole, groups, exact[2], exact[3], 1e-5)  # type: ignore[arg-type]
    wanted = F.silu(wanted) if silu else wanted
    wanted.backward(dy.double())

    assert far(y, wanted) < STEP
    # group norm takes most of a gradient out again where a group is small: what is left is as exact as its terms were
    spread = whole.detach().unflatten(1, (groups, wide)).var((2, 3, 4), unbiased=False)
    steep = ((spread + 1e-5) ** -0.5).repeat_interleave(wide, 1)[:, :, None, None]
    terms = 1.1 * steep * exact[2].detach().abs()[None, :, None, None] * dy.double().abs()  # type: ignore[union-attr]
    scales = (terms.norm(), terms.sum((2, 3)).norm(), 0.0, 0.0)
    for part, truth, scale in zip((x, e, weight, bias), exact, scales, strict=True):
        if part is not None:
            assert truth is not None
            assert truth.grad is not None
            error = (part.grad.double() - truth.grad).norm()  # type: ignore[union-attr]
            assert error <= STEP * max(float(scale), float(truth.grad.norm())) + 1e-5


@needs_compiler
def test_what_is_no_number_stays_none() -> None:
    x = torch.randn(2, 32, 4, 4).bfloat16()
    x[1, 3, 0, 0] = float("nan")
    for silu in (False, True):
        y = Norm.apply(x, None, torch.ones(32), torch.zeros(32), 1, 1e-5, silu)
        assert y[0].isfinite().all()
        assert y[1].isnan().all()


def nets(**how: object) -> tuple[UNet2DModel, UNet2DModel]:
    """A stock network, and the same in quick blocks; grey 16 x 16."""
    torch.manual_seed(0)
    quicker = new_unet(16, 1, 3, channels=(32, 64), zero_output=False, **how)  # type: ignore[arg-type]
    stock = UNet2DModel.from_config(quicker.config)
    stock.load_state_dict(quicker.state_dict())
    return stock, quicken(quicker)


@needs_compiler
@pytest.mark.parametrize("how", [{}, {"attention": [8]}, {"scale_shift": True}, {"layers": 1}])
def test_a_network_is_as_near_to_float32_as_the_stock_one(how: dict[str, object]) -> None:
    x, t, labels = torch.randn(4, 1, 16, 16), 1000 * torch.rand(4), torch.randint(0, 4, (4,))
    found = []
    for net, fast in (*((net, True) for net in nets(**how)), (nets(**how)[0], False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            out = net(x, t, class_labels=labels).sample
        out.float().square().mean().backward()
        grads = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])  # type: ignore[union-attr]
        found.append((out.double(), grads.double()))
    stock, quicker, truth = found
    assert any(isinstance(module, QuickBlock) for module in nets(**how)[1].modules())
    for ours, theirs, exact in zip(quicker, stock, truth, strict=True):
        assert far(ours, exact) < 1.2 * far(theirs, exact)
    assert not torch.equal(stock[0], quicker[0])  # or what was compared is the stock network twice


def test_in_float32_it_is_the_stock_network() -> None:
    stock, quicker = nets()
    x, t, labels = torch.randn(2, 1, 16, 16), 1000 * torch.rand(2), torch.tensor([0, 3])
    assert torch.equal(stock(x, t, class_labels=labels).sample, quicker(x, t, class_labels=labels).sample)


def test_names_of_weights_are_those_of_the_stock_network() -> None:
    stock, quicker = nets()
    assert list(stock.state_dict()) == list(quicker.state_dict())


def test_without_a_compiler_it_is_the_stock_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "_library", None)  # as in a process that has not compiled
    monkeypatch.setattr(shutil, "which", lambda name: None)
    stock, quicker = nets()
    x, t, labels = torch.randn(2, 1, 16, 16), torch.rand(2), torch.tensor([0, 3])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stock(x, t, class_labels=labels).sample, quicker(x, t, class_labels=labels).sample)
    assert norm.library().functions() is None


@needs_compiler
def test_the_field_uses_them() -> None:
    field = UNetField(new_unet(16, 1, channels=(32, 64)))
    assert any(isinstance(module, QuickBlock) for module in field.modules())
