"""Spread, copies and agreement, on samples whose scores are known: the data themselves, class means, wrong labels."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from sklearn.datasets import load_digits

from flowimg.evaluation import images
from flowimg.evaluation.images import copying, nearest, within_class_spread
from flowimg.fields.classifier import agreement, train_classifier
from flowimg.spaces.pixels import Pixels


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float()[:, None] / 8 - 1, torch.from_numpy(bunch.target).long()


@pytest.fixture(scope="module")
def judge(digits):
    """A classifier that saw every second digit."""
    return train_classifier(digits[0][::2], digits[1][::2], 10, lambda x: x)


def copied(samples, data):
    return copying(nearest(samples.flatten(1), data.flatten(1)), data.flatten(1))


def test_the_data_are_copies_of_themselves_and_others_are_not(digits):
    pictures, _ = digits
    assert copied(pictures[:500], pictures) == 0
    assert copied(pictures[1::2], pictures[::2]) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_pictures_the_judge_never_saw_agree_with_their_labels_and_shuffled_labels_by_chance(digits, judge):
    pictures, labels = digits[0][1::2], digits[1][1::2]
    assert 0.96 < agreement(judge, pictures, labels) < 1
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert agreement(judge, pictures, shuffled) == pytest.approx(0.1, abs=0.04)
    assert within_class_spread(pictures.flatten(1), shuffled) > 1.1 * within_class_spread(pictures.flatten(1), labels)


@pytest.mark.slow
def test_class_means_agree_and_do_not_vary(digits, judge):
    pictures, labels = digits
    means = torch.stack([pictures[labels == label].mean(0) for label in range(10)])
    asked = torch.arange(10).repeat(5)
    assert agreement(judge, means[asked], asked) > 0.85
    assert within_class_spread(means[asked].flatten(1), asked) == pytest.approx(0, abs=1e-6)
    assert copied(means, pictures) > 0.5


def test_copies_with_noise_are_near_and_noise_is_far(digits):
    pictures, _ = digits
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert 0 < copied(pictures[:300] + 0.01 * noise, pictures) < 0.1
    assert copied(noise, pictures) > 2


def test_spread_is_the_root_of_the_summed_variances_within_each_class():
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 5, 8], 40)
    x = rng.normal(size=(120, 6)) * labels[:, None] + 100 * labels[:, None]  # far apart, which must not count
    wanted = np.mean([np.sqrt(np.trace(np.cov(x[labels == label].T))) for label in (3, 5, 8)])
    assert within_class_spread(torch.from_numpy(x), torch.from_numpy(labels)) == pytest.approx(wanted)


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1100])
def test_nearest_is_that_of_a_tree(count):
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(count, 4)), rng.normal(size=(700, 4))
    wanted = cKDTree(others).query(x)[0].mean()
    assert nearest(torch.from_numpy(x), torch.from_numpy(others)).distance.mean() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("at_once", [images.ROWS, 9, 1])
def test_the_nearest_k_are_those_of_a_tree(k, at_once, monkeypatch):
    monkeypatch.setattr(images, "ROWS", at_once)
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(300, 4)), rng.normal(size=(70, 4))
    distance, row = cKDTree(others).query(x, k=[*range(1, k + 1)])
    found = nearest(torch.from_numpy(x), torch.from_numpy(others), k)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-9)
    assert found.row.tolist() == row.tolist()


def test_a_mirrored_copy_is_a_copy_where_a_field_may_have_learned_it():
    g = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (40, 3, 5, 5), generator=g, dtype=torch.uint8)
    x, data = torch.cat([data[3:5], data[7:9].flip(-1), 255 - data[:1]]).float(), data.float()
    plain, found = nearest(x, data, 2), images.nearest_or_mirrored(x, data, 2)
    assert found.row[:4, 0].tolist() == [3, 4, 7, 8] and found.distance[:4, 0].max() == 0
    assert (plain.distance[2:4, 0] > 1).all() and found.distance[4, 0] > 1
    other = nearest(x.flip(-1), data, 2)
    assert torch.equal(found.distance[:, 0], torch.minimum(plain.distance[:, 0], other.distance[:, 0]))


def test_fresh_samples_are_no_copies_where_mirrored_pictures_count():
    g = torch.Generator().manual_seed(0)
    data, x = (torch.randint(0, 256, (n, 1, 3, 3), generator=g, dtype=torch.uint8) for n in (2000, 1000))
    search = partial(images.nearest_or_mirrored, encode=Pixels((1, 3, 3)).encode)  # of bytes
    assert copying(search(x, data), data, search) == pytest.approx(1, abs=0.03)
    assert copying(search(data[:500].flip(-1), data), data, search) == 0


@pytest.mark.parametrize("count", [2, 512, 1100])
def test_nearest_within_a_set_passes_over_the_row_itself_but_not_over_its_copies(count):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4))
    wanted = cKDTree(x).query(x, k=2)[0][:, 1].mean()
    same = torch.from_numpy(x)
    assert nearest(same, same, own=torch.arange(count)).distance.mean() == pytest.approx(wanted, rel=1e-9)
    twice = torch.cat([same, same])
    assert nearest(twice, twice, own=torch.arange(2 * count)).distance.max() == 0
