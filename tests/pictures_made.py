"""Pictures for the tests of the data: each tells its number by its pixels, so that a label can be held against it."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import flowimg.data.find
import flowimg.data.store
from flowimg.data.cache import cache_folder
from flowimg.data.listing import Listing
from flowimg.data.pictures import Encoded
from flowimg.errors import DataError

SHARED = Path(__file__).parents[2] / "shared/data"
WHITE = (255, 255, 255)


def picture(number, size=(6, 6), mode="RGB"):
    """An even picture whose brightness is its number."""
    return Image.new("RGB", size, (number, number, number)).convert(mode)


def noise(width, height, depth=3):
    shape = (height, width, depth) if depth > 1 else (height, width)
    return np.random.default_rng(width * 1000 + height).integers(0, 256, shape, dtype=np.uint8)


def content(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    """The opening of a PNG file that says how large it is, and a little of nothing after it."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(inside)) + kind + inside + struct.pack(">I", zlib.crc32(kind + inside))
        for kind, inside in (*parts, (b"IEND", b""))
    )


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def dataset(names, labels, image="image", label="label", start=0, size=(6, 6)):
    """Pictures numbered from `start`, with labels that are classes."""
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    pictures = [picture(start + n, size) for n in range(len(labels))]
    return datasets.Dataset.from_dict({image: pictures, label: labels}, features)


def table(path, **columns):
    """A parquet file that datasets knows nothing of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def plain(count, size=(6, 6)):
    """Cells of a column of pictures."""
    return [{"bytes": content(picture(n, size)), "path": None} for n in range(count)]


def tar(path, files):
    """A tar file of (name, bytes), in this order; in place of bytes, a TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, inside in files:
            if isinstance(inside, tarfile.TarInfo):
                inside.name = name
                opened.addfile(inside)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(inside)
                opened.addfile(member, io.BytesIO(inside))
    return path


def samples(first, last, labels=None, kind="png"):
    """The files of a shard: pictures numbered from first to before last, with a .cls beside each where labels are."""
    files = []
    for place, number in enumerate(range(first, last)):
        files.append((f"{number:06d}.{kind}", content(picture(number))))
        if labels is not None:
            files.append((f"{number:06d}.cls", str(labels[place]).encode()))
    return files


def listing(files, labels=None, classes=()):
    """A listing of encoded pictures."""
    numbers = None if labels is None else np.array(labels, np.int64)
    return Listing(
        len(files), lambda rows: [Encoded(files[row]) for row in rows], "picture {}".format, numbers, tuple(classes)
    )


def find(source, **asked):
    """`find` in the cache of the test, by this process alone."""
    return flowimg.data.find.find(str(source), cache_folder(), **{"workers": 1, **asked})


def stored(found, resize="crop", background=WHITE, **more):
    """`store` in the cache of the test, by this process alone."""
    return flowimg.data.store.store(found, cache_folder(), resize, background, **{"workers": 1, **more})


def decode(found, resize="crop", background=WHITE, **more):
    """The images of what was found."""
    return stored(found, resize, background, **more).images


def numbers(images):
    """The numbers of pictures, from their pixels."""
    flat = images.pixels.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def told(found, **more):
    """(number, name of the class) of every picture."""
    images = decode(found, **more)
    assert images.classes == found.classes
    return list(zip(numbers(images), [images.classes[label] for label in images.labels], strict=True))


def complaint(source, **asked):
    """The one sentence that is said."""
    with pytest.raises(DataError) as caught:
        decode(find(source, **asked), max_bad=asked.get("max_bad", 0.01))
    said = str(caught.value)
    assert "\n" not in said and "<" not in said and not said.endswith(": ")
    assert caught.value.exit_status == 3
    return said
