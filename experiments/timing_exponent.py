"""What the exponents of 100 pairs cost beside a gradient step, by the size of the maps that the neurons make."""

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapse import collapse_exponent, nearest_pairs, neuron_groups
from core import vgg16
from lib.settings import Count, Seed


class Case(NamedTuple):
    """A group of the VGG-16 and the side of its maps."""

    group: str
    side: int


CASES = (
    Case("features.2", 32),
    Case("features.7", 16),
    Case("features.12", 8),
    Case("features.19", 4),
    Case("features.26", 2),
    Case("classifier.2", 1),
)


def gradient_step(model: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.SGD) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def exponent_cost(
    rounds: Count = 5,
    pairs: Count = 100,
    width: Count = 16,
    batch_size: Count = 32,
    steps: Count = 5,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Processor seconds of a step of SGD on a narrow VGG-16, alone and with the exponents of the nearest `pairs` pairs.

    `rows`: a dict per case, medians over rounds in which both alternate: group, side of its maps, pairs (fewer where
    the group has not so many), seconds of a step alone and with exponents, and their ratio.
    """
    device = torch.device(device)
    torch.manual_seed(seed)
    model = vgg16(10, width).to(device)
    batch = (
        torch.randn(batch_size, 3, 32, 32, device=device),
        torch.randint(10, (batch_size,), device=device),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4)
    groups = {group.name: group for group in neuron_groups(model, batch[0][:2])}
    rows = []
    for case in CASES:
        sets = {case.group: nearest_pairs(groups[case.group], pairs)}
        alone, together = [], []
        for _ in range(rounds):
            begin = time.process_time()
            for _ in range(steps):
                gradient_step(model, batch, optimizer)
            middle = time.process_time()
            collapse_exponent(model, sets, [batch] * steps, optimizer)
            started = time.process_time()
            collapse_exponent(model, sets, [batch], optimizer)  # one step, and what following the network costs
            end = time.process_time()
            following = end - started
            alone.append((middle - begin) / steps)
            together.append((started - middle - following) / (steps - 1))
        row = {
            "group": case.group,
            "side": case.side,
            "pairs": len(sets[case.group]),
            "step_seconds": np.median(alone),
            "exponent_step_seconds": np.median(together),
        }
        row["ratio"] = row["exponent_step_seconds"] / row["step_seconds"]
        place = f"{case.group:14} maps {case.side:2} x {case.side:2}, {row['pairs']:3} pairs"
        print(f"{place}: a step takes {row['ratio']:.2f} times one without exponents", flush=True)
        rows.append(row)
    return {"rows": rows}
