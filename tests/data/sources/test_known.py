import gzip
import os
import pickle

import numpy as np
import pytest
import torch
from pictures_made import complaint, decode, find, noise, numbers, picture, save, told
from sklearn.datasets import load_digits

from flowimg.data.pictures import open_picture
from flowimg.data.sources.known import GARMENTS, NAMED, TORCHVISION, of_arrays


@pytest.fixture(scope="module")
def digits():
    return decode(find("digits"))


@pytest.mark.parametrize("name", NAMED)
def test_every_collection_is_uint8_pictures_with_one_label_each(name):
    found = find(name)
    pixels, labels, classes = decode(found)
    assert pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3)
    assert pixels.shape == (len(found.rows), *found.shape)
    assert labels.dtype == torch.int64 and labels.shape == pixels.shape[:1]
    assert labels.unique().tolist() == list(range(len(classes)))
    assert len(set(classes)) == len(classes)


def test_digits_are_1797_small_grey_pictures_of_ten_classes(digits):
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_keep_their_17_grey_levels_over_the_whole_range(digits):
    levels = digits.pixels.unique()
    assert len(levels) == 17 and levels[0] == 0 and levels[-1] == 255
    bunch = load_digits()
    exact = torch.from_numpy(bunch.images) * 255 / 16
    assert (digits.pixels[:, 0].double() - exact).abs().max() <= 0.5  # rounded, not cut
    assert digits.labels.tolist() == bunch.target.tolist()


def test_digits_are_drawn_in_white_on_black_the_right_way_up(digits):
    # the first one of all, a 0: dark in its middle and its corners, light around
    first = digits.pixels[0, 0]
    assert first[3:5, 3:5].max() < 100 and first[0, 0] == first[7, 7] == 0
    # a 7 is heavier at its top, a mean over all of them
    seven = digits.pixels[digits.labels == 7, 0].float().mean(0)
    assert seven[:3].sum() > seven[-3:].sum()


def test_labels_are_left_out_where_they_are_not_asked_for(digits):
    images = decode(find("digits", labels=False))
    assert images.labels is None and images.classes == ()
    assert torch.equal(images.pixels, digits.pixels)


def test_two_classes_of_the_digits_are_numbered_afresh_in_their_old_order(digits):
    images = decode(find("digits", classes=["7", "3"]))
    assert images.classes == ("3", "7")
    chosen = (digits.labels == 3) | (digits.labels == 7)
    assert torch.equal(images.pixels, digits.pixels[chosen])
    assert torch.equal(images.labels, (digits.labels[chosen] == 7).long())


@pytest.mark.parametrize(
    ("name", "known"),
    [("digit", "digits"), ("Digits", "digits"), ("dgits", "digits"), ("cifar-10", "CIFAR10"),
     ("fashion_mnist", "FashionMNIST"), ("oxfordiiitpets", "OxfordIIITPet")],
)  # fmt: skip
def test_a_name_close_to_a_known_one_is_answered_with_it(name, known):
    assert f"did you mean {known!r}?" in complaint(name)


# --- what torchvision left -------------------------------------------------------------------------------------------


def planes(number):
    """A picture as CIFAR-10 stores it: red, green and blue planes of 32 x 32, told apart by their values."""
    return np.concatenate([np.full(1024, (number + shift) % 256, np.uint8) for shift in (0, 50, 100)])


def pickled(path, value, protocol):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))


def cifar(root, protocol, names=str):
    """Batches as torchvision's download holds them, two pictures in each; picture n has the label n."""
    folder = root / "cifar-10-batches-py"
    for batch, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        which = [2 * batch % 10, (2 * batch + 1) % 10]
        value = {"batch_label": name, "labels": which, "data": np.stack([planes(n) for n in which]), "filenames": ["a"]}
        pickled(folder / name, {names(key): inside for key, inside in value.items()}, protocol)
    pickled(folder / "batches.meta", {names("label_names"): [names(f"kind {n}") for n in range(10)]}, protocol)
    return folder


@pytest.mark.parametrize("names", [str, str.encode], ids=["text", "bytes"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_as_torchvision_left_it(tmp_path, protocol, names):
    cifar(tmp_path, protocol, names)
    found = find("CIFAR10", root=str(tmp_path))
    assert found.shape == (3, 32, 32) and found.classes == tuple(f"kind {n}" for n in range(10))
    assert f"torchvision's CIFAR10 in {tmp_path / 'cifar-10-batches-py'}: 10 pictures of train" in found.story
    pixels, labels, _ = decode(found)
    assert labels.tolist() == list(range(10))
    assert (pixels == torch.stack([labels, labels + 50, labels + 100], 1)[:, :, None, None]).all()
    assert decode(find("CIFAR10", root=str(tmp_path), split="test")).labels.tolist() == [0, 1]


def test_cifar10_pictures_stand_upright(tmp_path):
    folder = cifar(tmp_path, 4)
    data = np.zeros((2, 3, 32, 32), np.uint8)
    data[0, 0, 3, 20], data[0, 1, 5, 7] = 200, 100  # red in row 3, column 20; green in row 5, column 7
    pickled(folder / "test_batch", {"labels": [0, 1], "data": data.reshape(2, -1)}, 4)
    pixels = decode(find("CIFAR10", root=str(tmp_path), split="test")).pixels
    assert pixels[0].nonzero().tolist() == [[0, 3, 20], [1, 5, 7]]


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class Sly(Evil):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.mark)!r})",)


@pytest.mark.parametrize("evil", [Evil, Sly])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_do_something_is_refused_and_does_nothing(tmp_path, evil, protocol):
    folder = cifar(tmp_path, 4)
    mark = tmp_path / "was here"
    value = {"labels": [0, 1], "data": np.stack([planes(0), planes(1)]), "more": evil(mark)}
    pickled(folder / "data_batch_3", value, protocol)
    said = complaint("CIFAR10", root=str(tmp_path))
    assert said.startswith("data.source CIFAR10 cannot be read: it contains ") and "which is not data" in said
    assert not mark.exists()
    pickle.loads((folder / "data_batch_3").read_bytes())
    assert mark.exists()  # it would have


def test_objects_among_arrays_are_refused(tmp_path):
    folder = cifar(tmp_path, 4)
    mark = tmp_path / "was here"
    pickled(folder / "test_batch", {"labels": [0], "data": np.array([Evil(mark)], dtype=object)}, 4)
    assert "cannot be read" in complaint("CIFAR10", root=str(tmp_path), split="test")
    assert not mark.exists()


@pytest.mark.parametrize("inside", [b"", b"junk", pickle.dumps([1, 2]), pickle.dumps({"labels": [0]})])
def test_a_batch_that_is_none_is_said(tmp_path, inside):
    (cifar(tmp_path, 4) / "data_batch_2").write_bytes(inside)
    assert "data.source CIFAR10 cannot be read" in complaint("CIFAR10", root=str(tmp_path))


def test_batches_with_fewer_labels_than_pictures_are_said(tmp_path):
    folder = cifar(tmp_path, 4)
    pickled(folder / "test_batch", {"labels": [0], "data": np.stack([planes(0), planes(1)])}, 4)
    assert "cannot be read" in complaint("CIFAR10", root=str(tmp_path), split="test")


def idx(array):
    sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()


def fashion(root, end=""):
    raw = root / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    pack = gzip.compress if end else bytes
    for opening, count in (("train", 6), ("t10k", 3)):
        pixels = np.arange(count, dtype=np.uint8)[:, None, None] + 10 * np.arange(5, dtype=np.uint8)[:, None]
        pixels = np.broadcast_to(pixels, (count, 5, 4))
        (raw / f"{opening}-images-idx3-ubyte{end}").write_bytes(pack(idx(pixels)))
        (raw / f"{opening}-labels-idx1-ubyte{end}").write_bytes(pack(idx(np.arange(count, dtype=np.uint8) + 4)))
    return raw


@pytest.mark.parametrize("end", ["", ".gz"])
def test_fashion_mnist_as_torchvision_left_it(tmp_path, end):
    fashion(tmp_path, end)
    found = find("FashionMNIST", root=str(tmp_path))
    assert found.shape == (1, 5, 4)
    images = decode(found)
    assert images.labels.tolist() == [4, 5, 6, 7, 8, 9] and images.classes[4:] == (
        "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    assert images.pixels[2, 0].tolist() == [[2 + 10 * row] * 4 for row in range(5)]
    assert decode(find("FashionMNIST", root=str(tmp_path), split="test")).labels.tolist() == [4, 5, 6]


def test_the_names_of_garments_are_torchvisions():
    from torchvision.datasets import FashionMNIST

    assert FashionMNIST.classes == GARMENTS


@pytest.mark.parametrize("inside", [b"", b"\0\0\x0d\x01" + bytes(8), idx(np.zeros((6, 5, 4), np.uint8))[:-1]])
def test_an_array_that_is_none_is_said(tmp_path, inside):
    (fashion(tmp_path) / "train-images-idx3-ubyte").write_bytes(inside)
    assert "data.source FashionMNIST cannot be read" in complaint("FashionMNIST", root=str(tmp_path))


def pets(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    lines = ["Abyssinian_1 1 1 1", "Abyssinian_2 1 1 1", "american_bulldog_7 2 2 1", "yorkshire_terrier_9 3 2 2"]
    (folder / "annotations/trainval.txt").write_text("\n".join(lines) + "\n")
    (folder / "annotations/test.txt").write_text("american_bulldog_8 2 2 1\n")
    for number, name in enumerate(["Abyssinian_1", "Abyssinian_2", "american_bulldog_7", "yorkshire_terrier_9"]):
        save(folder / f"images/{name}.jpg", picture(10 * number))
    save(folder / "images/american_bulldog_8.jpg", picture(90))
    return folder


def test_pets_as_torchvision_left_them(tmp_path):
    pets(tmp_path)
    found = find("OxfordIIITPet", root=str(tmp_path))
    breeds = ("Abyssinian", "american bulldog", "yorkshire terrier")
    assert found.classes == breeds
    assert told(found) == [(0, breeds[0]), (10, breeds[0]), (20, breeds[1]), (30, breeds[2])]
    images = decode(find("OxfordIIITPet", root=str(tmp_path), split="test"))
    assert numbers(images) == [90] and images.classes[int(images.labels[0])] == "american bulldog"


def test_a_pet_that_is_missing_is_named(tmp_path):
    folder = pets(tmp_path)
    (folder / "images/Abyssinian_2.jpg").unlink()
    said = complaint("OxfordIIITPet", root=str(tmp_path))
    assert (
        "1 of 4 pictures cannot be used" in said
        and f"{folder / 'images/Abyssinian_2.jpg'} (the file does not exist" in said
    )


def test_names_in_a_list_of_pets_are_never_paths(tmp_path):
    folder = pets(tmp_path)
    save(tmp_path / "secret_1.jpg", picture(99))
    (folder / "annotations/test.txt").write_text("../../secret_1 1 1 1\n")
    said = complaint("OxfordIIITPet", root=str(tmp_path), split="test")
    assert "images/secret_1.jpg (the file does not exist" in said


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_set_that_is_not_there_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, name):
    said = complaint(name, root=str(tmp_path / "empty"))
    assert f"there is no {tmp_path / 'empty' / TORCHVISION[name][0]}" in said and "data.root" in said
    assert f"torchvision.datasets.{name}(" in said and "download=True" in said


@pytest.mark.parametrize("name", ["digits", *TORCHVISION])
def test_a_split_that_a_known_set_has_not(name):
    assert "has no split 'validation': data.split may be " in complaint(name, split="validation")


def test_a_set_that_was_fetched_anew_is_looked_at_anew(tmp_path):
    folder = pets(tmp_path)
    find("OxfordIIITPet", root=str(tmp_path))
    (folder / "annotations/trainval.txt").write_text("american_bulldog_7 2 2 1\n")
    assert [number for number, _ in told(find("OxfordIIITPet", root=str(tmp_path)))] == [20]


def test_a_pet_that_was_replaced_is_looked_at_anew(tmp_path):
    folder = pets(tmp_path)
    find("OxfordIIITPet", root=str(tmp_path))
    save(folder / "images/Abyssinian_1.jpg", picture(70))
    assert numbers(decode(find("OxfordIIITPet", root=str(tmp_path)))) == [70, 10, 20, 30]


def test_arrays_are_pictures_that_come_back_bit_for_bit():
    pixels = [noise(5, 4), noise(5, 4, 1), noise(1, 1)]
    made = of_arrays(pixels, [0, 1, 0], ["a", "b"])
    files = made.read(np.arange(3))
    for array, file in zip(pixels, files, strict=True):
        assert np.array_equal(np.asarray(open_picture(file.content)), array)
    assert made.labels.tolist() == [0, 1, 0] and made.classes == ("a", "b") and made.count == 3
