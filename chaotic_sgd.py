"""Chaotic dynamics of SGD: prune the locally chaotic directions from every step; perturb, and watch copies part.

Herrmann, Granz & Landgraf, *Chaotic Dynamics are Intrinsic to Neural Network Training with SGD* (NeurIPS 2022).
A direction with Hessian eigenvalue w of the step's mini-batch is locally chaotic if |1 - lr w| > 1: w < 0 or > 2 / lr.
CGD leaves these out of the step. Spectra are exact. Cost on one core, and training accuracy to expect (5 seeds):

  pruning      Figures 1, 2: SGD .85, CGD chaotic or neg .25, pos .81              32 minutes, 16 shared with delay
  delay        Figure 2: CGD from step 10,000 .76, 5,000 .49, 2,000 .38, 0 .25       50 minutes
  divergence   Figure 3: copies 0.1 apart end 0.005 (most convergent) to 1.0 apart   14 minutes, 13 shared with subspace
  subspace     global Lyapunov exponents, up to 1.6e-4 a step; chaotic subspace      13 minutes

  python chaotic_sgd.py delay --seeds 1     one seed of figure 2, ten minutes

USPS is downloaded, or read from data/usps.npz (--quick: generated images). Finished pieces stay in runs/chaotic_sgd
and aren't computed again.
"""

import hashlib
import json
import math
import time
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from core import load_dataset, progress, run_script
from curvature import accuracies, curvature, eigh, initial, losses, project, tangent_step
from training import load_state, save_atomically

BIN = 100  # steps that make one point of a curve
CURVES = ("loss", "accuracy", "kept", "eigenvalue_min", "eigenvalue_max", "negative")
EDGE = 1e-6  # Lyapunov eigenvalues this close to 1 are neither chaotic nor the opposite


def setup(dataset, data, task, steps, batch_size, seeds, device):
    """Train images [N, 257], labels, test images, labels, order [S, epochs, N]; parameters [S, P], momentum 0 [S, P].

    Images: 16 x 16 by bilinear resizing without antialiasing, colours averaged, standardised by train's mean and std.
    """
    if min(steps, batch_size, len(seeds)) < 1:
        raise ValueError("steps, batch size and seeds must be at least 1")
    loaded = load_dataset(dataset, data)
    if loaded.num_classes > 10:
        raise ValueError(f"{dataset} has {loaded.num_classes} classes; the paper's networks tell 10 apart")
    grey = [images.double().mean(1, keepdim=True) for images in (loaded.train_images, loaded.test_images)]
    small = [F.interpolate(images, size=16, mode="bilinear").flatten(1) for images in grey]
    train, test = (F.pad((images - small[0].mean()) / small[0].std(), (0, 1), value=1.0) for images in small)
    epochs, orders = steps // -(-len(train) // batch_size) + 1, []
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        orders.append(torch.stack([torch.randperm(len(train), generator=draw) for _ in range(epochs)]))
    problem = train, loaded.train_labels, test, loaded.test_labels, torch.stack(orders)
    theta = torch.stack([initial(seed, task) for seed in seeds]).to(device)
    return [tensor.to(device) for tensor in problem], (theta, torch.zeros_like(theta))


def sgd(problem, state, span, label, *, task, batch_size, learning_rate, momentum):
    """Yield each step t of S networks in lockstep before it's taken: t, state, (x, y), gradient, loss, accuracy.

    Whoever takes them may change the gradient [S, P] in place: that's how CGD and the tests steer.
    """
    (images, labels, _, _, order), (theta, velocity) = problem, state
    for t in tqdm(span, desc=label, unit="step", **progress):
        epoch, i = divmod(t, -(-len(images) // batch_size))
        index = order[:, epoch, i * batch_size : (i + 1) * batch_size]
        x, y = images[index].expand(len(theta), -1, -1), labels[index].expand(len(theta), -1)
        leaf = theta.detach().requires_grad_()
        value, accuracy = losses(leaf, x, y, task)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if not torch.isfinite(value).all():
            raise ValueError(f"the loss is not finite at step {t}: lower the learning rate")
        yield t, (theta, velocity), (x, y), gradient, value.detach(), accuracy
        velocity = momentum * velocity + gradient
        theta = theta - learning_rate * velocity


def keep_mask(w: Tensor, lr: float, prune: str, k: int | None = None, rule: str = "top_abs", generator=None) -> Tensor:
    """Which eigen-directions of a Hessian with eigenvalues w [n] stay in CGD's step: bool [n] (theorem 2.2, cgd.py).

    `prune`: chaotic keeps |1 - lr w| <= 1, i.e. 0 <= w <= 2 / lr; neg keeps w > 0; pos keeps w < 0. With `k` at most
    k of the others go: the most chaotic, smallest or largest (`top_abs`), or drawn with replacement (`rand`).
    """
    keep = {"chaotic": (1 - lr * w).square() <= 1, "neg": w > 0, "pos": w < 0}[prune]
    members = (~keep).nonzero()[:, 0]
    if k is None or len(members) == 0:
        return keep
    if rule == "rand":
        chosen = torch.randint(len(members), (k,), generator=generator).to(w.device)
    else:
        extent = {"chaotic": (1 - lr * w).square(), "neg": -w, "pos": w}[prune]
        chosen = extent[members].argsort(descending=True, stable=True)[:k]
    return torch.ones_like(keep).index_fill_(0, members[chosen], False)


def train(problem, state, start, prune, *, steps, seeds, k=None, rule="top_abs", noise=None, starts=(), **settings):
    """S networks from step `start` to `steps`, by SGD if `prune` is None, else by CGD: states at `starts`, and curves.

    `noise`: the pruned components become normal noise of this size, or of each network's mean |g_i| if "mean".
    """
    began, states, epochs = time.perf_counter(), {}, []
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    per_step = torch.full((len(CURVES), steps - start, len(seeds)), math.nan, dtype=torch.float64)
    per_epoch, lr = -(-len(problem[0]) // settings["batch_size"]), settings["learning_rate"]
    walk = sgd(problem, state, range(start, steps + 1), f"{prune or 'sgd'} from {start}", **settings)
    for t, (theta, velocity), batch, gradient, value, accuracy in walk:
        if t in starts:
            states[t] = theta, velocity
        if t > start and (t % per_epoch == 0 or t == steps):
            epochs.append([accuracies(theta, *images, settings["task"]) for images in (problem[:2], problem[2:4])])
        if t == steps:
            break
        per_step[:2, t - start] = torch.stack([value, accuracy])
        if prune is None and t % BIN:  # along SGD: what pruning would keep, now and then
            continue
        hessian, *maps = curvature(theta, *batch, settings["task"])
        w, v = eigh(hessian)
        pairs = zip(w, generators, strict=True)
        keep = torch.stack([keep_mask(one, lr, prune or "chaotic", k, rule, draw) for one, draw in pairs])
        pruned = project(gradient, keep, v, *maps)
        share = pruned.square().sum(1) / gradient.square().sum(1)
        per_step[2:, t - start] = torch.stack([share, w[:, 0], w[:, -1], (w < -1e-12).sum(1)])
        if prune and noise is not None:
            draws = torch.stack([torch.randn(theta.shape[1], generator=draw) for draw in generators]).to(w)
            flat = prune != "chaotic" and k is None  # then directions without curvature are pruned too
            draws = draws - project(draws, keep, v, *maps) if flat else project(draws, ~keep, v, *maps)
            pruned += draws * (gradient.abs().mean(1, keepdim=True) if noise == "mean" else noise)
        if prune:
            gradient.copy_(pruned)
    bins = F.pad(per_step, (0, 0, 0, -per_step.shape[1] % BIN), value=math.nan).unflatten(1, (-1, BIN))
    curves = dict(zip(CURVES, bins.nanmean(2), strict=True)) | {"seconds": time.perf_counter() - began}
    curves["largest_eigenvalue"] = per_step[CURVES.index("eigenvalue_max")].nan_to_num(-math.inf).amax(0)
    curves["train_accuracy"], curves["test_accuracy"] = (torch.stack(one) for one in zip(*epochs, strict=True))
    return states, curves


def lyapunov(problem, state, *, steps, checkpoints, draws, seed, **settings) -> dict:
    """Eigenpairs of the global Lyapunov matrix L = Y^T Y at the checkpoints; Y: the product of the steps' tangent maps.

    Y is propagated whole, in float32 (singular values under about 1e-5 are rounding), by blocks of columns. Returns
    exponents log(eigenvalue) / 2t [checkpoints, P]; dimensions [checkpoints, 2] of the chaotic and the non-chaotic
    subspace (eigenvalues above and below 1); similarity |V^T W|^2 / min(dim V, dim W), its random baseline
    max(dim V, dim W) / P and that of random eigenvectors [3, checkpoints, checkpoints, 2, 2]; unit directions
    [2 + 3 draws, P] of perturbations at step 0: most chaotic, random chaotic, most and random convergent, random.
    """
    rates, size = (settings["learning_rate"], settings["momentum"]), state[0].shape[1]
    columns = [block[None].contiguous() for block in torch.eye(size, device=state[0].device).split(256, 1)]
    velocities = [torch.zeros_like(block) for block in columns] if rates[1] else columns
    window, exponents, subspaces = [], [], []
    for t, (theta, _), (x, y), *_ in sgd(problem, state, range(steps + 1), "Lyapunov", **settings):
        if len(window) == 50 or t in checkpoints:
            for v, dv in zip(columns, velocities, strict=True):
                for step in window:
                    tangent_step(v, dv, *step, *rates)
            window = []
        if t in checkpoints:
            product = torch.cat(columns, -1)[0].double()
            w, v = torch.linalg.eigh(product.T @ product)
            exponents.append(w.clamp_min(1e-300).log() / (2 * t))
            subspaces.append((torch.stack([w > 1 + EDGE, w < 1 - EDGE]).float(), v.float()))
        if t < steps:
            window.append(curvature(theta.float(), x.float(), y, settings["task"]))
    draw = torch.Generator().manual_seed(seed)
    similarity = torch.zeros(3, len(subspaces), len(subspaces), 2, 2)
    for i, j in combinations_with_replacement(range(len(subspaces)), 2):
        (a, v1), (b, v2) = subspaces[i], subspaces[j]
        overlap, dims = (v1.T @ v2).square(), (a.sum(1)[:, None], b.sum(1)[None])
        mixed = [one[:, torch.randperm(size, generator=draw).to(v.device)] for one in (a, b)]
        least, baseline = torch.minimum(*dims).clamp_min(1), torch.maximum(*dims) / size
        same = torch.stack([a @ overlap @ b.T / least, baseline, mixed[0] @ overlap @ mixed[1].T / least]).cpu()
        similarity[:, i, j], similarity[:, j, i] = same, same.mT
    normal = torch.randn(draws, size, generator=draw, dtype=torch.float64).to(v)
    chaotic, convergent = (normal @ v * mask @ v.T for mask in subspaces[-1][0])
    directions = F.normalize(torch.cat([v.T[-1:], chaotic, v.T[:1], convergent, normal]), dim=1).cpu()
    found = {"exponents": torch.stack(exponents), "dimensions": torch.stack([one.sum(1) for one, _ in subspaces])}
    return {key: value.cpu() for key, value in found.items()} | {"similarity": similarity, "directions": directions}


def stored(folder: str | None, settings: dict, compute, device):
    """compute(), or what an earlier, perhaps interrupted, run with the same settings left in `folder`."""
    if folder is None:
        return compute()
    path = Path(folder) / (hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16] + ".pt")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(path, compute())
    return load_state(path, torch.device(device))


def pruning(
    variants=("sgd", "chaotic@0", "pos@0", "neg@0"), k=None, rule="top_abs", noise=None, dataset="usps", data="data",
    architecture="mlp", activation="sigmoid", learning_rate=1e-3, momentum=0.0, batch_size=8, steps=18240, seeds=5,
    runs="runs/chaotic_sgd", seed=0, device="cpu",
) -> dict:  # fmt: skip
    """Figures 1 and 2: SGD beside CGD. A variant set@start is SGD up to step `start`, then CGD pruning that set.

    All variants of a seed share initial parameters and batches. Returns per variant the means over bins of 100 steps
    [bins, seeds] of batch loss, batch accuracy, kept share of |g|^2, extreme Hessian eigenvalues and number of
    negative ones, and the accuracy on all images after each epoch [epochs, seeds].
    """
    common = {"task": (architecture, activation), "batch_size": batch_size, "learning_rate": learning_rate}
    common |= {"momentum": momentum, "steps": steps, "seeds": list(range(seed, seed + seeds))}
    problem, state = setup(dataset, data, common["task"], steps, batch_size, common["seeds"], device)
    if learning_rate <= 0 or (k or 0) < 0 or rule not in ("top_abs", "rand"):
        raise ValueError("learning rate must be positive, k not negative, rule top_abs or rand")
    parsed = {}
    for name in variants:
        prune, _, start = name.partition("@")
        if prune not in ("sgd", "chaotic", "neg", "pos") or not (start or "0").isdecimal() or int(start or 0) >= steps:
            raise ValueError(f"no variant {name} in {steps} steps: use sgd, chaotic@0, neg@0, pos@0 or a later start")
        parsed[name] = prune, int(start or 0)
    starts = sorted({start for _, start in parsed.values()})
    identity, rules = common | {"dataset": dataset, "data": str(data)}, {"k": k, "rule": rule, "noise": noise}
    compute = partial(train, problem, state, 0, None, starts=starts, **common)
    states, sgd_curves = stored(runs, identity | {"starts": starts}, compute, device)
    result = {"sgd": sgd_curves}
    for name, (prune, start) in parsed.items():
        twin = result.get(f"chaotic@{start}")
        if prune == "neg" and twin and k is noise is None and twin["largest_eigenvalue"].max() < 2 / learning_rate:
            result[name] = twin | {"same_as": f"chaotic@{start}"}  # no direction was chaotic but the negative ones
        elif prune != "sgd":
            compute = partial(train, problem, states[start], start, prune, **rules, **common)
            result[name] = stored(runs, identity | rules | {"prune": prune, "start": start}, compute, device)[1]
    labels = problem[1].bincount() / len(problem[1])
    return {"bin": BIN, "epoch": -(-len(problem[1]) // batch_size), "largest_class": labels.max(), "runs": result}


def subspace(
    checkpoints=(10, 1000, 5000, 10000), draws=5, perturbation=None, dataset="usps", data="data",
    architecture="mlp", activation="sigmoid", learning_rate=1e-3, momentum=0.0, batch_size=8, steps=18240,
    runs="runs/chaotic_sgd", seed=0, device="cpu",
) -> dict:  # fmt: skip
    """Global Lyapunov exponents along an SGD run, and how its chaotic and its other subspace turn: see `lyapunov`.

    With a `perturbation` (Figure 3) instead: how far from the run copies get that start at this distance in each of
    its directions and see the same batches; `distance`, and `tangent` in the linearised dynamics [times, copies].
    """
    common = {"task": (architecture, activation), "batch_size": batch_size, "learning_rate": learning_rate}
    common |= {"momentum": momentum}
    problem, state = setup(dataset, data, common["task"], steps, batch_size, [seed], device)
    full = {"steps": steps, "draws": draws, "seed": seed} | common
    full["checkpoints"] = sorted({t for t in checkpoints if 0 < t < steps} | {steps})
    identity = full | {"dataset": dataset, "data": str(data)}
    found = stored(runs, identity, partial(lyapunov, problem, state, **full), device)
    found |= {"times": full["checkpoints"]}
    directions, exponents = found.pop("directions").to(device), found["exponents"]
    if perturbation is None:
        ranks = torch.linspace(0, exponents.shape[1] - 1, 200).long()
        return found | {"ranks": ranks, "exponents": exponents[:, ranks]}
    theta, v = state[0] + perturbation * F.pad(directions, (0, 0, 1, 0)), perturbation * directions.T[None].contiguous()
    copies, dv, seen = (theta, torch.zeros_like(theta)), torch.zeros_like(v), []
    for t, (theta, _), (x, y), *_ in sgd(problem, copies, range(steps + 1), "perturbed copies", **common):
        if t % max(steps // 365, 1) == 0 or t == steps:
            seen.append((torch.tensor(t), (theta[1:] - theta[:1]).norm(dim=1), v[0].norm(dim=0)))
        if t == steps:
            break
        tangent_step(v, dv, *curvature(theta[:1], x[:1], y[:1], common["task"]), learning_rate, momentum)
    copies = {"max_chaos": 1, "randn_chaos": draws, "max_convergence": 1, "randn_convergence": draws, "randn": draws}
    kinds = [kind for kind, count in copies.items() for _ in range(count)]
    result = {"kinds": kinds, "exponents": exponents[-1, [0, -1]]}
    result["times"], result["distance"], result["tangent"] = (torch.stack(one) for one in zip(*seen, strict=True))
    return result | {"accuracy": [accuracies(theta, *images, common["task"]) for images in (problem[:2], problem[2:4])]}


def number_or_mean(text: str) -> float | str:
    """What --noise takes."""
    return text if text == "mean" else float(text)


delay = partial(pruning, variants=("sgd", "chaotic@10000", "chaotic@5000", "chaotic@2000", "chaotic@0"))
divergence = partial(subspace, perturbation=0.1)
OPTIONS = {
    "variants": {"nargs": "+", "help": "in pruning and delay: sgd and any of chaotic, neg, pos @ first step pruned"},
    "k": {"type": int, "help": "prune at most k directions per step (default: all of the set)"},
    "rule": {"choices": ["top_abs", "rand"], "help": "which k: the extreme ones, or random ones (default: top_abs)"},
    "noise": {"type": number_or_mean, "help": "put normal noise of this size, or "
              "of the gradient's mean |g_i| with `mean`, into each pruned direction (default: none)"},
    "seeds": {"type": int, "help": "networks in pruning and delay, from --seed on (default: 5)"},
    "dataset": {"help": "usps, fashion_mnist, mnist, synthetic, or the stem of an npz file in --data (default: usps)"},
    "data": {"help": "folder of the images (default: data)"},
    "architecture": {"choices": ["mlp", "cnn"], "help": "the paper's MLP 256-20-10 or CNN (default: mlp)"},
    "activation": {"choices": ["sigmoid", "relu"], "help": "default: sigmoid, with which Figure 2 looks as published"},
    "learning_rate": {"type": float, "help": "default: 0.001; results depend on learning rate x steps alone, nearly"},
    "momentum": {"type": float, "help": "default: 0"},
    "batch_size": {"type": int, "help": "default: 8; the MLP's Hessian is 336 x 336 then, 20 b + 189 from b = 9 on"},
    "steps": {"type": int, "help": "default: 18240, 20 epochs of USPS at batch size 8"},
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    small = {"dataset": "synthetic", "steps": 200, "runs": None}
    tiny = small | {"architecture": "cnn", "steps": 8, "draws": 2, "checkpoints": (4,)}
    quick = {"pruning": small | {"seeds": 2}, "divergence": tiny, "subspace": tiny}
    quick["delay"] = small | {"seeds": 2, "variants": ("sgd", "chaotic@100", "chaotic@0")}
    experiments = {"pruning": pruning, "delay": delay, "divergence": divergence, "subspace": subspace}
    run_script(__doc__, experiments, quick, argv, options=OPTIONS)


if __name__ == "__main__":
    main()
