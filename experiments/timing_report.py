"""What measuring a large network costs: following it, counting its neurons, and their effective rank."""

from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from collapse import collapse_report, neuron_groups
from experiments.timing import processor_seconds
from lib.settings import Count, Seed


class Spent(NamedTuple):
    """Processor seconds of one round."""

    forward: float  # one run of the network on an image: what the machine makes of arithmetic just now
    groups: float
    report: float
    report_with_rank: float


def one_round(model: nn.Module, example: Tensor) -> Spent:
    def run() -> None:
        with torch.no_grad():
            model(example)

    return Spent(
        processor_seconds(run),
        processor_seconds(lambda: neuron_groups(model, example)),
        processor_seconds(lambda: collapse_report(model, example, rank=False)),
        processor_seconds(lambda: collapse_report(model, example)),
    )


def report_cost(
    rounds: Count = 7,
    networks: tuple[str, ...] = ("resnet50", "vgg19_bn"),
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Processor seconds, medians over rounds: following the network, the report without the rank, and with it.

    `fastest`: the least of each over rounds, nearest to what an idle machine takes. `forwards`: the same in forward
    passes of one image of 224 x 224, timed in the same rounds, which moves less with the machine and its load.
    """
    rows = []
    for name in networks:
        torch.manual_seed(seed)
        model = getattr(torchvision.models, name)().to(device).eval()
        example = torch.zeros(1, 3, 224, 224, device=device)
        one_round(model, example)  # what only the first calls pay
        spent = np.array([one_round(model, example) for _ in range(rounds)])
        median = Spent(*np.median(spent, axis=0))
        fastest = Spent(*spent.min(axis=0))
        forwards = Spent(*np.median(spent / spent[:, :1], axis=0))
        print(
            f"{name}: groups {median.groups:.2f} s, "
            f"report {median.report:.2f} s ({forwards.report:.0f} forward passes), "
            f"with the rank {median.report_with_rank:.2f} s ({forwards.report_with_rank:.0f})",
            flush=True,
        )
        row = {"network": name, **median._asdict()}
        rows.append(row | {"fastest": fastest._asdict(), "forwards": forwards._asdict()})
    return {"rows": rows}
