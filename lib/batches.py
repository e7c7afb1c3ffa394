"""Images on the device as uint8, and their batches: shuffled, cropped, flipped, relabelled and gathered in one go.

Everything random about an epoch is a pure function of (seed, epoch), so a training can go on anywhere.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import Dataset
from lib.errors import InputError

STATISTICS = {  # the paper's channel means and standard deviations
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
MARGIN = 4  # pixels of black around each image, from which crops are cut
SMALLEST, LARGEST = 32, 64  # side of the images that networks see


class Epoch(NamedTuple):
    """An epoch's examples, in order; N is a multiple of the batch size.

    crops   int64 [N, 2]: where each crop starts (a flat index of pixels) and its step along a row (1, or -1 if flipped)
    labels  int64 [N]
    """

    crops: Tensor
    labels: Tensor


class Images:
    """A data set resident on the device as uint8, channels last, with a margin: a batch is one gather.

    Grey images get three equal channels, images smaller than 32 x 32 a black frame. `size`: 32, or
    the longer side of larger images, up to 64 (Tiny ImageNet; VGG-16 of core needs 32).
    Raises InputError for larger images, or other channels than grey or RGB.
    """

    def __init__(self, dataset: Dataset, name: str, device: torch.device):
        channels, height, width = dataset.train_images.shape[1:]
        if channels not in (1, 3) or max(height, width) > LARGEST:
            raise InputError(
                f"{name}: images must be grey or RGB and at most {LARGEST} x {LARGEST}, not {(channels, height, width)}"
            )
        self.size = max(SMALLEST, height, width)
        self.padded_size = self.size + 2 * MARGIN
        self.train = self.framed(dataset.train_images, MARGIN).to(device)
        self.test = self.framed(dataset.test_images, 0).to(device)
        self.train_labels = dataset.train_labels.to(device)
        self.test_labels = dataset.test_labels.to(device)
        self.classes = dataset.num_classes
        self.content_hash = dataset.content_hash
        mean, std = self.statistics(name)
        self.mean, self.std = mean.to(device), std.to(device)

    def framed(self, images: Tensor, margin: int) -> Tensor:
        """[N, C, H, W] -> [N, full, full, 3], in the middle of a black frame; full = size + 2 margin."""
        height, width = images.shape[2:]
        full = self.size + 2 * margin
        top = margin + (self.size - height) // 2
        left = margin + (self.size - width) // 2
        padded = F.pad(images.expand(-1, 3, -1, -1), (left, full - width - left, top, full - height - top))
        return padded.permute(0, 2, 3, 1).contiguous()

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, on the scale 0..255."""
        if name in STATISTICS:
            mean, std = STATISTICS[name]
            return torch.tensor(mean) * 255, torch.tensor(std) * 255
        pixels = self.plain_train(len(self.train)).float().cpu()
        return pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)).clamp_min(1.0)

    def plain_train(self, count: int) -> Tensor:
        """uint8 [count, size, size, 3]: the first training images, without their margin."""
        inner = slice(MARGIN, MARGIN + self.size)
        return self.train[:count, inner, inner]

    def prepared(self, normalize: bool = True, dtype: torch.dtype = torch.float32) -> "Images":
        """The same images, for which `normalized` yields `dtype`; without `normalize`, on the scale [0, 1]."""
        other = copy.copy(self)
        if not normalize:
            other.mean, other.std = torch.zeros_like(self.mean), torch.full_like(self.std, 255.0)
        other.mean, other.std = other.mean.to(dtype), other.std.to(dtype)
        return other

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] -> float [B, 3, size, size], channels last in memory."""
        return ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        augment: bool = True,
        flip: bool = True,
        label_noise: float = 0.0,
    ) -> Epoch:
        """All that is random in an epoch: the order, the crops and flips (if `augment`), the labels.

        A label is replaced with probability `label_noise` by a uniformly drawn other class.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        count = len(self.train) // batch_size * batch_size
        order = torch.randperm(len(self.train), generator=generator)[:count]
        centre = torch.full((2, count), MARGIN)
        shift = torch.randint(2 * MARGIN + 1, (2, count), generator=generator) if augment else centre
        mirrored = torch.rand(count, generator=generator) < 0.5
        if not (augment and flip):
            mirrored = torch.zeros_like(mirrored)
        wrong = torch.rand(count, generator=generator) < label_noise
        other_class = torch.randint(1, self.classes, (count,), generator=generator)

        row, column = shift
        corner = order * self.padded_size**2 + row * self.padded_size + column
        first = corner + torch.where(mirrored, self.size - 1, 0)  # a flipped row is read from its right end
        direction = torch.where(mirrored, -1, 1)

        device = self.train.device
        right = self.train_labels[order.to(device)]
        noisy = (right + other_class.to(device)) % self.classes
        labels = torch.where(wrong.to(device), noisy, right)
        return Epoch(torch.stack([first, direction], 1).to(device), labels)

    def batch(self, crops: Tensor) -> Tensor:
        """uint8 [B, size, size, 3] for crops [B, 2] of an `Epoch`."""
        grid = torch.arange(self.size, device=crops.device)
        first, direction = crops[:, 0, None, None], crops[:, 1, None, None]
        down = self.padded_size * grid[None, :, None]
        along = direction * grid[None, None, :]
        pixels = first + down + along
        gathered = self.train.view(-1, 3).index_select(0, pixels.flatten())
        return gathered.view(-1, self.size, self.size, 3)
