"""Points are stored as they are."""

import torch

from flowimg.spaces.points import Points

SPACE = Points(3.0, lambda count: torch.arange(2.0 * count).reshape(count, 2))
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def test_points_are_encoded_and_decoded_as_they_are():
    assert torch.equal(SPACE.encode(X), X) and torch.equal(SPACE.decode(X), X)
    assert torch.equal(SPACE.of_rows(SPACE.rows(X)), X)
    assert SPACE.shape == (2,) and SPACE.levels is None and SPACE.noise_shape is None


def test_points_of_another_precision_become_float32():
    for dtype in (torch.float64, torch.bfloat16):
        for change in (SPACE.encode, SPACE.decode, SPACE.rows):
            assert torch.equal(change(X.to(dtype)), X.to(dtype).float())


def test_points_are_no_pictures_and_have_examples_beside_them():
    assert SPACE.grid(X) is None
    assert SPACE.examples(3).tolist() == [[0, 1], [2, 3], [4, 5]]
