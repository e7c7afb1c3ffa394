"""Whether exponents tell who merges or vanishes, and why: `subnetworks.py exponent`, `vanishing` and `causes`."""

import copy
import dataclasses
import itertools
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import core
from collapse import NeuronGroup, collapse_exponent, nearest_pairs
from core import Run, neuron_groups, normalized_distances, progress
from neurons import sgd_of, step_batches, trained_network
from theory import log_growth
from training import Images, train

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


NETWORK = {  # narrow, and noisy enough that neurons merge within minutes
    "learning_rate": 0.05,
    "batch_size": 32,
    "steps": 24_000,
    "width": 8,
    "eval_every": 1000,
    "milestones": tuple(range(2000, 24_001, 2000)),
}


def closeness(groups: list[NeuronGroup], index: Tensor) -> Tensor:
    """[groups, sets]: pairs' normalised distances, or neurons' squared norms relative to the largest of the group."""
    if index.ndim == 2:
        return torch.stack([normalized_distances(group.vectors()) for group in groups])[:, index[:, 0], index[:, 1]]
    squares = torch.stack([group.vectors().square().sum(1) for group in groups])
    return (squares / squares.amax(1, keepdim=True))[:, index]


def forecast(kind, network, early, window, pairs, layers, seeds, data, folder, seed, device):
    """What `exponent` and `vanishing` measure in each seed's network, for `kind` pairs or neurons.

    Each network is trained to the end. From its weights at step `early` SGD goes on for two windows (with the run's
    batches, in float32, momentum from zero) with the exponents of the nearest `pairs`, or of all neurons, in each of
    the last `layers` groups: those of the first window predict the slope in the same and in the next one, and who has
    arrived (at the paper's thresholds) at the end of the run itself. All rates are per 1,000 steps.
    Returns the result, and what `step_times` needs of the first network.
    """
    if min(pairs, seeds, layers, window) < 1:
        raise ValueError("pairs, seeds, layers and window must be at least 1")
    device, result = torch.device(device), {"runs": []}
    images = Images(core.load_dataset(Run(**network).dataset, data), Run(**network).dataset, device)
    threshold = 0.1 if kind == "pairs" else 0.1**2
    for k in range(seeds):
        run = Run(**network, seed=seed + k)
        path = Path(folder) / run.name
        train(run, images, path, device)
        model = trained_network(path, early, device)[1]
        moments = [early, *(step for step in run.milestones if step > early)]
        history = [
            neuron_groups(trained_network(path, step, device)[1], images.normalized(images.test[:2]))
            for step in moments
        ]
        sets, distances, arrived = {}, [], []
        for groups in zip(*(groups[-layers:] for groups in history), strict=True):
            size = groups[0].size
            every = torch.arange(size) if kind == "neurons" else torch.triu_indices(size, size, 1).T
            sets[groups[0].name] = index = every if kind == "neurons" else nearest_pairs(groups[0], pairs)
            distances.append(closeness(groups, index)[[0, -1]])
            arrived.append((closeness(groups, every) < threshold).sum(1))
        batches = step_batches(images, run, early, early + 2 * window)
        batches = tqdm(batches, f"exponents of {kind}, {k + 1} of {seeds}", 2 * window, **progress)
        found = collapse_exponent(model, sets, batches, sgd_of(model, run))
        logs, first = found["log_distance"], window // 5
        late = slice(first, window)
        measured = {
            "settings": dataclasses.asdict(run),
            "groups": {name: len(index) for name, index in sets.items()},
            "index": torch.cat(list(sets.values())),
            "threshold": threshold,
            "distance": torch.cat(distances, 1).round(decimals=4),  # at step `early` and at the end
            "steps": moments,
            "merged": torch.stack(arrived, 1),
            "predicted": per_thousand(found["growth"][late].mean(0)),
            "same": per_thousand((logs[window] - logs[first]) / (window - first)),
            "next": per_thousand((logs[-1] - logs[window]) / (window - 1)),
        }
        result["runs"].append(measured)
        if k == 0:
            result["parts"] = {key: per_thousand(found[key]) for key in ("exponent", "curvature", "noise", "decay")}
            state = model, sets, images, run, early
    return result, state


def exponent(
    network: dict = NETWORK,
    early: int = 6000,
    window: int = 1000,
    pairs: int = 250,
    layers: int = 4,
    seeds: int = 2,
    steps: int = 4000,
    pair_steps: int = 10_000,
    data: str = "data",
    folder: str = "runs/subnetworks",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Predicted and measured slopes of the log distance of pairs in a training network; who merges later; why.

    The closed forms (`closed_forms`), what `forecast` measures of the nearest pairs, and the processor time of a
    gradient step, and of one with the exponents of 100 pairs.
    """
    found, state = forecast("pairs", network, early, window, pairs, layers, seeds, data, folder, seed, device)
    return {"closed": closed_forms(steps, pair_steps, seed), **found, "cost": step_times(*state)}


NOISY = NETWORK | {  # label noise strong enough that neurons vanish, the first of them at step 13,000
    "label_noise": 0.6,
    "batch_size": 128,
    "steps": 20_000,
    "milestones": tuple(range(2000, 20_001, 2000)),
}


def vanishing(
    network: dict = NOISY,
    early: int = 6000,
    window: int = 1000,
    layers: int = 15,
    seeds: int = 2,
    data: str = "data",
    folder: str = "runs/subnetworks",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Who vanishes: what `forecast` measures of all neurons, long before the first has gone, under label noise.

    A vanishing set is linearised at zero, where the neurons of a layer obey the same equation: what differs is the
    direction that each has, and how long it takes to turn.
    """
    return forecast("neurons", network, early, window, 1, layers, seeds, data, folder, seed, device)[0]


def step_times(model, sets, images, run, early) -> dict:
    """Median seconds of a gradient, and of one with exponents of the nearest 100 pairs of the last group.

    Of the processor, which another program doesn't disturb; on a GPU of the clock on the wall.
    """

    def now():
        if images.train.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() if images.train.is_cuda else time.process_time()

    sets = {name: index[:100] for name, index in list(sets.items())[-1:]}
    spent = {"gradient": [], "exponent": []}
    for _ in range(5):
        batches, sgd = list(step_batches(images, run, early, early + 10)), sgd_of(model, run)
        start = now()
        for x, y in batches:
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
        middle = now()
        collapse_exponent(model, sets, batches, sgd, frozen=True)
        spent["gradient"].append((middle - start) / 10)
        spent["exponent"].append((now() - middle) / 10)
    return {key: sorted(times)[2] for key, times in spent.items()} | {"pairs": len(*sets.values())}


def causes(
    network: dict = NETWORK,
    early: int = 6000,
    pairs: int = 100,
    layers: int = 2,
    batch_sizes: tuple = (32, 512, 50_000),
    weight_decays: tuple = (0.0, 5e-4),
    steps: int = 150,
    replicas: tuple = (32, 8, 1),
    chunk: int = 250,
    data: str = "data",
    folder: str = "runs/subnetworks",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Exponents where training goes on with more or less noise, down to none, with and without weight decay.

    From the weights of `exponent`'s first network at step `early`, momentum from zero, `steps` steps with each batch
    size and weight decay; `replicas` draw different batches. A batch of the whole training set is the same at each
    step (the crops of one epoch): no noise at all. The nearest `pairs` pairs of each of the last `layers` groups.
    What is finished stays in the run's folder. Rates are per 1,000 steps: [replicas] means over the pairs, and
    `by_pair` the exponents' means over replicas.
    """
    device, run = torch.device(device), Run(**network, seed=seed)
    images, rows = Images(core.load_dataset(run.dataset, data), run.dataset, device), []
    path = Path(folder) / run.name
    train(run, images, path, device)
    start = trained_network(path, early, device)[1]
    groups = neuron_groups(start, images.normalized(images.test[:2]))[-layers:]
    sets = {group.name: nearest_pairs(group, pairs) for group in groups}
    for (size, count), decay in itertools.product(zip(batch_sizes, replicas, strict=True), weight_decays):
        size, begin, found = min(size, len(images.train)), time.perf_counter(), []
        row = {"batch_size": size, "weight_decay": decay, "steps": steps, "replicas": count, "early": early}
        row |= {"pairs": pairs, "layers": layers}
        kept = path / ("causes_" + "_".join(f"{key}={value}" for key, value in row.items()) + ".json")
        for k in range(0 if kept.exists() else count):
            settings = dataclasses.replace(run, batch_size=size, weight_decay=decay, seed=seed + k)
            whole = size == len(images.train)
            batches = step_batches(images, settings, 0, 1 if whole else steps)
            batches = itertools.repeat(next(batches), steps) if whole else batches
            batches = tqdm(batches, f"batch {size}, decay {decay:g}, {k + 1} of {count}", steps, **progress)
            model = copy.deepcopy(start)
            found.append(collapse_exponent(model, sets, batches, sgd_of(model, settings), chunk=chunk))
        if found:
            rates = {
                key: torch.stack([one[key] for one in found]) for key in ("exponent", "curvature", "noise", "decay")
            }
            row |= {key: per_thousand(values.mean(1)) for key, values in rates.items()}
            row |= {"by_pair": per_thousand(rates["exponent"].mean(0)), "seconds": time.perf_counter() - begin}
            core.write_json(kept, row)
        rows.append(json.loads(kept.read_text()))
    return {"run": dataclasses.asdict(run), "rows": rows}
