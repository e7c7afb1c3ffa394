"""What measuring a large network costs: following it, counting its neurons, and their effective rank."""

import time

import numpy as np
import torch
import torchvision

from collapse import collapse_report, neuron_groups
from lib.settings import Count, Seed


def report_cost(
    rounds: Count = 3,
    networks: tuple[str, ...] = ("resnet50", "vgg19_bn"),
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Processor seconds, medians over rounds: the groups alone, the report without the rank, and the report with it."""
    rows = []
    for name in networks:
        torch.manual_seed(seed)
        model = getattr(torchvision.models, name)().to(device)
        example = torch.zeros(1, 3, 224, 224, device=device)
        spent = []
        for _ in range(rounds):
            marks = [time.process_time()]
            neuron_groups(model, example)
            marks.append(time.process_time())
            collapse_report(model, example, rank=False)
            marks.append(time.process_time())
            collapse_report(model, example)
            marks.append(time.process_time())
            spent.append(np.diff(marks))
        groups, report, ranked = np.median(spent, axis=0)
        print(f"{name}: groups {groups:.2f} s, report {report:.2f} s, with the rank {ranked:.2f} s", flush=True)
        rows.append({"network": name, "groups": groups, "report": report, "report_with_rank": ranked})
    return {"rows": rows}
