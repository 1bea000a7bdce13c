"""Sampling on a GPU: run these first where there is one (`pytest -m gpu`)."""

from functools import partial

import pytest
import torch

from flowimg.fields.guidance import guided
from flowimg.fields.unet import UNetField, new_unet
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import DOPRI5, EULER
from flowimg.flow.times import uniform_grid
from flowimg.machine.precision import autocast
from flowimg.sampling.sampler import Sampler
from flowimg.spaces.pixels import Pixels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture
def field():
    torch.manual_seed(0)
    unet = new_unet(32, 3, num_classes=4, channels=(64, 128), attention=(16,), zero_output=False)
    return UNetField(unet, 4).cuda().eval()


def drawn(field, batch_size, solver=EULER, steps=10, scale=1.0, precision="fp32", interval=(0.0, 1.0)):
    velocity, labels = guided(field, scale, interval), Condition(torch.arange(70) % 4)
    how = partial(autocast, torch.device("cuda"), precision)
    times = uniform_grid(steps)
    return Sampler(velocity, (3, 32, 32), solver, times, "cuda", batch_size, how).draw(range(70), labels).x_1


def test_the_batch_size_changes_no_picture_in_fp32(field):
    assert (drawn(field, 7) - drawn(field, 64)).abs().max() < 1e-5


def test_the_cpu_draws_the_same_pictures(field):
    on_gpu = drawn(field, 35)
    field.cpu()
    labels = Condition(torch.arange(70) % 4)
    on_cpu = Sampler(field, (3, 32, 32), EULER, uniform_grid(10), batch_size=70).draw(range(70), labels)
    assert (on_gpu - on_cpu.x_1).abs().max() < 1e-4


def test_bf16_is_within_a_few_grey_levels(field):
    fp32, bf16 = (Pixels((3, 32, 32)).decode(drawn(field, 64, precision=how)).int() for how in ("fp32", "bf16"))
    assert (fp32 - bf16).abs().float().mean() < 2


def test_dopri5_and_an_interval_of_guidance_run(field):
    assert drawn(field, 70, DOPRI5, 1).isfinite().all()
    assert drawn(field, 70, scale=2.0, interval=(0.2, 0.8)).isfinite().all()
