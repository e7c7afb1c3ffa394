"""Data sets: downloaded, from an npz, from a folder of images, or generated; all checked in one place."""

import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.errors import InputError, is_there
from lib.results import ROOT


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

    @property
    def content_hash(self) -> str:
        """Of all images and labels: 16 hexadecimal digits of their SHA-256, shapes included."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()[:16]


class Download(NamedTuple):
    """A data set of torchvision."""

    kind: str  # the class in torchvision.datasets
    files: str  # what it downloads
    folder: str  # the folder below root they go to


_IDX = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"
DOWNLOADS = {
    "cifar10": Download("CIFAR10", "cifar-10-python.tar.gz", ""),
    "cifar100": Download("CIFAR100", "cifar-100-python.tar.gz", ""),
    "mnist": Download("MNIST", _IDX, "MNIST/raw"),
    "fashion_mnist": Download("FashionMNIST", _IDX, "FashionMNIST/raw"),
    "usps": Download("USPS", "usps.bz2, usps.t.bz2", ""),
}
KNOWN = ", ".join([*DOWNLOADS, "synthetic"])
LONGEST_NAME = 100  # bytes: a file system takes 255, and the names of run folders hold more than this
SPLITS = ("train", "test")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def dataset_name_and_root(name: str, root: str | Path) -> tuple[str, Path]:
    """Name and root of a data set that may be given by its path, data/mine.npz or data/mine, instead.

    mine.npz is looked for here, then in `root`. Raises InputError for a name that is none.
    """
    path = Path(name).expanduser()
    if not path.name:
        raise InputError(f"{name!r} names no data set: use one of {KNOWN}, or an npz or a folder of images")
    if len(path.name.encode(errors="replace")) > LONGEST_NAME:
        raise InputError(f"data set {path.name[:40]}...: its name must have at most {LONGEST_NAME} bytes")
    if path.suffix != ".npz" and path.name == name:
        return name, Path(root)
    is_bare = path.parent == Path(".") and not path.exists()
    return path.name.removesuffix(".npz"), Path(root) if is_bare else path.parent


def load_dataset(name: str, root: str | Path = ROOT / "data") -> Dataset:
    """Load a data set by name: from `<root>/<name>.npz` if it is there, else by download.

    `name`: cifar10, cifar100, usps, mnist, fashion_mnist (torchvision downloads these into `root`
    and verifies their checksums), synthetic (generated, see `synthetic_dataset`), or the stem (or path) of
    an npz file in `root` with `train_images` and `test_images` (uint8, N x H x W or N x H x W x C, grey or RGB)
    and `train_labels` and `test_labels` (integers from 0), and maybe a text `source` for the results;
    or a folder in `root` with images of one size in train/<class>/ and val/<class>/ or test/<class>/
    (Tiny ImageNet: as it is unpacked, val/val_annotations.txt is read).

    Raises InputError for an unknown name, a bad file or a download that fails.
    """
    name, root = dataset_name_and_root(name, root)
    file = root / f"{name}.npz"
    if name == "synthetic":
        return synthetic_dataset()
    if is_there(file):
        arrays, source, where = read_npz(file), file.name, str(file)
    elif (root / name / "train").is_dir():
        arrays, source, where = read_folder(root / name), f"{name}/", str(root / name)
    elif name in DOWNLOADS:
        arrays, source, where = download(name, root), "torchvision", name
    else:
        raise InputError(f"no data set {name!r}: use one of {KNOWN}, or put your own images into {file}")
    check_arrays(arrays, where)
    return Dataset(
        as_images(arrays["train_images"]),
        torch.from_numpy(arrays["train_labels"].astype(np.int64)),
        as_images(arrays["test_images"]),
        torch.from_numpy(arrays["test_labels"].astype(np.int64)),
        str(arrays.get("source", source)),
    )


def as_images(array: np.ndarray) -> Tensor:
    """uint8 N x H x W or N x H x W x C -> [N, C, H, W]."""
    pixels = torch.from_numpy(np.ascontiguousarray(array))
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels.permute(0, 3, 1, 2).contiguous()


def check_arrays(arrays: dict[str, np.ndarray], where: str) -> None:
    """The one check of images and labels, whichever way they came in. Raises InputError naming the first fault."""
    for split in SPLITS:
        check_images(arrays[f"{split}_images"], f"{where}: {split}_images")
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise InputError(
                f"{where}: {split}_labels is {labels.dtype} {labels.shape}; expected {len(images)} integers"
            )
    train_shape, test_shape = arrays["train_images"].shape[1:], arrays["test_images"].shape[1:]
    if train_shape != test_shape:
        raise InputError(f"{where}: train images are {train_shape}, test images {test_shape}; give one size")
    seen = np.unique(arrays["train_labels"])
    consecutive = seen[0] == 0 and seen[-1] == len(seen) - 1
    if not consecutive or not np.isin(arrays["test_labels"], seen).all():
        raise InputError(f"{where}: labels must be 0..classes-1, every class in train; train has {seen[:12].tolist()}")
    if len(seen) < 2:
        raise InputError(f"{where}: all training labels are 0; a classifier needs two classes at least")


def check_images(images: np.ndarray, what: str) -> None:
    """uint8, grey or RGB, channels last, not empty."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(f"{what} is {images.dtype} {images.shape}; expected uint8 N x H x W or N x H x W x C")
    if images.ndim == 3 or images.shape[3] in (1, 3):
        return
    if images.shape[1] in (1, 3):
        raise InputError(f"{what} is {images.shape}: channels first; give N x H x W x C")
    alpha = ": leave out the transparency" if images.shape[3] in (2, 4) else ""
    raise InputError(f"{what} has {images.shape[3]} channels; images must be grey (1) or RGB (3){alpha}")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Pickled objects in it are refused, never executed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            arrays = {key: file[key] for key in (*ARRAYS, "source") if key in file}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a readable npz of plain arrays ({error}); write it with numpy.savez") from None
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(ARRAYS)}")
    return arrays


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB, uint8 H x W x 3, turned upright by its EXIF orientation.

    Raises InputError for transparency that shows and for more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise InputError(f"{path} has more than 8 bits a channel; convert it to 8 bits")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            alpha = upright.convert("RGBA").getchannel("A")
            if alpha.getextrema()[0] < 255:
                raise InputError(f"{path} has transparent pixels; put it on a background first")
        return np.asarray(upright.convert("RGB"))


class LabelledFile(NamedTuple):
    """An image file and the name of its class."""

    path: Path
    label: str


def files_of_split(folder: Path) -> list[LabelledFile]:
    """The images in <class>/ folders, in the order of classes and names."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(folder)
    return [LabelledFile(Path(path), found.classes[k]) for path, k in found.samples]


def tiny_imagenet_files(folder: Path) -> list[LabelledFile]:
    """Of Tiny ImageNet's val/, whose classes are listed in a file."""
    annotations = folder / "val_annotations.txt"
    files = []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if len(words) < 2:
            raise InputError(f"{annotations}: expected a file and a class in each line, not {line[:40]!r}")
        files.append(LabelledFile(folder / "images" / words[0], words[1]))
    return files


def read_folder(root: Path) -> dict[str, np.ndarray]:
    """Images of one size from train/<class>/ and val/<class>/ or test/<class>/."""
    test = root / "test" if (root / "test").is_dir() and not (root / "val").is_dir() else root / "val"
    try:
        files = {"train": files_of_split(root / "train")}
        if (test / "val_annotations.txt").exists():
            files["test"] = tiny_imagenet_files(test)
        else:
            files["test"] = files_of_split(test)
        classes = sorted({file.label for file in files["train"]})
        number = {label: k for k, label in enumerate(classes)}
        arrays = {}
        for split in SPLITS:
            images = [read_image(file.path) for file in files[split]]
            sizes = {image.shape for image in images}
            if len(sizes) > 1:
                raise InputError(f"{root} is not a folder of images of one size: {split} has {sorted(sizes)[:4]}")
            unknown = {file.label for file in files[split]} - number.keys()
            if unknown:
                raise InputError(
                    f"{root}: the class {sorted(unknown)[0]!r} of {test.name}/ is not among those of train/"
                )
            arrays[f"{split}_images"] = np.stack(images)
            arrays[f"{split}_labels"] = np.array([number[file.label] for file in files[split]])
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{root}: expected images in train/<class>/ and val/<class>/ ({error})") from None
    return arrays


def download(name: str, root: Path) -> dict[str, np.ndarray]:
    """A data set of torchvision, downloaded into `root` if it isn't there."""
    import torchvision.datasets

    source = DOWNLOADS[name]
    kind = getattr(torchvision.datasets, source.kind)
    arrays = {}
    try:
        for split in SPLITS:
            part = kind(root, train=split == "train", download=True)
            arrays[f"{split}_images"] = np.asarray(part.data)
            arrays[f"{split}_labels"] = np.asarray(part.targets)
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"cannot download {name} ({reason}); fetch {source.files} on another machine ({address_of(kind)}) "
            f"and put it into {root / source.folder}, or write {root / name}.npz"
        ) from None
    return arrays


def address_of(kind) -> str:
    """Where a torchvision data set is downloaded from."""
    if hasattr(kind, "url"):
        return kind.url
    if hasattr(kind, "mirrors"):
        return kind.mirrors[0]
    return kind.split_list["train"][0]


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
    clean = 128 + 25 * patterns
    around = nn.functional.pad(clean, (8, 8, 8, 8), mode="circular")
    windows = around.unfold(2, 32, 1).unfold(3, 32, 1)  # [class, channel, row and column of a corner, 32, 32]
    shifted = windows[labels, :, 8 - shifts[:, 0], 8 - shifts[:, 1]]
    noise = torch.randn(shifted.shape, generator=generator)
    noisy = noise.mul_(50).add_(shifted)
    images = noisy.round_().clamp_(0, 255).to(torch.uint8)
    return Dataset(images[:training], labels[:training], images[training:], labels[training:], "generated")
