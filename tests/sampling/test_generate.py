"""From seeds to samples: noise, batches, evaluations and grey levels, against diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from flowimg.fields.guidance import guided
from flowimg.fields.mlp import MLPField
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import EULER, HEUN, MIDPOINT, RK4
from flowimg.flow.times import uniform_grid
from flowimg.sampling.sampler import Sampler, arc, noise
from flowimg.spaces.pixels import Pixels

SEEDS = [0, 1, 7, 3, 2**31, 2**32 - 1, 2**20, 5]


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 16, 16)])
def test_the_noise_of_a_seed_is_that_of_diffusers(shape):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    assert torch.equal(noise(SEEDS, shape), randn_tensor((len(SEEDS), *shape), generator=generators))


def test_the_noise_of_a_seed_is_alone_with_it():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    rows = noise(SEEDS, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    for row, seed in zip(rows, SEEDS, strict=True):
        assert torch.equal(row, noise([seed], (1, 8, 8))[0])


def drawn(velocity, seeds, batch_size, labels=None, solver=EULER, steps=5):
    sampler = Sampler(velocity, (2,), solver, uniform_grid(steps), batch_size=batch_size)
    return list(sampler.samples(seeds, Condition(labels)))


@pytest.fixture
def field():
    torch.manual_seed(0)
    return MLPField(2, num_classes=3, width=16, depth=2, zero_output=False).eval()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 22, 1000])
def test_the_batch_size_changes_no_sample(batch_size, field):
    seeds, labels = range(5, 27), torch.arange(22) % 3
    batches = drawn(field, seeds, batch_size, labels)
    assert [len(batch.x_1) for batch in batches] == [min(batch_size, 22 - start) for start in range(0, 22, batch_size)]
    whole = torch.cat([batch.x_1 for batch in batches])
    for i in (0, 3, 4, 21):
        alone = drawn(field, [seeds[i]], 1, labels[i : i + 1])[0].x_1[0]
        assert torch.allclose(whole[i], alone, atol=1e-6)
    # its seed and its label decide a sample, nothing else
    assert whole.unique(dim=0).shape == whole.shape
    assert (drawn(field, seeds, batch_size, (labels + 1) % 3)[0].x_1 != batches[0].x_1).all()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("of the GPU"), MemoryError(), RuntimeError("out of memory")])
def test_a_batch_that_memory_has_no_room_for_is_halved_and_the_samples_are_the_same(error, field):
    seeds, labels, asked = range(3, 73), torch.arange(70) % 3, []

    def small(x, t, cond):
        if t[0] == 0:
            asked.append(len(x))
        if len(x) > 20 and t[0] > 0.5:
            raise error
        return field(x, t, cond)

    batches = drawn(small, seeds, 64, labels)
    assert asked == [64, 32, *[16] * 4, 6] and [len(batch.x_1) for batch in batches] == [*[16] * 4, 6]
    (whole,) = drawn(field, seeds, 70, labels)
    assert torch.allclose(torch.cat([batch.x_1 for batch in batches]), whole.x_1, atol=1e-6)


@pytest.mark.parametrize(("said", "times"), [("out of memory", 3), ("another", 1)])
def test_what_does_not_fit_alone_and_other_errors_end_it(said, times):
    asked = []

    def fails(x, t, cond):
        asked.append(len(x))
        raise RuntimeError(said)

    with pytest.raises(RuntimeError, match=said):
        drawn(fails, range(4), 4)
    assert asked == [4, 2, 1][:times]


def test_samples_are_the_noise_carried_by_the_velocity_from_0_to_1():
    def drift(x, t, cond):
        return torch.full_like(x, 3.0)

    (batch,) = drawn(drift, SEEDS, 100)
    assert torch.allclose(batch.x_1, noise(SEEDS, (2,)) + 3, atol=1e-6)

    def accelerating(x, t, cond):
        return 2 * t[:, None].expand_as(x)

    (batch,) = drawn(accelerating, SEEDS, 100, solver=MIDPOINT, steps=1)  # exact: x_0 + t^2 at 1; from 1 to 0, x_0 - 1
    assert torch.allclose(batch.x_1, noise(SEEDS, (2,)) + 1, atol=1e-6)


@pytest.mark.parametrize(("solver", "a_step"), [(EULER, 1), (MIDPOINT, 2), (HEUN, 2), (RK4, 4)])
@pytest.mark.parametrize("scale", [1, 2.5])
def test_nfe_is_what_the_network_was_asked_for_each_sample(solver, a_step, scale, field):
    rows = []
    field.register_forward_hook(lambda module, given, v: rows.append(len(v)))
    batches = drawn(guided(field, scale), range(6), 4, torch.arange(6) % 3, solver, steps=3)
    assert [batch.nfe for batch in batches] == [3 * a_step * (2 if scale != 1 else 1)] * 2
    assert sum(rows) == sum(batch.nfe * len(batch.x_1) for batch in batches)


def test_sampling_builds_no_graph():
    field = nn.Linear(2, 2)
    (batch,) = drawn(lambda x, t, cond: field(x), range(3), 10)
    assert not batch.x_1.requires_grad


def test_grey_levels_are_those_of_a_diffusers_pipeline():
    x = torch.linspace(-1.3, 1.3, 3 * 64 * 64).reshape(1, 3, 64, 64)
    # every boundary between two grey levels, from both sides
    edges = (torch.arange(255) + 0.5) / 127.5 - 1
    x = torch.cat([x.flatten(), edges, edges.nextafter(torch.tensor(2.0)), edges.nextafter(torch.tensor(-2.0))])
    x = x[: 3 * 71 * 61].reshape(1, 3, 71, 61)
    # the last lines of DDPMPipeline.__call__
    image = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    (wanted,) = DDPMPipeline.numpy_to_pil(image)
    assert (Pixels((1, 1, 1)).decode(x)[0].permute(1, 2, 0).numpy() == np.array(wanted)).all()


def test_grey_levels_go_from_black_to_white_and_no_further():
    x = torch.tensor([-1.0, 1.0, -5.0, 5.0, 0.0, float("inf"), -float("inf")])
    assert Pixels((1, 1, 1)).decode(x).tolist() == [0, 255, 0, 255, 128, 255, 0]
    assert Pixels((1, 1, 1)).decode(x).dtype == torch.uint8


def test_a_picture_of_grey_levels_comes_back_as_it_was():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(Pixels((1, 1, 1)).decode(pixels.float() / 127.5 - 1), pixels)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_between_two_noises_lie_noises_as_long_as_they_are(count):
    a, b = noise([0, 1], (3, 16, 16))
    frames = arc(a, b, count)
    assert frames.shape == (count, 3, 16, 16) and frames.dtype == torch.float32
    torch.testing.assert_close(frames[0], a, atol=1e-6, rtol=0)
    torch.testing.assert_close(frames[-1], b, atol=1e-6, rtol=0)
    ends = sorted([a.norm().item(), b.norm().item()])
    lengths = frames.flatten(1).norm(dim=1)
    assert (lengths > 0.99 * ends[0]).all() and (lengths < 1.01 * ends[1]).all()
    # evenly: each frame as far from the next as any other, by angle
    rows = frames.flatten(1).double()
    cosines = torch.cosine_similarity(rows[:-1], rows[1:])
    torch.testing.assert_close(torch.arccos(cosines), torch.arccos(cosines)[:1].expand(count - 1), atol=0.02, rtol=0)


def test_half_way_between_orthogonal_noises_is_their_sum_over_the_root_of_two():
    a, b = noise([0, 1], (1, 8, 8))
    b = b - (a * b).sum() / (a * a).sum() * a
    b = b * a.norm() / b.norm()
    torch.testing.assert_close(arc(a, b, 3)[1], (a + b) / 2**0.5, atol=1e-6, rtol=0)
    # a third of the right angle: 30 degrees
    torch.testing.assert_close(arc(a, b, 4)[1], 0.75**0.5 * a + 0.5 * b, atol=1e-6, rtol=0)
