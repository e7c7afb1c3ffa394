"""Data sets: what is read, what is refused, and how; the same checks whichever way the images come in."""

import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from lib.data import DOWNLOADS, dataset_name_and_root, load_dataset
from lib.errors import InputError


def arrays(**changes):
    random = np.random.default_rng(0)
    good = {
        "train_images": random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(20) % 4,
        "test_images": random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


@pytest.mark.parametrize("gray", [False, True])
def test_own_images_come_in_through_an_npz(tmp_path, gray):
    changes = {f"{s}_images": arrays()[f"{s}_images"][..., 0] for s in ("train", "test")} if gray else {}
    given = arrays(**changes)
    np.savez(tmp_path / "mine.npz", **given)
    data = load_dataset("mine", tmp_path)
    assert data.num_classes == 4 and data.train_labels.dtype == torch.int64
    assert data.train_images.dtype == torch.uint8 and data.train_images.shape == (20, 1 if gray else 3, 8, 8)
    channel = given["train_images"] if gray else given["train_images"][..., 1]
    assert np.array_equal(data.train_images[:, 0 if gray else 1].numpy(), channel)
    by_path = load_dataset(str(tmp_path / "mine.npz"))
    assert torch.equal(by_path.train_images, data.train_images) and by_path.content_hash == data.content_hash


def test_the_name_of_a_file_alone_is_looked_for_here_and_then_in_the_folder_of_data(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert dataset_name_and_root("mine.npz", tmp_path) == ("mine", tmp_path)
    np.savez("mine.npz", **arrays())
    assert dataset_name_and_root("mine.npz", tmp_path) == ("mine", Path("."))
    assert dataset_name_and_root("mine", tmp_path) == ("mine", tmp_path)
    assert dataset_name_and_root("data/mine.npz", tmp_path) == ("mine", Path("data"))
    for nothing in ("", ".", "/"):
        with pytest.raises(InputError, match="names no data set: use one of cifar10"):
            dataset_name_and_root(nothing, tmp_path)


def test_the_hash_of_the_content_sees_images_labels_and_shapes(tmp_path):
    hashes = set()
    changed = arrays()["train_images"].copy()
    changed[3, 4, 5, 1] ^= 1
    reshaped = {f"{split}_images": arrays()[f"{split}_images"].reshape(-1, 4, 16, 3) for split in ("train", "test")}
    for changes in ({}, {"train_images": changed}, {"test_labels": np.arange(8)[::-1] % 4}, reshaped):
        np.savez(tmp_path / "mine.npz", **arrays(**changes))
        hashes.add(load_dataset("mine", tmp_path).content_hash)
    assert len(hashes) == 4


def with_channels(count):
    return {f"{s}_images": np.zeros((n, 8, 8, count), dtype=np.uint8) for s, n in (("train", 20), ("test", 8))}


BAD_FILES = {
    "lacks test_labels": {"test_labels": None},
    "train_images is float64": {"train_images": np.zeros((20, 8, 8, 3))},
    "expected uint8": {"test_images": np.zeros((8, 64), dtype=np.uint8)},
    "train_labels is int64 (19,)": {"train_labels": np.arange(19)},
    "expected 8 integers": {"test_labels": np.linspace(0, 1, 8)},
    "give one size": {"test_images": np.zeros((8, 9, 9, 3), dtype=np.uint8)},
    "labels must be 0..classes-1": {"train_labels": np.arange(20) % 4 + 1},
    "every class in train": {"test_labels": np.arange(8)},
    "needs two classes": {"train_labels": np.zeros(20, dtype=int), "test_labels": np.zeros(8, dtype=int)},
    "not a readable npz": {"train_labels": np.array([{}] * 20, dtype=object)},
    "has 4 channels; images must be grey (1) or RGB (3): leave out the transparency": with_channels(4),
    "has 2 channels": with_channels(2),
    "channels first": {f"{s}_images": np.zeros((n, 3, 8, 8), dtype=np.uint8) for s, n in (("train", 20), ("test", 8))},
    "expected uint8 N x H x W": {"train_images": np.zeros((0, 8, 8, 3), dtype=np.uint8)},
}


@pytest.mark.parametrize("words", BAD_FILES)
def test_a_bad_npz_is_refused_in_one_line(tmp_path, words):
    np.savez(tmp_path / "mine.npz", **arrays(**BAD_FILES[words]))
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        load_dataset("mine", tmp_path)
    assert "\n" not in str(caught.value) and "mine.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut short"])
def test_a_corrupt_npz_is_refused(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a readable npz"):
        load_dataset("mine", tmp_path)


def image_folder(root, test="val", mode="RGB", **save_options):
    """Two classes, 4 training and 2 test images each; the left half of class a is bright."""
    for split, count in (("train", 4), (test, 2)):
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.full((6, 8, 3), 40, dtype=np.uint8)
                pixels[:, :4] = 200 if label == "a" else 90
                Image.fromarray(pixels).convert(mode).save(folder / f"{k}.png", **save_options)


@pytest.mark.parametrize("test", ["val", "test"])
def test_a_folder_of_images_is_a_data_set(tmp_path, test):
    image_folder(tmp_path / "mine", test)
    data = load_dataset("mine", tmp_path)
    assert data.train_images.shape == (8, 3, 6, 8) and data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images[0, 0, 0, 0] == 200 and data.train_images[-1, 0, 0, 0] == 90


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    image_folder(tmp_path / "mine", exif=exif)
    assert load_dataset("mine", tmp_path).train_images[0, 0, 0, 0] == 40


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: Image.new("RGBA", (8, 6), (1, 2, 3, 0)).save(file), "transparent"),
        (lambda file: Image.fromarray(np.full((6, 8), 40_000, dtype=np.uint16)).save(file), "8 bits"),
        (lambda file: Image.new("RGB", (9, 6)).save(file), "images of one size"),
        (lambda file: file.write_bytes(b"no image"), "expected images in train/<class>/"),
    ],
)
def test_a_bad_image_is_one_line_that_names_it(tmp_path, spoil, words):
    image_folder(tmp_path / "mine")
    spoil(tmp_path / "mine" / "train" / "a" / "0.png")
    with pytest.raises(InputError, match=words) as caught:
        load_dataset("mine", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_of_the_test_set_alone_is_refused(tmp_path):
    image_folder(tmp_path / "mine")
    (tmp_path / "mine" / "val" / "b").rename(tmp_path / "mine" / "val" / "c")
    with pytest.raises(InputError, match="the class 'c' of val/ is not among those of train/"):
        load_dataset("mine", tmp_path)


def test_unknown_data_set_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"no data set 'cifar11'.*cifar10.*cifar11\.npz"):
        load_dataset("cifar11", tmp_path)


@pytest.mark.parametrize("name", sorted(DOWNLOADS))
def test_without_network_the_error_says_what_to_fetch_and_where(tmp_path, monkeypatch, name):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    source = DOWNLOADS[name]
    with pytest.raises(InputError, match=re.escape(source.files.split(",")[0])) as caught:
        load_dataset(name, tmp_path)
    assert str(tmp_path / source.folder) in str(caught.value) and "\n" not in str(caught.value)
    assert hasattr(torchvision.datasets, source.kind)


def test_synthetic_images_are_seeded_and_learnable():
    data = load_dataset("synthetic")
    again = load_dataset("synthetic")
    assert all(torch.equal(a, b) for a, b in zip(data[:4], again[:4], strict=True))
    assert data.train_images.shape == (4096, 3, 32, 32) and data.num_classes == 10
    x, y = data.train_images.flatten(1).float() / 255 - 0.5, F.one_hot(data.train_labels).float()
    w = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1]), x.T @ y)
    accuracy = ((data.test_images.flatten(1).float() / 255 - 0.5) @ w).argmax(1).eq(data.test_labels).float().mean()
    assert 0.3 < accuracy < 0.99
