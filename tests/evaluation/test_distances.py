"""Distances against closed forms of Gaussians and torch-fidelity on fixed features, and what noise does to them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from flowimg.evaluation.distances import Moments, frechet, kid, merge, moments, neighbourhoods


def features(seed, count, dim, scale=1.0, shift=0.0):
    """Correlated, skewed features, as a network's are."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(9)) / dim**0.5
    return (torch.randn(count, dim, generator=g) @ mix * scale + shift).relu()


def gaussian(mean, deviation):
    """The moments of a Gaussian, as they are."""
    deviation = torch.as_tensor(deviation, dtype=torch.float64)
    return Moments(10**9, torch.as_tensor(mean, dtype=torch.float64), torch.diag(deviation**2))


def test_moments_are_numpys():
    x = features(0, 50, 7)
    found = moments(x)
    assert found.number == 50 and found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy().T), rtol=1e-12)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 40), min_size=2, max_size=6), shift=st.floats(-1e3, 1e3))
def test_moments_may_be_taken_in_parts(cuts, shift):
    x = features(1, sum(cuts), 5) + shift
    parts = [moments(part) for part in x.split(cuts)]
    found = parts[0]
    for part in parts[1:]:
        found = merge(found, part)
    whole = moments(x)
    assert found.number == whole.number
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_frechet_of_gaussians_on_common_axes_is_the_closed_form():
    # sum (m_a - m_b)^2 + (s_a - s_b)^2
    a, b = gaussian([1.0, 2.0, 3.0], [1.0, 2.0, 0.5]), gaussian([1.0, 0.0, 3.5], [3.0, 2.0, 0.25])
    assert frechet(a, b) == pytest.approx(4 + 0.25 + 4 + 0.0625, rel=1e-12)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_of_correlated_gaussians_is_that_of_matrix_roots():
    a, b = moments(features(0, 400, 12)), moments(features(1, 300, 12, 1.3, 0.1))
    root = sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    wanted = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    assert frechet(a, b) == pytest.approx(float(wanted), rel=1e-9)
    assert frechet(b, a) == pytest.approx(float(wanted), rel=1e-9)


def test_fewer_samples_than_features_give_a_real_distance():
    few, many = moments(features(0, 20, 64)), moments(features(1, 500, 64))
    assert math.isfinite(frechet(few, many)) and frechet(few, many) > 0
    assert frechet(few, few) == pytest.approx(0, abs=1e-5)


def test_kid_is_unbiased_and_zero_on_average_for_one_distribution():
    # without the diagonals left out it would be 8 / size or so
    found = [kid(features(s, 60, 16), features(s + 1000, 60, 16), subsets=1)[0] for s in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


def test_kid_of_one_dimension_is_the_sum_by_hand():
    x, y = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[0.5], [3.0], [2.0]])
    k = lambda a, b: (a * b + 1) ** 3  # noqa: E731
    xs, ys = x[:, 0].tolist(), y[:, 0].tolist()
    own = sum(k(s[i], s[j]) for s in (xs, ys) for i in range(3) for j in range(3) if i != j) / 6
    wanted = own - 2 * sum(k(a, b) for a in xs for b in ys) / 9
    assert kid(x, y, subsets=1) == (pytest.approx(wanted, rel=1e-12), 0.0)


def test_kid_takes_other_subsets_for_another_seed_and_the_same_for_the_same():
    x, y = features(0, 300, 8), features(1, 300, 8, 1.2)
    assert kid(x, y, 10, 100) == kid(x, y, 10, 100)
    assert kid(x, y, 10, 100, seed=1)[0] != kid(x, y, 10, 100)[0]
    assert kid(x, y, 10, 100)[1] > 0


def neighbourhoods_by_hand(x, y, k):
    xx, yy, xy = cdist(x, x), cdist(y, y), cdist(x, y)
    rx, ry = np.sort(xx, 1)[:, k], np.sort(yy, 1)[:, k]
    # the authors of density and coverage count what is nearer than the radius (prdc.compute_prdc), and those of
    # precision and recall what is no farther, as torch-fidelity does
    inside = xy < rx[:, None]
    density, coverage = inside.sum(0).mean() / k, inside.any(1).mean()
    return (xy <= rx[:, None]).any(0).mean(), (xy <= ry[None]).any(1).mean(), density, coverage


@pytest.mark.parametrize("sizes", [(40, 70), (1100, 300), (300, 1100)])
def test_neighbourhoods_are_those_of_all_distances(sizes):
    x, y = features(0, sizes[0], 6), features(1, sizes[1], 6, 1.2, 0.1)
    wanted = neighbourhoods_by_hand(x.double().numpy(), y.double().numpy(), 3)
    assert tuple(neighbourhoods(x, y, 3)) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("count", [8, 300, 1100])
def test_all_four_are_1_for_the_data_themselves(count, k):
    """The density was 1.2, as the k-th neighbour was counted besides the datum itself."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    assert tuple(neighbourhoods(x, x.clone(), k)) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_what_lies_on_the_edge_counts_for_precision_and_recall_only(k):
    """On a grid most distances are equal to others, and exact."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 4, (count, 2), generator=g).double() for count in (40, 30))
    assert tuple(neighbourhoods(x, y, k)) == neighbourhoods_by_hand(x.numpy(), y.numpy(), k)
    left, right = torch.arange(8.0)[:, None], torch.arange(8.0)[:, None] + 8  # only 7 and 8 are neighbours
    edge = neighbourhoods(left, right, 1)
    assert edge == (1 / 8, 1 / 8, 0.0, 0.0) and neighbourhoods(left, right - 0.5, 1)[2:] == (1 / 8, 1 / 8)


def test_neighbourhoods_tell_missing_modes_from_bad_samples():
    left, right = features(0, 200, 4) - 50, features(1, 200, 4) + 50
    one_mode = neighbourhoods(torch.cat([left, right]), features(2, 200, 4) - 50)
    assert one_mode.precision > 0.9 and one_mode.recall < 0.55 and one_mode.coverage < 0.55
    half_bad = neighbourhoods(left, torch.cat([features(2, 200, 4) - 50, features(3, 200, 4) + 500]))
    assert half_bad.precision < 0.55 and half_bad.recall > 0.9 and half_bad.coverage > 0.9


def test_more_noise_makes_every_distance_worse():
    data, samples = features(0, 800, 16), features(1, 800, 16)
    noise = torch.randn(800, 16, generator=torch.Generator().manual_seed(3))
    found = []
    for level in (0.0, 0.3, 1.0, 3.0):
        x = samples + level * noise
        near = neighbourhoods(data, x)
        found.append((frechet(moments(data), moments(x)), kid(data, x, 5)[0], -near.precision, -near.coverage))
    for scores in zip(*found, strict=True):
        assert list(scores) == sorted(scores) and scores[0] < scores[-1]


def test_torch_fidelity_finds_the_same():
    """On fixed features, with KID over the whole set so that no choice of subsets differs."""
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    data, samples = features(0, 500, 32).double(), features(1, 500, 32, 1.2, 0.05).double()
    statistics = [fid.fid_features_to_statistics(part) for part in (data, samples)]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet(moments(data), moments(samples)) == pytest.approx(theirs, rel=1e-8)
    theirs = kid_features_to_metric(data, samples, kid_subsets=1, kid_subset_size=500, verbose=False)
    assert kid(data, samples, 1)[0] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    theirs = prc_features_to_metric(samples, data, prc_neighborhood=3, prc_batch_size=100, verbose=False)
    ours = neighbourhoods(data, samples, 3)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)
