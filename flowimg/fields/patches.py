"""What the transformers share: which pictures fit their patches, and a field whose network predicts x_1.

A network that predicts the data gives the velocity of the linear path

    v(x, t) = (x_1(x, t) - x) / max(1 - t, 0.05),

and the loss stays in v. Where 1 - t is above 0.05 its output is E[x_1 | x_t]; below, it is what makes v right. Where a
patch has many numbers, most of which are noise, the data are easier to predict than the velocity.
Source: Li and He 2025, arXiv:2511.13720.
"""

from collections.abc import Sequence

from torch import Tensor

NEAREST = 0.05
"""1 - t at least, where a predicted picture is turned into a velocity."""


def patch_problem(shapes: Sequence[tuple[int, ...]], patch: int) -> str | None:
    """Why pictures of these shapes, (C, H, W), cannot be cut into patches, as a sentence; None if they can."""
    for _, height, width in shapes:
        if height % patch or width % patch:
            key = "data.buckets.multiple" if len(shapes) > 1 else "data.size"
            return (
                f"pictures of {width} x {height} pixels cannot be cut into patches of field.patch {patch}: give {key} "
                f"a multiple of {patch}, or another field.patch"
            )
    return None


def velocity_of_data(x_1: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The velocity at x and t, shape (B, *D), of data that a network predicts; t has shape (B,)."""
    left = (1 - t).clamp(min=NEAREST)
    return (x_1 - x) / left.reshape(-1, *[1] * (x.ndim - 1))
