"""Scores of pictures, on samples whose scores are known: the data themselves, class means, wrong labels."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from sklearn.datasets import load_digits

from flowimg.evaluation.images import nearest_distance, score_images, within_class_spread


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float()[:, None] / 8 - 1, torch.from_numpy(bunch.target).long()


def test_the_data_score_as_the_data(digits):
    pictures, labels = digits
    scores = score_images(pictures, labels, pictures, labels, pictures[:9], labels[:9])
    assert scores.agreement > 0.99
    assert scores.spread == pytest.approx(1)
    assert scores.nearest == 0


def test_pictures_the_classifier_never_saw_score_nearly_as_the_data(digits):
    pictures, labels = digits
    scores = score_images(pictures[1::2], labels[1::2], pictures[::2], labels[::2], pictures[1::2], labels[1::2])
    assert 0.96 < scores.agreement < 1
    assert scores.judge == scores.agreement
    assert scores.spread == pytest.approx(1, abs=0.05)
    assert scores.nearest == pytest.approx(1, abs=0.05)


def test_class_means_agree_and_do_not_vary(digits):
    pictures, labels = digits
    means = torch.stack([pictures[labels == label].mean(0) for label in range(10)])
    asked = torch.arange(10).repeat(5)
    scores = score_images(means[asked], asked, pictures, labels, pictures[:9], labels[:9])
    assert scores.agreement > 0.85
    assert scores.spread == pytest.approx(0, abs=1e-6)
    assert scores.nearest > 0.5


def test_pictures_with_shuffled_labels_agree_by_chance_and_vary_too_much(digits):
    pictures, labels = digits
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    scores = score_images(pictures, shuffled, pictures, labels, pictures[:9], labels[:9])
    assert scores.agreement == pytest.approx(0.1, abs=0.03)
    assert scores.spread > 1.1
    assert scores.nearest == 0


def test_copies_with_noise_are_near_and_noise_is_far(digits):
    pictures, labels = digits
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    near = score_images(pictures[:300] + 0.01 * noise, labels[:300], pictures, labels, pictures[:9], labels[:9]).nearest
    far = score_images(noise, labels[:300], pictures, labels, pictures[:9], labels[:9]).nearest
    assert 0 < near < 0.1
    assert far > 2


def test_spread_is_the_root_of_the_summed_variances_within_each_class():
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 5, 8], 40)
    x = rng.normal(size=(120, 6)) * labels[:, None] + 100 * labels[:, None]  # far apart, which must not count
    wanted = np.mean([np.sqrt(np.trace(np.cov(x[labels == label].T))) for label in (3, 5, 8)])
    assert within_class_spread(torch.from_numpy(x), torch.from_numpy(labels)) == pytest.approx(wanted)


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1100])
def test_nearest_distance_is_that_of_a_tree(count):
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(count, 4)), rng.normal(size=(700, 4))
    wanted = cKDTree(others).query(x)[0].mean()
    assert nearest_distance(torch.from_numpy(x), torch.from_numpy(others)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [2, 512, 1100])
def test_nearest_distance_within_a_set_passes_over_the_row_itself_but_not_over_its_copies(count):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4))
    wanted = cKDTree(x).query(x, k=2)[0][:, 1].mean()
    assert nearest_distance(torch.from_numpy(x), torch.from_numpy(x), torch.arange(count)) == pytest.approx(
        wanted, rel=1e-9
    )
    twice = torch.from_numpy(np.concatenate([x, x]))
    assert nearest_distance(twice, twice, torch.arange(2 * count)) == 0
