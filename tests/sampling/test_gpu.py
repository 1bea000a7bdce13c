"""Sampling on a GPU: run these first where there is one (`pytest -m gpu`)."""

import pytest
import torch

from flowimg.fields.guidance import guided
from flowimg.fields.unet import UNetField, new_unet
from flowimg.flow.solvers import DOPRI5, EULER
from flowimg.flow.times import uniform_grid
from flowimg.machine.precision import autocast
from flowimg.sampling.sampler import generate, to_uint8

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture
def field():
    torch.manual_seed(0)
    unet = new_unet(32, 3, num_classes=4, channels=(64, 128), attention=(16,), zero_output=False)
    return UNetField(unet, 4).cuda().eval()


def drawn(field, batch_size, solver=EULER, steps=10, scale=1.0, precision="fp32", interval=(0.0, 1.0)):
    velocity, labels = guided(field, scale, interval), torch.arange(70) % 4
    with autocast(torch.device("cuda"), precision):
        times = uniform_grid(steps)
        return torch.cat(
            [
                b.x_1.float()
                for b in generate(velocity, range(70), (3, 32, 32), times, solver, labels, batch_size, "cuda")
            ]
        )


def test_the_batch_size_changes_no_picture_in_fp32(field):
    assert (drawn(field, 7) - drawn(field, 64)).abs().max() < 1e-5


def test_the_cpu_draws_the_same_pictures(field):
    on_gpu = drawn(field, 35)
    field.cpu()
    labels = torch.arange(70) % 4
    (on_cpu,) = generate(field, range(70), (3, 32, 32), uniform_grid(10), EULER, labels, 70)
    assert (on_gpu - on_cpu.x_1).abs().max() < 1e-4


def test_bf16_is_within_a_few_grey_levels(field):
    levels = (to_uint8(drawn(field, 64)).int() - to_uint8(drawn(field, 64, precision="bf16")).int()).abs()
    assert levels.float().mean() < 2


def test_dopri5_and_an_interval_of_guidance_run(field):
    assert drawn(field, 70, DOPRI5, 1).isfinite().all()
    assert drawn(field, 70, scale=2.0, interval=(0.2, 0.8)).isfinite().all()
