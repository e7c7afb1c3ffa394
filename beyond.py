"""The experiments of subnetworks.py on trained networks: what extraction keeps, whether exponents tell who merges.

Run them with subnetworks.py.
"""

import copy
import dataclasses
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import core
from core import Run, neuron_groups, normalized_distances
from neurons import cost, plant_collapse, sgd_of, step_batches, trained_network
from subnetworks import collapse_exponent, extract_subnetwork
from theory import log_growth
from training import Images, Team, evaluate, train

# ======================================================================================
# Extract
# ======================================================================================


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
        raise ValueError(f"no finished run below {', '.join(map(str, runs))}; train some: vgg_cifar10.py lr --width 8")
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

        fields = {"name": name, "learning_rate": run.learning_rate, "seed": run.seed, "steps": run.steps}
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


# ======================================================================================
# Predict
# ======================================================================================


def closed_forms(steps: int, pair_steps: int, seed: int) -> list[dict]:
    """The exponent where it is known: quartic well, single neuron, and the two neurons of toy_models.py.

    The quartic well is the neuron w2 w1 x at x = 1 with label mu + noise: (w1 w2 - mu)^2 / 2 along w1 = w2. Here and
    for the single neuron, whose maps commute, the one direction of the label noise that acts takes its quantiles in
    random order, anew in each fifth of the steps: the same law with less scatter. The two neurons start 1e-6
    apart, and their own distance is followed on the same label noise.
    """
    draw, rows = torch.Generator().manual_seed(seed), []

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def neurons(width, activation, first, second):
        model = nn.Sequential(nn.Linear(1, width, bias=False), activation, nn.Linear(width, 1, bias=False)).double()
        for layer, values in ((model[0], first), (model[2], second)):
            layer.weight.data.copy_(torch.tensor(values, dtype=torch.float64).view_as(layer.weight))
        return model

    def half_square(output, labels):
        return (output - labels).square().mean() / 2

    x = normal(32, 1)
    y = x + 0.1 * normal(32, 1)
    one, known = torch.ones(1, 1, dtype=torch.float64), (float((x * y).mean()), float((x * x).mean()))
    cases = [("quartic", zeta, 0.0025, nn.Identity(), one, 1.5 * one, 1.5, zeta) for zeta in (1.0, 1.7321, 2.5)]
    cases += [("neuron", eta, 0.01, nn.Tanh(), x, y, known[0], (eta * known[1]) ** 0.5) for eta in (1.0, 2.0, 4.0)]
    for case, level, step, activation, x, y, drift, noise in cases:
        quantiles = torch.special.ndtri((torch.arange(steps // 5, dtype=torch.float64) + 0.5) / (steps // 5))
        quantiles /= quantiles.square().mean().sqrt()
        kicks = torch.cat([quantiles[torch.randperm(steps // 5, generator=draw)] for _ in range(5)])
        kicks = torch.cat([kicks, kicks[:1]])  # the exponent leaves out the last step
        size = level / step**0.5 if case == "quartic" else (level * len(x) / step) ** 0.5
        batches = [(x, y + size * kick * x / x.norm()) for kick in kicks]
        model = neurons(1, activation, [1e-9], [1e-9])  # along the axis that grows most
        sets, sgd = {"0": torch.tensor([0])}, torch.optim.SGD(model.parameters(), step)
        found = collapse_exponent(model, sets, batches, sgd, half_square, blocks=10)
        rows.append(
            {"case": case, "level": level, "exponent": found["exponent"] / step, "error": found["error"] / step}
        )
        rows[-1]["expected"] = float(log_growth(drift, noise, step)[0][0])
    torch.manual_seed(0)
    x, _, y, _ = (torch.randn(8, 1).double() for _ in range(4))  # the reference's data: x, x test, y, y test
    for rate, level in ((0.1, 0.1), (0.2, 0.1), (0.3, 0.1), (0.1, 0.2)):
        model = neurons(2, nn.GELU(), [0.8 + 1e-6, 0.8], [-0.5, -0.5])
        sets, sgd = {"0": torch.tensor([[0, 1]])}, torch.optim.SGD(model.parameters(), rate, 0.9)
        found = collapse_exponent(
            model, sets, [(x, y + level * normal(8, 1)) for _ in range(pair_steps)], sgd, half_square, blocks=8
        )
        distance, first = found["log_distance"][:, 0], pair_steps // 5
        last = int((distance > -25).int().cumprod(0).sum()) - 1  # above rounding
        row = {
            "case": "pair",
            "learning_rate": rate,
            "level": level,
            "error": found["error"],
            "rate": found["exponent"],
        }
        row["exponent"] = found["growth"][first:last, 0].mean()
        rows.append(row | {"expected": (distance[last] - distance[first]) / (last - first)})
    return rows


def per_thousand(rates: torch.Tensor) -> torch.Tensor:
    """Rates per 1,000 steps, with the digits that a result needs."""
    return (1000 * rates).round(decimals=4)


def causes(start, sets, images, run, early, steps, calm_steps, calm_batch) -> tuple[dict, dict]:
    """Exponents with and without noise and weight decay; and what a step of 100 pairs costs.

    Training goes on from the network `start` for `steps` steps, or `calm_steps` steps of batches of `calm_batch` images
    where noise is taken away; last, the network is kept fixed. The nearest 100 pairs of each of the last two groups.
    """
    sets, found = {name: index[:100] for name, index in list(sets.items())[-2:]}, {}
    for name, noise, decay in (
        ("both", 1, 1),
        ("no decay", 1, 0),
        ("no noise", 0, 1),
        ("neither", 0, 0),
        ("fixed", 1, 1),
    ):
        settings = dataclasses.replace(run, weight_decay=run.weight_decay * decay)
        settings = settings if noise else dataclasses.replace(settings, batch_size=calm_batch)
        count, first = (steps, early) if noise else (calm_steps, 0)
        model, batches = copy.deepcopy(start), step_batches(images, settings, first, first + count)
        exponents = collapse_exponent(model, sets, batches, sgd_of(model, settings), frozen=name == "fixed")
        found[name] = {key: per_thousand(exponents[key]).mean() for key in ("error", "curvature", "noise", "decay")}
        found[name]["exponent"] = per_thousand(exponents["exponent"])
    model = start
    one, spent = dict(list(sets.items())[-1:]), {"gradient": [], "exponent": []}
    for _ in range(5):
        batches, sgd = list(step_batches(images, run, early, early + 10)), sgd_of(model, run)
        start = time.process_time()
        for x, y in batches:
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
        middle = time.process_time()
        collapse_exponent(model, one, batches, sgd, frozen=True)
        spent["gradient"].append((middle - start) / 10)
        spent["exponent"].append((time.process_time() - middle) / 10)
    return found, {key: sorted(times)[2] for key, times in spent.items()} | {"pairs": len(next(iter(one.values())))}


NETWORK = {  # narrow, and noisy enough that neurons merge within minutes
    "learning_rate": 0.05,
    "batch_size": 32,
    "steps": 24_000,
    "width": 8,
    "eval_every": 1000,
    "milestones": tuple(range(2000, 24_001, 2000)),
}


def exponent(
    network: dict = NETWORK,
    early: int = 6000,
    window: int = 1000,
    pairs: int = 250,
    layers: int = 4,
    seeds: int = 2,
    cause_steps: int = 1000,
    calm_steps: int = 300,
    calm_batch: int = 512,
    steps: int = 4000,
    pair_steps: int = 10_000,
    data: str = "data",
    folder: str = "runs/subnetworks",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Predicted and measured slopes of the log distance of pairs in a training network; who merges later; why.

    Each seed's network (settings `network`) is trained to the end. From its weights at step `early` SGD goes on for two
    windows (with the run's batches, in float32, momentum from zero) with the exponents of the nearest `pairs` in each
    of the last `layers` groups: those of the first window predict the slope in the same and in the next one, and who
    has merged (normalised distance below 0.1) at the end of the run itself. All rates are per 1,000 steps. See
    `causes` for the rest.
    """
    device = torch.device(device)
    result = {"closed": closed_forms(steps, pair_steps, seed), "runs": []}
    for k in range(seeds):
        run = Run(**network, seed=seed + k)
        images = Images(core.load_dataset(run.dataset, data), run.dataset, device)
        path = Path(folder) / run.name
        train(run, images, path, device)
        model = trained_network(path, early, device)[1]
        moments = [early, *(step for step in run.milestones if step > early)]
        history = [
            neuron_groups(trained_network(path, step, device)[1], images.normalized(images.test[:2]))
            for step in moments
        ]
        sets, distances, merged = {}, [], []
        for groups in zip(*(groups[-layers:] for groups in history), strict=True):
            size = groups[0].size
            one, two = torch.triu_indices(size, size, 1, device=device)
            paths = torch.stack([normalized_distances(group.vectors())[one, two] for group in groups])
            nearest = paths[0].argsort()[:pairs]
            sets[groups[0].name] = torch.stack([one, two], 1)[nearest]
            distances.append(paths[[0, -1]][:, nearest])
            merged.append((paths < 0.1).sum(1))  # of all pairs of the group
        start = copy.deepcopy(model)
        found = collapse_exponent(model, sets, step_batches(images, run, early, early + 2 * window), sgd_of(model, run))
        logs, first = found["log_distance"], window // 5
        late = slice(first, window)
        measured = {
            "settings": dataclasses.asdict(run),
            "groups": {name: len(index) for name, index in sets.items()},
            "index": torch.cat(list(sets.values())),
            "distance": torch.cat(distances, 1).round(decimals=4),  # at step `early` and at the end
            "steps": moments,
            "merged": torch.stack(merged, 1),
            "predicted": per_thousand(found["growth"][late].mean(0)),
            "same": per_thousand((logs[window] - logs[first]) / (window - first)),
            "next": per_thousand((logs[-1] - logs[window]) / (window - 1)),
        }
        result["runs"].append(measured)
        if k == 0:
            result["parts"] = {key: per_thousand(found[key]) for key in ("exponent", "curvature", "noise", "decay")}
            result["causes"], result["cost"] = causes(
                start, sets, images, run, early, cause_steps, calm_steps, calm_batch
            )
    return result
