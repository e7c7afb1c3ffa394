"""Sparse features: SGD with large steps, long enough, learns models that use few of their features.

Andriushchenko, Varre, Pillaud-Vivien & Flammarion, *SGD with Large Step Sizes Learns Sparse Features* (ICML 2023).
The loss stabilises at the noise of a large step; the longer that lasts, the lower the rank of the Jacobian and the
sparser the features. The published runs change height and divisor of the step with its duration; "clean" runs don't.

  diagonal     diagonal linear networks: SGD, GD and the effective SDE; steps as published and by a rule
               that transfers; the loss surface                                                    2 minutes
  regression   1-D regression, two-layer ReLU network of width 100                               half a minute
  relu         teacher-student, two and three layers                                             half a minute
  deep         ResNet-18 or -34, DenseNet-100-12, VGG-16 on images: torchrun and GPUs; one CPU core, 40 minutes:
               --width 8 --batch-size 128 --steps 2400 --evaluations 10 --small 0.05

  python sparse_features.py diagonal regression relu
  torchrun --nproc_per_node=7 sparse_features.py deep --recipe full --seeds 3

Every seed is a run in one tensor. Expect many of the published large steps to diverge: counted, never dropped.
"""

import math
from functools import partial

import numpy as np
import torch

import core
import sparse_networks
import sparse_toys as toys
from core import Run, load_dataset, run_script
from sparse_toys import mlp, moments, ramp, records

# ======================================================================================
# Diagonal linear networks
# ======================================================================================


def diagonal_runs(problems, groups, steps, points, order=None, ranks=True, **noise) -> list[dict]:
    """Records of `diagonal_walk`. `groups`: dicts with gamma, decay (share of the run, 0: never), divisor, delta."""
    x, test, target = (torch.stack(tensors) for tensors in zip(*problems, strict=True))
    y, y_test = ((matrix @ target[..., None])[..., 0] for matrix in (x, test))
    reduced = torch.linalg.qr(test[:, : 2 * x.shape[2]], mode="r")[1]  # singular values of test inputs * w, but square
    squares, times, looks = x.square(), moments(steps, points), []
    rank_times = toys.landmarks(steps, points)
    settings = [(g["gamma"], int(g["decay"] * steps) or -1, g["divisor"], g["delta"]) for g in groups]
    for t, p, q in toys.diagonal_walk(x, y, settings, times, order, **noise):
        product, size = (p * p - q * q) / 4, (p * p + q * q) / 2  # u v, and u^2 + v^2
        residual = product @ x.mT - y[:, None]
        pull = residual.square() * (size @ squares.mT)  # r_i^2 |phi_i|^2
        slope = (residual @ x / x.shape[1]).square() * size  # |grad L|^2
        look = {
            "train": residual.square().mean(-1) / 2,
            "test": (product @ test.mT - y_test[:, None]).square().mean(-1) / 2,
            "noise": pull.mean(-1) - slope.sum(-1),  # E |Phi^T xi|^2
            "jacobian": (size @ squares.sum(1)[..., None])[..., 0],  # |Phi|_F^2
            "l0": (product.abs() > 1e-50).double().sum(-1),
            "l0_coarse": (product.abs() > 1e-4).double().sum(-1),
            "norm": size.sum(-1).sqrt(),
            "balance": ((p + q).abs() - (p - q).abs()).norm(dim=-1) / 2,
        }
        broken = ~look["train"].isfinite()
        look |= {name: torch.where(broken, math.nan, value) for name, value in look.items()}
        if ranks and t in rank_times:
            rank = toys.jacobian_ranks(reduced[:, None] * size.sqrt()[..., None, :], (1e-15, 1e-4), gram=False)
            look["rank"], look["rank_coarse"] = rank
        looks.append(look)
    return records(groups, times, looks)


def diagonal(seeds=32, steps=100_001, data_seeds=8, points=40, seed=0, device="cpu") -> dict:
    """SGD on data A (80 examples, 200 dimensions), SGD and GD on data B (40, 100), the effective SDE on A.

    Records of groups of runs (`toys.records`): "sgd"; "sgd_b" (four times the seeds), "gd_b"; "sde" (half the seeds);
    "transfer", 8 SGD seeds on each of several data sets like A, with the published step and with the rule
    c / mean |grad h|^2. "surface": the loss in a plane; "cycle": the scalar model of stabilisation.
    """
    if min(seeds, steps // 100, data_seeds, points // 8) < 1:
        raise ValueError("seeds, data seeds: at least 1; points: 8; steps: 100")

    def group(name, gamma, decay=0.0, divisor=1.0, delta=0.0):
        return {"name": name, "gamma": gamma, "decay": decay, "divisor": divisor, "delta": delta}

    a, b = (tuple(t.to(device) for t in toys.diagonal_data(n, d, 20, seed)) for n, d in ((80, 200), (40, 100)))
    streams = range(seed + 1, seed + 1 + seeds)
    order_a = toys.orders(80, steps, streams).to(device)
    order_b = toys.orders(40, steps, range(seed + 1, seed + 1 + 4 * seeds)).to(device)  # most diverge there
    published = [group("published", 0.282, *drop) for drop in ((0.1, 4.8), (0.3, 3.4), (0.5, 1.5))]
    clean = [group("clean", 0.27, decay, 4.8) for decay in (0.1, 0.3, 0.5)]
    small = [group("small", 0.05), group("published small", 0.25)]
    found = {"sgd": diagonal_runs([a], small + published + clean, steps, points, order_a)}
    rule = toys.stable_gamma(1.65, b[0], b[2])
    runs = [group("small", 0.05), group("published", 0.272, 0.5, 20.0), group("rule", rule, 0.5, 20.0)]
    found["sgd_b"] = diagonal_runs([b], runs, steps, points, order_b)
    runs = [group("small", 2.0), *(group("published", 3.53, *drop) for drop in ((0.1, 4.8), (0.3, 3.4), (0.5, 1.5)))]
    found["gd_b"] = diagonal_runs([b], runs, steps, points, seeds=1)
    runs = [
        group("true", 0.05, delta="true"),
        group("true", 0.25, delta="true"),
        group("true", 0.282, 0.5, 4.8, "true"),
    ]
    runs += [group("constant", 0.282, decay, 1.0, 0.04) for decay in (0.1, 0.3, 0.5)]
    runs += [group("constant", 0.282, 0.5, 1.0, 0.01)]
    draw = torch.Generator().manual_seed(seed)
    found["sde"] = diagonal_runs([a], runs, steps, points, generator=draw, seeds=max(seeds // 2, 1))
    several = [tuple(t.to(device) for t in toys.diagonal_data(80, 200, 20, k)) for k in range(seed, seed + data_seeds)]
    gammas = {c: torch.tensor([toys.stable_gamma(c, x, target) for x, _, target in several]) for c in (0.33, 1.65)}
    runs = [
        group("published", 0.282, 0.3, 4.8),
        group("rule", gammas[1.65], 0.3, 4.8),
        group("small rule", gammas[0.33]),
    ]
    found["transfer"] = diagonal_runs(several, runs, steps, points, order_a[:, :8], ranks=False)
    found |= {"times": moments(steps, points), "rank_times": toys.landmarks(steps, points)}
    found["surface"] = toys.surface(2 * seeds, points, seed)
    levels = (0.9, 0.95, 1.02, 1.05, 1.08, 1.1, 1.13, 1.16, 1.2, 1.23)
    return found | {"cycle": {"a": levels, "losses": toys.cycles(levels)}}


# ======================================================================================
# ReLU networks
# ======================================================================================


def relu_runs(problem, groups, steps, points, order, correlation, extra=()):
    """Records of `mlp_walk`, the parameters [G, K, P] at the times `extra`, and those at the end.

    `problem`: net, start theta [K, P], train x, y, test x, y, and inputs [K, P, d] of the Jacobian whose rank is taken.
    """
    net, start, x, y, x_test, y_test, inputs = problem
    keys = ("gamma", "peak", "power", "decay", "divisor")
    rate = np.stack([toys.rates(steps, *(g[key] for key in keys)) + np.zeros(len(x)) for g in groups], 1)
    times, looks, kept = moments(steps, points), [], []
    for t, theta in toys.mlp_walk(start, x, y, rate, order, {*times, *extra}, net):
        if t in extra:
            kept.append(theta.clone())
        if t not in times:
            continue
        (f, hidden, _), (f_test, *_) = mlp(theta, x, *net, False), mlp(theta, x_test, *net, False)
        look = {"train": (f - y).square().mean(-1), "test": (f_test - y_test).square().mean(-1)}
        look |= {f"sparsity_{k + 1}": toys.sparsities(one, correlation) for k, one in enumerate(hidden)}
        look["rank"] = torch.stack([toys.jacobian_ranks(mlp(one, inputs, *net)[2], (1e-4,))[0] for one in theta])
        looks.append({name: torch.where(look["train"].isfinite().cpu(), v.cpu(), math.nan) for name, v in look.items()})
    return records(groups, times, looks), kept, theta


def regression(seeds=32, steps=31_623, points=16, seed=0, device="cpu") -> dict:
    """Twelve points on a line, two layers of width 100, large initialisation; feature sparsity at correlation 0.999.

    Published: the warm-up factor is f times the duration, so that the peak grows with its square. Clean: peak and
    duration apart. "functions" [6 times, groups, 121] on "grid", of the first seed that two schedules fit ("shown").
    """
    if min(seeds, steps // 100, points // 4) < 1:
        raise ValueError("seeds must be at least 1, points 4, steps 100")
    x = (torch.arange(12, dtype=torch.float64, device=device)[:, None] - 5.5) / 4 + 0.07
    y = 0.345 + torch.tensor([-2, 1.5, 0, 0, 2, 1, 0, -1, 0, 1, 2, -1], dtype=x.dtype, device=device)
    draws = [np.random.RandomState(k) for k in range(seed, seed + seeds)]
    start = [np.concatenate([d.choice([-2.5, 2.5], 100), 2.5 * d.randn(100), 4 * d.randn(100)]) for d in draws]
    order = torch.from_numpy(np.stack([d.randint(12, size=steps) for d in draws], 1)).to(device)
    inputs = torch.from_numpy(np.stack([d.uniform(-1.305, 1.445, (300, 1)) for d in draws])).to(x)
    gamma, net = 2e-4, ((1, 100, 1), (True, False))
    groups = []
    for f, share, divisor in ((400, 0.02, 2.5), (400, 0.5, 3.0), (500, 0.5, 3.0)):
        groups.append(ramp(f"published {f}", gamma, share, divisor, gamma * (1 + (f * share - 1) * share)))
    low, high = groups[0]["peak"], groups[1]["peak"]
    groups += [ramp("clean", gamma, share, 3.0, high) for share in (0.02, 0.1, 0.3, 0.5)]
    groups += [ramp("clean low", gamma, share, 3.0, low) for share in (0.02, 0.5)]
    x, y = x.expand(seeds, 12, 1), y.expand(seeds, 12)
    problem = net, torch.from_numpy(np.stack(start)).to(x), x, y, x, y, inputs
    strip = [t * steps // 31_623 for t in (99, 420, 1300, 6500, 15_000, 31_000)]
    found, kept, _ = relu_runs(problem, groups, steps, points, order, 0.999, strip)
    grid = torch.linspace(-1.5, 1.6, 121, dtype=x.dtype, device=x.device)
    fit = torch.stack([group["final"]["train"] < 0.05 for group in found[:2]]).all(0)
    shown = int(fit.int().argmax())  # the first
    functions = [mlp(theta[:3, shown], grid[:, None], *net, False)[0] for theta in kept]
    return {"times": moments(steps, points), "groups": found, "grid": grid, "strip_times": strip,
            "functions": torch.stack(functions), "shown": shown, "x": x[0, :, 0], "y": y[0]}  # fmt: skip


def relu(seeds=64, steps=14_126, deep_steps=10_001, points=16, seed=0, device="cpu") -> dict:
    """Teacher-student: 2-20-1 on the circle, 15 examples; 5-10-10-1 on the sphere, 50; teacher and data of each seed.

    Two layers, "edge": the largest of a grid of steps with which that seed survives half the run; the same divisor for
    all durations. Three layers, "clean": the same peak and divisor. "neurons" of the first seed: w |a|, signs of a.
    """
    if min(seeds, steps // 100, deep_steps // 100, points // 4) < 1:
        raise ValueError("seeds must be at least 1, points 4, steps 100")

    two, order, teacher = toys.students(toys.two_layers, steps, range(seed, seed + seeds), device)
    ladder = np.array([0.2, 0.25, 0.3, 0.35, 0.4, 0.455, 0.52, 0.6])
    rate = np.repeat(ladder[None, :, None], steps, 0) + np.zeros(seeds)
    *_, (_, tried) = toys.mlp_walk(*two[1:4], rate, order, [steps // 2], two[0])
    survived = tried.isfinite().all(-1).cpu().numpy()  # [ladder, seeds]
    edge = np.where(survived.any(0), ladder[len(ladder) - 1 - survived[::-1].argmax(0)], ladder[0])
    groups = [ramp("small", 0.13)]
    groups += [ramp("published", 0.455, *drop) for drop in ((0.1, 2.0), (0.3, 4.0), (0.5, 5.0))]
    groups += [ramp("edge", edge, decay, 4.0) for decay in (0.1, 0.3, 0.5)]
    found, _, theta = relu_runs(two, groups, steps, points, order, 0.99)
    shown = {"teacher": teacher[0], "start": two[1][0], "small": theta[0, 0], "edge": theta[6, 0]}
    three, order, _ = toys.students(toys.three_layers, deep_steps, range(seed, seed + seeds), device)
    groups = [ramp("small", 0.011)]
    for decay, divisor in ((0.1, 3.5), (0.3, 2.5), (0.5, 5.0)):
        groups.append(ramp("published", 0.04, decay, divisor, 0.04 * (1 + 5 * math.sqrt(decay)), 0.5))
    groups += [ramp("clean", 0.04, decay, 3.5, groups[2]["peak"], 0.5) for decay in (0.1, 0.3, 0.5)]
    deeper, *_ = relu_runs(three, groups, deep_steps, points, order, 0.99)
    return {
        "two": found,
        "two_times": moments(steps, points),
        "ladder": ladder,
        "survived": survived.sum(1),
        "edge": edge,
        "three": deeper,
        "three_times": moments(deep_steps, points),
        "neurons": {name: toys.neurons(one) for name, one in shown.items()},
    }


# ======================================================================================
# Deep networks
# ======================================================================================


def deep(
    model="resnet18", dataset="cifar10", data="data", recipe="plain", small=None, decays=(0.1, 0.3, 0.5),
    width=64, batch_size=256, steps=19_500, evaluations=50, seeds=1, precision="auto", images=21 * 512,
    runs="runs/sparse_features", seed=0, device="cpu",
) -> dict | None:  # fmt: skip
    """Train deep networks with small and large steps; feature sparsity of each block along the way.

    Returns a record per run: schedule, decay, seed, settings, and by columns what `core.train` and
    `sparse_networks.measure` log. None on torchrun ranks other than 0.
    """
    if model not in sparse_networks.NETWORKS:
        raise ValueError(f"no network {model!r}: choose from {', '.join(sparse_networks.NETWORKS)}")
    if min(width, batch_size, steps, evaluations, seeds) < 1 or width % 2 or steps < evaluations:
        raise ValueError("width (even), batch size, steps, evaluations and seeds must be positive")
    if not all(0 < decay < 0.9 for decay in decays) or (small is not None and small <= 0):
        raise ValueError("decays are shares of the run between 0 and 0.9; the small step is positive")
    torch.set_float32_matmul_precision("high")  # TF32 where there is no bfloat16
    base = {"model": f"plain-{model}", "dataset": dataset, "width": width, "batch_size": batch_size, "steps": steps}
    base |= {"eval_every": steps // evaluations, "precision": precision, "warmup_steps": 0, "normalize": False}
    planned = {
        (*key, one): Run(**base, **fields, seed=one)
        for key, fields in sparse_networks.schedules(recipe, steps, small, tuple(decays)).items()
        for one in range(seed, seed + seeds)
    }
    loaded = core.first_rank_first(lambda: load_dataset(dataset, data), torch.device(device))
    distinct = list(dict.fromkeys(planned.values()))  # the clean and the published run may be the same
    options = {"build": sparse_networks.build, "measure": partial(sparse_networks.measure, images=images)}
    trained = core.sweep(distinct, loaded, runs, torch.device(device), **options)
    if trained is None:
        return None
    found = []
    for (schedule, decay, one), run in planned.items():
        record = trained[0][distinct.index(run)]
        columns = {key: [line[key] for line in record["log"]] for key in (record["log"] or [{}])[0]}
        peak = max(core.learning_rate_at(run, t) for t in range(steps))
        about = {"schedule": schedule, "decay": decay, "seed": one, "peak": peak, "seconds": record["seconds"]}
        found.append(about | columns | {"diverged_at": record["diverged_at"]})
    return {"source": loaded.source, "blocks": sparse_networks.BLOCKS[model], "runs": found}


def main(argv: list[str] | None = None) -> None:
    quick = {
        "diagonal": {"seeds": 4, "steps": 3001, "data_seeds": 2, "points": 16},
        "regression": {"seeds": 4, "steps": 1000, "points": 8},
        "relu": {"seeds": 4, "steps": 1000, "deep_steps": 1000, "points": 8},
        "deep": {"dataset": "synthetic", "width": 4, "batch_size": 64, "steps": 20, "evaluations": 2, "decays": (0.3,),
                 "images": 256, "runs": "runs/quick/sparse_features"},
    }  # fmt: skip
    deep_only = {
        "model": {"help": "resnet18 (default), resnet34, densenet100, vgg16"},
        "recipe": {
            "choices": list(sparse_networks.RECIPES),
            "help": "plain (default) or full: momentum, decay, augmentation",
        },
        "dataset": {
            "help": "cifar10 (default), cifar100, synthetic, or what is in --data: NAME.npz, NAME/train/<class>/"
        },
        "data": {"help": "folder of the data (default: data)"},
        "small": {"type": float, "help": "the small step (default: 0.01, full: 0.002)"},
        "decays": {"type": float, "nargs": "+", "help": "decay times as shares of the run (default: 0.1 0.3 0.5)"},
        "width": {"type": int, "help": "of the networks (default: 64)"},
        "batch_size": {"type": int, "help": "default: 256"},
        "evaluations": {"type": int, "help": "in each run (default: 50)"},
        "precision": {"choices": ["auto", "float32"], "help": "auto (default): bfloat16 where the device has it"},
        "runs": {"help": "folder of checkpoints and logs (default: runs/sparse_features)"},
    }
    options = {name: about | {"help": f"deep: {about['help']}"} for name, about in deep_only.items()}
    options["steps"] = {"type": int, "help": "length of the runs (defaults: the paper's)"}
    options["seeds"] = {"type": int, "help": "number of seeds (defaults: 32, 32, 64, 1)"}
    experiments = {"diagonal": diagonal, "regression": regression, "relu": relu, "deep": deep}
    run_script(__doc__, experiments, quick, argv, prefix="sparse_", options=options)


if __name__ == "__main__":
    main()
