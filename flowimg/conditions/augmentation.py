"""The augmentation of a picture as numbers of a condition; `data.augment` draws them.

    (mirrored, upside down, scale, cos - 1 and sin of the rotation, stretch (2 numbers), shift right, shift down)

All are 0 for a picture as it is, so that samples are drawn with none.
"""

NUMBERS = 9
"""Numbers that say how a picture was transformed."""
