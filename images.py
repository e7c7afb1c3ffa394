"""Data sets: downloaded, from an npz or a folder of images, or generated; and their batches, made on the device.

Import load_dataset from core.
"""

import copy
import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dataset(NamedTuple):
    """Images uint8 [N, C, H, W] in 0..255, labels int64 [N] in 0..num_classes - 1, and where they are from."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str = ""

    @property
    def num_classes(self) -> int:
        return int(self.train_labels.max()) + 1


# name: (class in torchvision.datasets, the files it downloads, the folder below root they go to)
_IDX = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"
_DOWNLOADS = {
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz", ""),
    "cifar100": ("CIFAR100", "cifar-100-python.tar.gz", ""),
    "mnist": ("MNIST", _IDX, "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", _IDX, "FashionMNIST/raw"),
    "usps": ("USPS", "usps.bz2, usps.t.bz2", ""),
}


def load_dataset(name: str, root: str | Path = "data") -> Dataset:
    """Load a data set by name: from `<root>/<name>.npz` if it is there, else by download.

    `name`: cifar10, cifar100, usps, mnist, fashion_mnist (torchvision downloads these into `root`
    and verifies their checksums), synthetic (generated, see `synthetic_dataset`), or the stem of
    any npz file in `root` with `train_images` and `test_images` (uint8, N x H x W or N x H x W x C)
    and `train_labels` and `test_labels` (integers from 0), and maybe a text `source` for the results;
    or a folder in `root` with images of one size in train/<class>/ and val/<class>/ (Tiny ImageNet: as it
    is unpacked, val/val_annotations.txt is read).

    Raises ValueError for an unknown name or a bad file, OSError if the download fails.
    """
    path = Path(root) / f"{name}.npz"
    if name == "synthetic":
        return synthetic_dataset()
    if path.exists():
        arrays, source = _read_npz(path), path.name
    elif (Path(root) / name / "train").is_dir():
        arrays, source = _read_folder(Path(root) / name), f"{name}/"
    elif name in _DOWNLOADS:
        arrays, source = _download(name, Path(root)), "torchvision"
    else:
        known = ", ".join([*_DOWNLOADS, "synthetic"])
        raise ValueError(f"no data set {name!r}: use one of {known}, or put your own images into {path}")
    shapes = [arrays[f"{split}_images"].shape[1:] for split in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{Path(root) / source}: train images are {shapes[0]}, test images {shapes[1]}; give one size")
    images = {}
    for split in ("train", "test"):
        pixels = torch.from_numpy(np.ascontiguousarray(arrays[f"{split}_images"]))
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        images[split] = pixels, torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64))
    return Dataset(*images["train"], *images["test"], str(arrays.get("source", source)))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    keys = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            arrays = {key: file[key] for key in (*keys, "source") if key in file}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable npz of plain arrays ({error}); write it with numpy.savez") from None
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(keys)}")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
            raise ValueError(
                f"{path}: {split}_images is {images.dtype} {images.shape}; expected uint8 N x H x W or N x H x W x C"
            )
        if images.ndim == 4 and images.shape[3] > 4 and images.shape[1] <= 4:
            raise ValueError(f"{path}: {split}_images is {images.shape}: channels first; give N x H x W x C")
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise ValueError(
                f"{path}: {split}_labels is {labels.dtype} {labels.shape}; expected {len(images)} integers"
            )
    seen = np.unique(arrays["train_labels"])
    if seen[0] != 0 or seen[-1] != len(seen) - 1 or not np.isin(arrays["test_labels"], seen).all():
        raise ValueError(f"{path}: labels must be 0..classes-1, every class in train; train has {seen[:12].tolist()}")
    return arrays


def _read_folder(root: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import ImageFolder

    arrays = {}
    try:
        files = {split: ImageFolder(root / split) for split in ("train", "val")}
        classes = files["train"].class_to_idx
        samples = {split: [(path, folder.classes[k]) for path, k in folder.samples] for split, folder in files.items()}
        if (root / "val" / "val_annotations.txt").exists():
            lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
            samples["val"] = [(root / "val" / "images" / name, label) for name, label, *_ in map(str.split, lines)]
        for split, key in (("train", "train"), ("val", "test")):
            images = [np.asarray(files[split].loader(path)) for path, _ in samples[split]]
            arrays[f"{key}_images"] = np.stack(images)
            arrays[f"{key}_labels"] = np.array([classes[label] for _, label in samples[split]])
    except KeyError as error:
        raise ValueError(f"{root}: the class {error} of val/ is not among those of train/") from None
    except ValueError as error:  # numpy: images of several sizes
        raise ValueError(
            f"{root} is not a folder of images of one size, train/<class>/*, val/<class>/* ({error})"
        ) from None
    except OSError as error:
        raise ValueError(f"{root}: expected images in train/<class>/ and val/<class>/ ({error})") from None
    return arrays


def _download(name: str, root: Path) -> dict[str, np.ndarray]:
    import torchvision.datasets

    kind, files, folder = _DOWNLOADS[name]
    kind, arrays = getattr(torchvision.datasets, kind), {}
    address = getattr(kind, "url", None) or (kind.mirrors if hasattr(kind, "mirrors") else kind.split_list["train"])[0]
    try:
        for split in ("train", "test"):
            part = kind(root, train=split == "train", download=True)
            arrays[f"{split}_images"] = np.asarray(part.data)
            arrays[f"{split}_labels"] = np.asarray(part.targets)
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"cannot download {name} ({reason}); fetch {files} on another machine ({address}) "
            f"and put it into {root / folder}, or write {root / name}.npz"
        ) from None
    return arrays


def synthetic_dataset(training: int = 4096, test: int = 1024, classes: int = 10, seed: int = 0) -> Dataset:
    """Generated 3 x 32 x 32 images to try things on: a smooth pattern per class, shifted and noisy.

    Learnable but not trivially: each image is its class's pattern, cyclically shifted by up to 8
    pixels, under pixel noise of twice its size; a linear classifier gets 88 % right.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(classes, 3, 6, 6, generator=generator)
    patterns = nn.functional.interpolate(coarse, size=32, mode="bicubic", align_corners=False)
    labels = torch.arange(training + test) % classes
    shifts = torch.randint(-8, 9, (training + test, 2), generator=generator)
    grid = torch.arange(32)
    rows = (grid - shifts[:, :1]) % 32
    columns = (grid - shifts[:, 1:]) % 32
    images = patterns[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    images = 128 + 25 * images + 50 * torch.randn(images.shape, generator=generator)
    images = images.round().clamp(0, 255).to(torch.uint8).contiguous()
    return Dataset(images[:training], labels[:training], images[training:], labels[training:], "generated")


# ======================================================================================
# data on the device
# ======================================================================================

STATISTICS = {  # the paper's channel means and standard deviations
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def content_hash(dataset: Dataset) -> str:
    """Of all images and labels: 16 hexadecimal digits of their SHA-256, shapes included."""
    digest = hashlib.sha256()
    for part in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        digest.update(part.contiguous().numpy())
    return digest.hexdigest()[:16]


class Images:
    """A data set resident on the device as uint8, channels last, padded by 4: batches are one gather.

    Grey images get three equal channels, images smaller than 32 x 32 a black frame. `size`: 32, or
    the longer side of larger images, up to 64 (Tiny ImageNet; VGG-16 of core needs 32).
    """

    def __init__(self, dataset, name: str, device: torch.device):
        self.size = size = max(32, *dataset.train_images.shape[2:])

        def framed(images, margin):
            height, width = images.shape[2:]
            if images.shape[1] not in (1, 3) or size > 64:
                raise ValueError(
                    f"{name}: images must be grey or RGB and at most 64 x 64, not {tuple(images.shape[1:])}"
                )
            images = images.expand(-1, 3, -1, -1)
            top, left = margin + (size - height) // 2, margin + (size - width) // 2
            full = size + 2 * margin
            images = F.pad(images, (left, full - width - left, top, full - height - top))
            return images.permute(0, 2, 3, 1).contiguous().to(device)

        self.train, self.test = framed(dataset.train_images, 4), framed(dataset.test_images, 0)
        self.train_labels, self.test_labels = dataset.train_labels.to(device), dataset.test_labels.to(device)
        self.classes = dataset.num_classes
        self.content_hash = content_hash(dataset)
        if name in STATISTICS:
            mean, std = (torch.tensor(values) * 255 for values in STATISTICS[name])
        else:
            inner = self.plain_train(len(self.train)).float().cpu()
            mean, std = inner.mean((0, 1, 2)), inner.std((0, 1, 2)).clamp_min(1.0)
        self.mean, self.std = mean.to(device), std.to(device)

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] -> float [B, 3, size, size], channels last in memory."""
        return ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)

    def prepared(self, normalize: bool) -> "Images":
        """Itself, or without normalisation the same images for which `normalized` yields [0, 1]."""
        if normalize:
            return self
        other = copy.copy(self)
        other.mean, other.std = torch.zeros_like(self.mean), torch.full_like(self.std, 255.0)
        return other

    def in_float64(self) -> "Images":
        """The same images, for which `normalized` yields float64."""
        other = copy.copy(self)
        other.mean, other.std = self.mean.double(), self.std.double()
        return other

    def plain_train(self, count: int) -> Tensor:
        """uint8 [count, size, size, 3]: the first training images, without their margin."""
        return self.train[:count, 4 : 4 + self.size, 4 : 4 + self.size]

    def epoch(self, run, epoch: int) -> tuple[Tensor, Tensor]:
        """All that is random in an epoch of a `training.Run`: crops and labels.

        Where each example's crop starts (and its direction), and its label:
        [steps * batch, 2] of first pixel (flat index) and column step (1, or -1 for a flipped image),
        and [steps * batch] labels, in the order of the examples.
        """
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
        count = len(self.train) // run.batch_size * run.batch_size
        order = torch.randperm(len(self.train), generator=generator)[:count]
        shift = torch.randint(9, (2, count), generator=generator) if run.augment else torch.full((2, count), 4)
        flip = (torch.rand(count, generator=generator) < 0.5) & run.augment
        wrong = torch.rand(count, generator=generator) < run.label_noise
        other = torch.randint(1, self.classes, (count,), generator=generator)
        device, side = self.train.device, self.size + 8
        direction = torch.where(flip, -1, 1)
        first = order * side**2 + shift[0] * side + shift[1] + torch.where(flip, self.size - 1, 0)
        labels = self.train_labels[order.to(device)]
        labels = torch.where(wrong.to(device), (labels + other.to(device)) % self.classes, labels)
        return torch.stack([first, direction], 1).to(device), labels

    def batch(self, crops: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] for crops [B, 2] of `epoch`."""
        grid, side = torch.arange(self.size, device=crops.device), self.size + 8
        pixels = crops[:, :1, None] + side * grid[None, :, None] + crops[:, 1:, None] * grid[None, None, :]
        return self.train.view(-1, 3).index_select(0, pixels.flatten()).view(-1, self.size, self.size, 3)
