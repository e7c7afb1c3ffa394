"""The toy models of *Sparse Features*: SGD in closed form, all runs in one tensor; a room of sparse_features.py.

diagonal_data, orders, stable_gamma, diagonal_walk    h(x) = <u * v, x>: SGD, GD, the effective SDE
rates, mlp, mlp_walk                                  ReLU networks of any depth with one output
jacobian_ranks, sparsities, cycles                    what is measured; the scalar model of stabilisation
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core import feature_sparsity


def diagonal_data(n: int, d: int, r: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d], test x [1000, d] and theta* [d] with r entries above 0, norm 1. The reference's stream."""
    draw = np.random.RandomState(seed)
    x, test = (draw.multivariate_normal(np.zeros(d), np.eye(d), size) for size in (n, 1000))
    target = abs(draw.randn(d) * (np.arange(d) < r))
    return tuple(torch.from_numpy(array) for array in (x, test, target / np.linalg.norm(target)))


def orders(n: int, steps: int, seeds) -> Tensor:
    """[steps, seeds]: which example each step takes, with replacement, from numpy's streams; the reference's is 1."""
    return torch.from_numpy(np.stack([np.random.RandomState(seed).randint(n, size=steps) for seed in seeds], 1))


def stable_gamma(c: float, x: Tensor, target: Tensor) -> float:
    """c / mean_i |grad h(x_i)|^2 at u = v = sqrt(theta*): the step size in units that transfer between data sets."""
    return c / (x.square() @ (2 * target)).mean().item()


def diagonal_walk(x, y, groups, times, order=None, generator=None, seeds=0, start=0.1):
    """Yield (t, p, q) before step t, for each t in `times`: p = u + v and q = u - v, float64 [G, D, K, d].

    For G `groups` of settings, D data sets x [D, n, d], y [D, n] and K random streams. A group: gamma (a number, or one
    per data set [D]), step after which it is divided, by what, delta. With `order` [steps, K] SGD on one example a
    step, loss (h - y)^2 / 2. Without, the effective SDE in Euler steps of gamma (notes of the paper, eq. 8):
    theta -= gamma grad L - gamma sqrt(2 delta / n) Phi^T z, z ~ N(0, I_n) from `generator`, the same for all groups;
    delta: a number until the division and then 0 (0: plain GD), or "true": the loss L itself.

    As a step adds -s v to u and -s u to v, it multiplies p by 1 - s and q by 1 + s: u^2 - v^2 = p q by 1 - s^2.
    """
    (data, n, d), streams = x.shape, seeds if order is None else order.shape[1]
    gamma = torch.stack([torch.as_tensor(g[0], dtype=x.dtype).expand(data) for g in groups])[..., None, None].to(x)
    delta = torch.tensor([math.nan if g[3] == "true" else g[3] for g in groups], dtype=x.dtype)[:, None, None, None]
    p = torch.full((len(groups), data, streams, d), start, dtype=x.dtype, device=x.device)
    q, product, scratch = p.clone(), torch.empty_like(p), torch.empty_like(p)
    times, last, delta, drops = {*times}, max(times), delta.to(x), {}
    for k, group in enumerate(groups):
        drops.setdefault(group[1], []).append(k)
    for t in range(last + 1):
        if t in times:
            yield t, p, q
        if t == last:
            return
        torch.mul(p, p, out=product).addcmul_(q, q, value=-1).mul_(0.25)  # u v
        if order is not None:
            rows = x[:, order[t]]
            residual = torch.mul(product, rows, out=scratch).sum(-1, keepdim=True).sub_(y[:, order[t], None])
            torch.mul(rows, residual.mul_(gamma), out=scratch)
        else:
            residual = product @ x.mT - y[:, None]
            level = torch.where(delta.isnan(), residual.square().mean(-1, keepdim=True), 2 * delta) / n
            kick = torch.randn(data, streams, n, generator=generator, dtype=x.dtype).to(x.device)
            scratch = (residual / n).addcmul_(level.sqrt(), kick, value=-1).mul_(gamma) @ x
        p.addcmul_(p, scratch, value=-1)
        q.addcmul_(q, scratch)
        for k in drops.get(t, ()):
            gamma[k] /= groups[k][2]
            delta[k] *= groups[k][3] == "true"


def ramp(name, gamma, decay=0.0, divisor=1.0, peak=None, power=1.0) -> dict:
    """Settings of a group of runs, for `rates`; without a peak the step stays as it is until the decay."""
    peak = gamma if peak is None else peak
    return {"name": name, "gamma": gamma, "decay": decay, "divisor": divisor, "peak": peak, "power": power}


def rates(steps: int, gamma, peak, power: float, decay: float, divisor: float) -> np.ndarray:
    """Learning rates [steps, 1 or K]: from gamma to peak (numbers, or one per seed [K]) as t^power until decay * steps,
    then peak / divisor; gamma throughout if decay is 0.
    """
    t, at, gamma, peak = np.arange(steps)[:, None], int(decay * steps), np.atleast_1d(gamma), np.atleast_1d(peak)
    rising = gamma + (peak - gamma) * (np.minimum(t, at) / max(at, 1)) ** power
    return np.where(t < at, rising, peak / divisor if at else gamma)


def unit_rows(draw, *shape) -> np.ndarray:
    """Normal rows of norm 1."""
    rows = draw.randn(*shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def mlp(theta: Tensor, x: Tensor, sizes: tuple, biases: tuple, derive=True) -> tuple[Tensor, list[Tensor], Tensor]:
    """Outputs [..., k], hidden activations of each layer [..., k, m], and the Jacobian [..., k, P] of a ReLU network.

    theta [..., P]: layer by layer weights [out, in] and, where `biases` says so, biases [out]; x [..., k, in].
    Rows of the Jacobian are gradients of the output by theta, as outer products, without autograd.
    """
    weights, at, values = [], 0, [x]
    for below, above, biased in zip(sizes[:-1], sizes[1:], biases, strict=True):
        weights.append(theta[..., at : at + below * above].unflatten(-1, (above, below)))
        at += below * above
        value = values[-1] @ weights[-1].mT
        if biased:
            value = value + theta[..., None, at : at + above]
            at += above
        values.append(value.relu() if len(weights) < len(biases) else value)
    back, parts = torch.ones_like(values[-1]), []
    for weight, biased, below in zip(weights[::-1], biases[::-1], values[-2::-1], strict=True) if derive else ():
        parts += [back] if biased else []
        parts.append((back[..., None] * below[..., None, :]).flatten(-2))
        back = (back @ weight) * (below > 0)
    return values[-1][..., 0], values[1:-1], torch.cat(parts[::-1], -1) if derive else None


def two_layers(draw, steps: int):
    """A teacher of 3 units and a student of 20 on the circle, without biases; the student's output starts at 0."""
    x, x_test, w = unit_rows(draw, 15, 2), unit_rows(draw, 1000, 2), unit_rows(draw, 3, 2)
    teacher = np.concatenate([w.ravel(), np.sign(draw.randn(3))])
    student = np.concatenate([0.5 * draw.randn(40), np.zeros(20)])
    return ((2, 3, 1), (2, 20, 1), (False, False)), (teacher, student, x, x_test, draw.randint(15, size=steps))


def three_layers(draw, steps: int):
    """A teacher 5-2-2-1 and a student 5-10-10-1 on the sphere; biases uniform, +-1 / sqrt(fan-in)."""

    def weights(sizes, scale):
        pairs = itertools.pairwise(sizes)
        parts = [(scale * draw.randn(i * o), draw.uniform(-1, 1, o) / np.sqrt(i)) for i, o in pairs]
        return np.concatenate([part for layer in parts for part in layer])

    x, x_test, order = unit_rows(draw, 50, 5), unit_rows(draw, 1000, 5), draw.randint(50, size=steps)
    sizes = (5, 2, 2, 1), (5, 10, 10, 1)
    return (*sizes, (True, True, True)), (weights(sizes[0], 1.0), weights(sizes[1], 0.8), x, x_test, order)


def students(kind, steps: int, seeds, device):
    """The problem of `kind` that each seed draws, as one, for `relu_runs`; order [steps, K]; teachers [K, P']."""
    drawn = [kind(np.random.RandomState(seed), steps) for seed in seeds]
    sizes_teacher, sizes, biases = drawn[0][0]
    stacked = (np.stack(arrays) for arrays in zip(*(arrays for _, arrays in drawn), strict=True))
    teacher, theta, x, x_test, order = (torch.from_numpy(array).to(device) for array in stacked)
    y, y_test = (mlp(teacher, inputs, sizes_teacher, biases, False)[0] for inputs in (x, x_test))
    return ((sizes, biases), theta, x, y, x_test, y_test, x_test[:, : theta.shape[1]]), order.T, teacher


def neurons(theta: Tensor) -> dict:
    """Of a two-layer network on the plane, without biases: rows w |a| [m, 2], and the signs of a."""
    w, a = theta[: theta.numel() * 2 // 3].view(-1, 2), theta[theta.numel() * 2 // 3 :]
    return {"rows": w * torch.where(a == 0, 1.0, a.abs())[:, None], "signs": a.sign()}


def mlp_walk(theta, x, y, rate, order, times, net):
    """Yield (t, theta [G, K, P]) before step t, for each t in `times`, of SGD on one example a step, loss (f - y)^2.

    K seeds with their own start theta [K, P], data x [K, n, d], y [K, n] and `order` [steps, K] of examples; G
    schedules of learning rates `rate` [steps, G, K]. `net`: sizes and biases of `mlp`.
    """
    theta, every = theta.expand(rate.shape[1], *theta.shape).clone(), torch.arange(len(x), device=x.device)
    times, last = {*times}, max(times)
    double = torch.as_tensor(2 * rate, dtype=x.dtype, device=x.device)[..., None]
    for t in range(last + 1):
        if t in times:
            yield t, theta
        if t == last:
            return
        f, _, jacobian = mlp(theta, x[every, order[t]][:, None], *net)
        theta.addcmul_(jacobian[..., 0, :], (f - y[every, order[t]][:, None]) * double[t], value=-1)


def jacobian_ranks(matrices: Tensor, thresholds: tuple, gram: bool = True) -> Tensor:
    """Singular values above each threshold times the largest one: [..., rows, columns] -> [thresholds, ...].

    `gram`: by eigenvalues of the Gram matrix, faster, for thresholds above 1e-7. NaN for matrices that aren't finite.
    """
    ok = matrices.isfinite().all(-1).all(-1)
    matrices = torch.where(ok[..., None, None], matrices, 1.0)
    matrices = matrices / matrices.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)  # of runs about to diverge
    values = torch.linalg.eigvalsh(matrices @ matrices.mT).flip(-1) if gram else torch.linalg.svdvals(matrices)
    ratios = values / values[..., :1].clamp_min(1e-300)
    counts = [(ratios > (tau**2 if gram else tau)).sum(-1) for tau in thresholds]
    return torch.where(ok, torch.stack(counts), math.nan)


def sparsities(hidden: Tensor, correlation: float) -> Tensor:
    """`core.feature_sparsity` of activations [..., n, m], rows divided by their norms as in the paper's toys: [...]."""
    flat = F.normalize(hidden, dim=-1).flatten(0, -3)
    found = [feature_sparsity(one, correlation) if one.isfinite().all() else math.nan for one in flat]
    return torch.tensor(found, dtype=torch.float64).view(hidden.shape[:-2])


def cycles(levels: tuple) -> list[list[float]]:
    """The loss (x^2 - y)^2 / 4 under GD, last two steps of many, at each a = eta y, in units of y^2, sorted."""
    a, x = torch.tensor(levels, dtype=torch.float64), torch.full((len(levels),), 0.9, dtype=torch.float64)
    seen = []
    for _ in range(20_000):
        x = x - a * (x * x - 1) * x
        seen = [*seen[-1:], (x * x - 1).square() / 4]
    return torch.stack(seen, 1).sort(1).values


def moments(steps: int, points: int) -> list[int]:
    """Steps at which to look: half of them by the logarithm; the last at 99.6 % of the run, as in the reference."""
    last = steps * 249 // 250 - 1
    grid = np.concatenate([[0], np.geomspace(1, last, points // 2), np.linspace(0, last, points // 2)])
    return sorted({round(t) for t in grid})


def landmarks(steps: int, points: int) -> list[int]:
    """Those of the `moments` at which the rank is taken, too."""
    times, shares = moments(steps, points), (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1)
    return sorted({min(times, key=lambda t: abs(t - share * steps)) for share in shares})


BANDS = (
    "train",
    "test",
    "rank",
    "sparsity_1",
)  # of these results keep quantiles along the run, not only the median


def brief(values: Tensor) -> Tensor:
    """Four significant digits: enough to draw and to judge, and results stay small."""
    scale = 10 ** (3 - values.abs().clamp_min(1e-200).log10().floor())
    return (values * scale).round() / scale


def records(groups: list[dict], times: list[int], looks: list[dict]) -> list[dict]:
    """A record per group: its settings; "diverged", how many seeds at each time; of each number [G, seeds] in `looks`
    (a dict per time) "curves", 10, 50 and 90 % quantiles over the other seeds or the median, and "final", all values.
    """
    found = [dict(group) for group in groups]
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for name in looks[-1]:
        seen = [(t, look[name].double().cpu()) for t, look in zip(times, looks, strict=True) if name in look]
        for k, record in enumerate(found):
            rows = torch.stack([torch.where(v[k].isfinite(), v[k], math.nan).flatten() for _, v in seen])
            wanted = levels if name in BANDS else levels[1:2]
            record.setdefault("final", {})[name] = brief(rows[-1])
            record.setdefault("curves", {})[name] = brief(torch.nanquantile(rows, wanted, dim=1).T)
            if name == "train":
                record["diverged"] = rows.isnan().sum(1)
    return found


def surface(seeds, points, seed) -> dict:
    """A small problem in the plane of start, balanced solution and the end of gradient flow: losses, trajectories."""
    x, test, target = (tensor[None] for tensor in diagonal_data(20, 30, 3, seed))
    y, last = x @ target[0], 10_000
    times = sorted({int(t) for t in [*np.geomspace(1, last, points), *np.linspace(0, last, points)]})
    order = orders(20, last + 1, range(seed, seed + seeds))
    walks = {
        "flow": diagonal_walk(x, y, [(0.03, -1, 1, 0.0)], times, seeds=1),
        "gd": diagonal_walk(x, y, [(3.0, last // 2, 3, 0.0)], times, seeds=1),
        "sgd": diagonal_walk(x, y, [(0.6, last // 2, 3, 0.0)], times, order),
    }
    paths = {}
    for name, walk in walks.items():
        uv = torch.stack([torch.cat([p + q, p - q], -1)[0, 0] / 2 for _, p, q in walk], 1)  # [seeds, times, 2 d]
        paths[name] = uv.abs() if name == "sgd" else uv  # as published
    start, star = paths["flow"][0, 0], target.sqrt().repeat(1, 2)[0]
    first = F.normalize(star - start, dim=0)
    end = paths["flow"][0, -1] - start
    axes = torch.stack([first, F.normalize(end - (end @ first) * first, dim=0)])
    grid = torch.linspace(-0.5, 2.3, 121, dtype=x.dtype)
    plane = start + grid[:, None, None] * axes[1] + grid[None, :, None] * axes[0]
    error = plane[..., :30] * plane[..., 30:] - target[0]
    losses = [(error @ inputs[0].T).square().mean(-1) / 2 for inputs in (x, test)]
    final = {k: [((w[:, -1, :30] * w[:, -1, 30:] - target) @ inputs[0].T).square().mean(-1) / 2 for inputs in (x, test)]
             for k, w in paths.items()}  # fmt: skip
    ended = [k for k in range(seeds) if paths["sgd"][k].isfinite().all()]
    shown = 2 if 2 in ended else (ended or [0])[0]  # 2 is the published one
    tracks = {name: (w[shown if name == "sgd" else 0] - start) @ axes.T for name, w in paths.items()}
    return {"grid": grid, "train": brief(losses[0]), "test": brief(losses[1]), "times": times, "shown": shown,
            "tracks": {name: brief(track) for name, track in tracks.items()},
            "star": (star - start) @ axes.T, "final": final}  # fmt: skip
