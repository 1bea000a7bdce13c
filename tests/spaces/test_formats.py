"""Files of pictures of every depth, held against other readers and writers: Pillow, tifffile and imagecodecs."""

import io
import sys
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowimg.spaces.formats import PNG, from_file, pages, png_of, to_file

few = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def rows(height, width, channels, dtype, seed=0):
    generator = np.random.default_rng((seed, height, width, channels))
    if np.dtype(dtype).kind == "f":
        return generator.normal(0, 1e4, (height, width, channels)).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


@few
@given(shapes, st.sampled_from([1, 3, 4]), st.sampled_from(["uint8", "uint16"]), st.integers(0, 9))
def test_a_png_is_what_libpng_and_pillow_read(shape, channels, dtype, seed):
    array = rows(*shape, channels, dtype, seed)
    content = to_file(array, "png", alpha=channels == 4)
    read = imagecodecs.png_decode(content)
    assert read.dtype == dtype and np.array_equal(read.reshape(array.shape), array)
    picture = Image.open(io.BytesIO(content))
    picture.verify()
    assert picture.size == shape[::-1] and png_of(content) == (dtype == "uint16", channels == 1)
    if dtype == "uint8" or channels == 1:
        assert np.array_equal(np.array(Image.open(io.BytesIO(content))).reshape(array.shape), array)
    assert np.array_equal(from_file(content), array) and from_file(content).dtype == dtype


@few
@given(
    shapes, st.integers(1, 6), st.sampled_from(["uint8", "uint16", "float32"]), st.booleans(), st.integers(0, 9)
)  # fmt: skip
def test_a_tiff_is_what_tifffile_and_pillow_read(shape, channels, dtype, alpha, seed):
    array, alpha = rows(*shape, channels, dtype, seed), alpha and channels == 4
    content = to_file(array, "tiff", alpha)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        assert len(file.pages) == 1
        page = file.pages[0]
        assert page.dtype == dtype and np.array_equal(page.asarray().reshape(array.shape), array)
        assert (page.extrasamples == (2,)) == alpha
        assert (page.photometric == 2) == (alpha or channels == 3)  # RGB
    if (channels == 1 and dtype != "uint16") or (dtype == "uint8" and (channels == 3 or alpha)):
        picture = Image.open(io.BytesIO(content))
        assert np.array_equal(np.array(picture).reshape(array.shape), array)
        assert picture.has_transparency_data == alpha
    assert np.array_equal(from_file(content), array) and from_file(content).dtype == dtype
    for every in (False, True):
        found = pages(content, every)
        assert (found.shape, found.type, found.alpha, found.total) == ((channels, *shape), dtype, alpha, 1)


def test_numbers_of_every_level_and_odd_floats_survive():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    odd = np.array([0, -0.0, 1e-45, 3.4e38, -1e-38, np.nan, np.inf, 0.1], np.float32).reshape(2, 4, 1)
    for form in ("png", "tiff"):
        assert np.array_equal(from_file(to_file(levels, form)), levels)
    assert from_file(to_file(odd, "tiff")).tobytes() == odd.tobytes()


@few
@given(st.integers(1, 5), shapes, st.sampled_from([1, 3]), st.sampled_from(["uint8", "uint16", "float32"]))
def test_of_several_pages_the_first_or_all_are_read(count, shape, channels, dtype):
    stack = np.stack([rows(*shape, channels, dtype, page) for page in range(count)])
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in stack:
            writer.write(page if channels == 3 else page[..., 0], metadata=None, contiguous=False,
                         photometric="rgb" if channels == 3 else "minisblack")  # fmt: skip
    first, every = (pages(file.getvalue(), every) for every in (False, True))
    assert first.total == every.total == count
    assert np.array_equal(first.read(), stack[0].transpose(2, 0, 1))
    assert np.array_equal(every.read(), stack.transpose(0, 3, 1, 2).reshape(-1, *shape))


def test_pages_of_another_shape_are_not_channels():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(rows(8, 9, 1, "uint16")[..., 0], metadata=None)
        writer.write(rows(4, 5, 1, "uint16")[..., 0], metadata=None)  # a smaller copy
    found = pages(file.getvalue(), every=True)
    assert found.shape == (1, 8, 9) and found.total == 2


def test_what_is_damaged_raises_and_prints_nothing(caplog, capsys):
    whole = to_file(rows(20, 20, 1, "uint16"), "tiff")
    for cut in range(8, len(whole), 7):
        with suppress(Exception):
            pages(whole[:cut], True).read()
    assert capsys.readouterr() == ("", "") and not caplog.records


def test_sixteen_bits_need_imagecodecs_to_be_read_only_where_others_wrote_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    array = rows(5, 6, 3, "uint16")
    content = to_file(array, "png")
    assert content.startswith(PNG) and np.array_equal(from_file(content), array)


@pytest.mark.parametrize("content", [b"", PNG, PNG + bytes(17), PNG + bytes(18)])
def test_a_header_that_ends_early_is_of_no_kind(content):
    assert png_of(content) == (False, len(content) > 25)
