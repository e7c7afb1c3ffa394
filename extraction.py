"""What the extracted networks of trained ones keep of accuracy and cost: `subnetworks.py extract`."""

import copy
import dataclasses
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import core
from collapse import extract_subnetwork
from core import Run, neuron_groups
from neurons import sgd_of, step_batches, trained_network
from training import Images, Team, evaluate, train


def plant_collapse(model: nn.Module, example: Tensor, seed: int = 0) -> int:
    """Put a network onto invariant sets: in each group a quarter of the neurons vanish, a quarter copy others.

    Changes `model` and returns how many neurons it has lost so. To try things on.
    """
    generator, lost = torch.Generator().manual_seed(seed), 0
    for group in neuron_groups(model, example):
        quarter = group.size // 4
        gone, copies, originals = torch.randperm(group.size, generator=generator)[: 3 * quarter].view(3, quarter)
        for slot in group.slots:
            tensor = slot.tensor.detach()
            rows = slot.read(tensor).clone()
            rows[copies], rows[gone] = rows[originals], 0.0
            slot.write(tensor, rows)
        lost += 2 * quarter
    return lost


def cost(model: nn.Module, images: Tensor) -> dict:
    """Parameters, FLOPs (two per multiply-add) and milliseconds per image (least of five rounds), in eval mode."""
    times = []
    with torch.no_grad():
        model.eval()
        with FlopCounterMode(display=False) as counter:
            model(images[:1])
        for _ in range(5):
            start = time.perf_counter()
            model(images).sum().item()
            times.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops(), "ms": 1000 * min(times) / len(images)}


def extract(
    runs: tuple = ("runs/vgg_cifar10",),
    redundant: tuple = (0.1, 0.3, 0.6),
    vanishing: float = 0.1,
    finetune: int = 200,
    learning_rate: float = 0.01,
    network: dict | None = None,
    planted: tuple = ("MLP", "VGG-16", "vgg11_bn", "resnet18"),
    data: str = "data",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """What the extracted networks of finished runs keep of accuracy and cost, at several thresholds.

    Fine-tuning: `finetune` steps of the run's own SGD at `learning_rate`, of the whole network and of each
    extracted one. First, networks with `planted` collapse (full width, untrained), where the function must not
    change. `network`: settings of a Run to train and use in place of `runs`.
    """
    device = torch.device(device)
    if finetune < 0 or not set(planted) <= {"MLP", "VGG-16", "vgg11_bn", "resnet18"}:
        raise ValueError("finetune must not be negative; planted are MLP, VGG-16, vgg11_bn and resnet18")
    with tempfile.TemporaryDirectory() as folder:
        if network:
            run = Run(**network, seed=seed)
            train(
                run, Images(core.load_dataset(run.dataset, data), run.dataset, device), Path(folder) / run.name, device
            )
        settings = [
            path for root in ([folder] if network else runs) for path in sorted(Path(root).rglob("settings.json"))
        ]
        last = [path.with_name(f"weights_{json.loads(path.read_text()).get('steps')}.pt") for path in settings]
        networks = [(p.parent.name, *trained_network(p.parent, None, device)) for p in last if p.exists()]  # finished
    if not networks:
        raise ValueError(
            f"no finished run below {', '.join(map(str, runs))}; train some:"
            " vgg_cifar10.py lr --width 8 --batch-size 128 --steps 20000 --eval-every 1000 --seeds 2"
        )
    exact, draw = [], torch.Generator().manual_seed(seed)
    mlp = [nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)]
    known = {
        "MLP": (lambda: nn.Sequential(*mlp), (40,)),
        "VGG-16": (core.vgg16, (3, 32, 32)),
        "vgg11_bn": (torchvision.models.vgg11_bn, (3, 32, 32)),
        "resnet18": (torchvision.models.resnet18, (3, 64, 64)),
    }
    torch.manual_seed(seed)
    for name in planted:
        model, shape = known[name][0](), known[name][1]
        x = torch.randn(4, *shape, generator=draw)
        lost, start = plant_collapse(model, x, seed), time.process_time()
        smaller = extract_subnetwork(model, x, 1e-6, 1e-6)
        row = {"name": name, "seconds": time.process_time() - start, "planted": lost}
        row["removed"] = sum(group["width"] - group["kept"] for group in smaller.extraction)
        with torch.no_grad():
            before, after = model.eval()(x), smaller.eval()(x)
        row |= {"change": (before - after).abs().max().item(), "scale": before.abs().max().item()}
        exact.append(row | {"parameters": [sum(p.numel() for p in net.parameters()) for net in (model, smaller)]})
    rows, images, done = [], {}, []
    for name, run, whole in networks:
        if run.start or dataclasses.replace(run, milestones=()) in done:
            continue  # a branch after a drop, or the same training with more milestones
        done.append(dataclasses.replace(run, milestones=()))
        if run.dataset not in images:
            images[run.dataset] = Images(core.load_dataset(run.dataset, data), run.dataset, device)
        pictures = images[run.dataset]
        x, tuned_run = pictures.normalized(pictures.test[:500]), dataclasses.replace(run, learning_rate=learning_rate)

        def tuned(model, run=tuned_run, pictures=pictures):
            model = copy.deepcopy(model).train()
            optimizer = sgd_of(model, run)
            for pixels, labels in step_batches(pictures, run, run.steps, run.steps + finetune):
                optimizer.zero_grad()
                F.cross_entropy(model(pixels), labels).backward()
                optimizer.step()
            return evaluate(model, pictures, Team(), "float32")[1]

        keys = ("learning_rate", "label_noise", "seed", "steps")
        fields = {"name": name} | {key: getattr(run, key) for key in keys}
        before = {"accuracy": evaluate(whole, pictures, Team(), "float32")[1], "tuned": tuned(whole)}
        for limit in redundant:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is unchanged is counted as such below
                smaller = extract_subnetwork(whole, x[:2], vanishing, limit)
            after = {"accuracy": evaluate(smaller, pictures, Team(), "float32")[1]} | cost(smaller, x)
            with torch.no_grad():
                change = (whole.eval()(x) - smaller(x)).abs().max().item(), whole(x).std().item()
            after |= {"tuned": tuned(smaller), "change": change[0], "scale": change[1], "groups": smaller.extraction}
            rows.append(fields | {"redundant": limit, "before": before | cost(whole, x), "after": after})
    return {"planted": exact, "networks": rows}
