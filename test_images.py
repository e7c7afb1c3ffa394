"""Tests of images.py: what is read, what is refused, and how."""

import re
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

import core
import images as image_data


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
    data = core.load_dataset("mine", tmp_path)
    assert data.num_classes == 4 and data.train_labels.dtype == torch.int64
    assert data.train_images.dtype == torch.uint8 and data.train_images.shape == (20, 1 if gray else 3, 8, 8)
    channel = given["train_images"] if gray else given["train_images"][..., 1]
    assert np.array_equal(data.train_images[:, 0 if gray else 1].numpy(), channel)


BAD_FILES = {
    "lacks test_labels": {"test_labels": None},
    "train_images is float64": {"train_images": np.zeros((20, 8, 8, 3))},
    "expected uint8": {"test_images": np.zeros((8, 64), dtype=np.uint8)},
    "train_labels is int64 (19,)": {"train_labels": np.arange(19)},
    "expected 8 integers": {"test_labels": np.linspace(0, 1, 8)},
    "give one size": {"test_images": np.zeros((8, 9, 9, 3), dtype=np.uint8)},
    "labels must be 0..classes-1": {"train_labels": np.arange(20) % 4 + 1},
    "every class in train": {"test_labels": np.arange(8)},
    "not a readable npz": {"train_labels": np.array([{}] * 20, dtype=object)},
}


@pytest.mark.parametrize("words", BAD_FILES)
def test_a_bad_npz_is_refused_in_one_line(tmp_path, words):
    np.savez(tmp_path / "mine.npz", **arrays(**BAD_FILES[words]))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        core.load_dataset("mine", tmp_path)
    assert "\n" not in str(caught.value) and "mine.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut short"])
def test_a_corrupt_npz_is_refused(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable npz"):
        core.load_dataset("mine", tmp_path)


def test_unknown_data_set_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no data set 'cifar11'.*cifar10.*cifar11\.npz"):
        core.load_dataset("cifar11", tmp_path)


@pytest.mark.parametrize("name", sorted(image_data._DOWNLOADS))
def test_without_network_the_error_says_what_to_fetch_and_where(tmp_path, monkeypatch, name):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    kind, files, folder = image_data._DOWNLOADS[name]
    with pytest.raises(OSError, match=re.escape(files.split(",")[0])) as caught:
        core.load_dataset(name, tmp_path)
    assert str(tmp_path / folder) in str(caught.value) and "\n" not in str(caught.value)
    assert hasattr(torchvision.datasets, kind)


def test_synthetic_images_are_seeded_and_learnable():
    data = core.load_dataset("synthetic")
    again = core.load_dataset("synthetic")
    assert all(torch.equal(a, b) for a, b in zip(data[:4], again[:4], strict=True))
    assert data.train_images.shape == (4096, 3, 32, 32) and data.num_classes == 10
    x, y = data.train_images.flatten(1).float() / 255 - 0.5, F.one_hot(data.train_labels).float()
    w = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1]), x.T @ y)
    accuracy = ((data.test_images.flatten(1).float() / 255 - 0.5) @ w).argmax(1).eq(data.test_labels).float().mean()
    assert 0.3 < accuracy < 0.99
