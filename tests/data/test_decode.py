"""What a process that decodes does: each picture at its place in a file, each with the hash of its file."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_made import WHITE, content, noise, picture
from PIL import Image

from flowimg.data.decode import Decoding, decode, decode_into, decode_some
from flowimg.data.pictures import BadPictureError, Encoded

few = settings(max_examples=40, deadline=None, derandomize=True)


def how(channels=3, size=6):
    return Decoding(channels, (size, size), "crop", WHITE)


def encoded(*numbers, size=(6, 6)):
    return [Encoded(content(picture(number, size))) for number in numbers]


def test_a_picture_comes_as_pixels_with_the_hash_of_its_file():
    file = content(Image.fromarray(noise(6, 6)))
    pixels, hashed = decode(Encoded(file), how())
    assert np.array_equal(pixels.transpose(1, 2, 0), noise(6, 6)) and pixels.dtype == np.uint8
    assert hashed == hashlib.blake2b(file, digest_size=16).digest()


def test_a_picture_among_arrays_of_five_channels_is_bad_by_its_channels():
    with pytest.raises(BadPictureError, match=r"^it is a picture of 3 channels, not 5$"):
        decode(encoded(3)[0], how(channels=5))


def test_a_picture_of_another_size_is_brought_to_the_one_of_all():
    assert decode(encoded(3, size=(7, 5))[0], how())[0].shape == (3, 6, 6)


@few
@given(parts=st.permutations(range(5)), bad=st.sets(st.integers(0, 9)))
def test_pictures_lie_at_their_places_in_whatever_order_they_come(tmp_path_factory, parts, bad):
    file = tmp_path_factory.mktemp("pixels") / "pixels"
    file.touch()
    for part in parts:  # two at a time
        rows = [2 * part, 2 * part + 1]
        pictures = [Encoded(b"junk") if row in bad else encoded(10 + row)[0] for row in rows]
        told = decode_into(str(file), how(), (2 * part, pictures))
        for row, (hashed, wrong, fleeting) in zip(rows, told, strict=True):
            assert (wrong is None) == (row not in bad) and len(hashed) == (0 if wrong else 16) and not fleeting
    pixels = np.fromfile(file, np.uint8).reshape(10, 108)
    for row in range(10):
        assert (pixels[row] == (0 if row in bad else 10 + row)).all()


def test_what_is_wrong_with_a_picture_comes_in_its_place():
    found = decode_some(how(1), [*encoded(4), Encoded(b"junk"), Encoded(), *encoded(5)])
    assert (found[0] == 4).all() and found[0].shape == (1, 6, 6) and (found[3] == 5).all()
    assert found[1:3] == ["not a picture in a known format", "the row is empty"]
