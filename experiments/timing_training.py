"""How fast a training step is, against the plain way, and which share of the processor's matrix rate it reaches.

The plain way: torchvision's transforms in a DataLoader, float32, eager, the default layout, one `.item()` a step.
"""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import core
from experiments.timing import compare
from lib.batches import Images
from lib.data import Dataset
from lib.precision import autocast, resolve_precision
from lib.run_folder import RunFolder
from lib.settings import Count, Seed
from lib.teams import ALONE


class TransformedImages(torch.utils.data.Dataset):
    """Images as torchvision's tutorials load them: one by one, through PIL."""

    def __init__(self, dataset: Dataset, length: int):
        from torchvision import transforms

        self.dataset, self.length = dataset, length
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self):
        return self.length

    def __getitem__(self, k):
        k = k % len(self.dataset.train_images)
        return self.transform(self.dataset.train_images[k]), int(self.dataset.train_labels[k])


def clock(device: torch.device) -> float:
    """Processor seconds; on a GPU the wall's, when all that is queued is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(way, device: torch.device):
    """A way that returns the seconds it took."""

    def seconds() -> float:
        start = clock(device)
        way()
        return clock(device) - start

    return seconds


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, images, labels) -> float:
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def matrix_rate(device: torch.device, size: int = 2048) -> float:
    """Multiplications and additions per second in a product of two square matrices, in the training's precision."""
    square = torch.randn(size, size, device=device)

    def product():
        with autocast(device, "auto"):
            square @ square

    product()
    seconds = [timed(product, device)() for _ in range(5)]
    return 2 * size**3 / np.median(seconds)


def training(
    rounds: Count = 3,
    steps: Count = 20,
    widths: tuple[Count, ...] = (8, 16, 64),
    wide_steps: Count = 2,
    batch_size: Count = 128,
    seed: Seed = 0,
    device="cpu",
) -> dict:
    """A VGG-16's step at several widths, on generated images. At width 64 only `wide_steps` a round.

    For each width: seconds of the plain way and ours for a round, their ratio and its range; `data_share`: part of a
    step spent on order, crops, flips and labels; `images_per_second`; `small_maps_speedup`: how many times as long the
    network takes with torch's own convolutions everywhere (on a CPU in bfloat16; elsewhere they are its own);
    `matrix_share`: of the rate of a 2048 x 2048 matrix product; `evaluation_steps`: cost of an evaluation with its
    collapse report, in steps.
    """
    device = torch.device(device)
    rows = []
    for width in widths:
        number = wide_steps if width >= 64 else steps
        print(f"width {width}: ", end="", flush=True)
        rows.append(training_at(width, rounds, number, batch_size, seed, device))
    return {"precision": resolve_precision("auto", device), "matrix_rate": matrix_rate(device), "widths": rows}


def training_at(width: int, rounds: int, steps: int, batch_size: int, seed: int, device: torch.device) -> dict:
    dataset = core.load_dataset("synthetic")
    data = Images(dataset, "synthetic", device)
    run = core.Run(dataset="synthetic", width=width, batch_size=batch_size, learning_rate=0.01, steps=10**6, seed=seed)
    precision = resolve_precision("auto", device)
    ours = core.Training(run, data, RunFolder("unused"), device, ALONE, precision)
    ours.start_stepping()

    torch.manual_seed(seed)
    model = core.vgg16(10, width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(TransformedImages(dataset, batch_size * steps), batch_size, shuffle=True)

    def plain_steps():
        for images, labels in loader:
            plain_step(model, optimizer, images.to(device), labels.to(device))

    def our_steps():
        for _ in range(steps):
            ours.take_step()

    fixed_images, fixed_labels = ours.next_batch()

    def network_alone(precision_of_step=autocast):
        for _ in range(steps):
            with precision_of_step(device, precision):
                output = ours.model(fixed_images)
            loss = F.cross_entropy(output.float(), fixed_labels)
            ours.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            ours.optimizer.step()

    def network_with_torchs_convolutions():
        network_alone(lambda device, precision: torch.autocast(device.type, enabled=precision == "bfloat16"))

    def data_alone():
        for _ in range(steps):
            ours.next_batch()

    def evaluation():
        core.evaluate(ours.model, data, ALONE, precision)
        core.collapse_report(groups)

    network_alone()  # what only the first steps pay
    network_with_torchs_convolutions()
    result = compare(timed(plain_steps, device), timed(our_steps, device), timed(network_alone, device), rounds)
    groups = core.neuron_groups(ours.model, fixed_images[:1])
    seconds_a_step = result["seconds"] / steps
    by_torch = []
    for _ in range(rounds):
        by_torch.append(timed(network_with_torchs_convolutions, device)() / timed(network_alone, device)())
    with FlopCounterMode(display=False) as counter:
        ours.take_step()
    rate = matrix_rate(device)
    return result | {
        "width": width,
        "steps": steps,
        "seconds_a_step": seconds_a_step,
        "images_per_second": batch_size / seconds_a_step,
        "data_share": timed(data_alone, device)() / steps / seconds_a_step,
        "matrix_share": counter.get_total_flops() / seconds_a_step / rate,
        "small_maps_speedup": np.median(by_torch),
        "evaluation_steps": timed(evaluation, device)() / seconds_a_step,
    }
