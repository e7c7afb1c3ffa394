"""Diagonal linear networks h(x) = <u * v, x> of *Sparse Features*: SGD, GD, the effective SDE; all runs in one tensor.

A step adds -s v to u and -s u to v. So it multiplies p = u + v by 1 - s and q = u - v by 1 + s, and u^2 - v^2 = p q by
1 - s^2: p and q are what is stored.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.seed_records import brief, jacobian_ranks, landmarks, moments, records, without_broken

# ======================================================================================
# Data
# ======================================================================================


class Regression(NamedTuple):
    """x [..., n, d], test x [..., 1000, d] and the solution theta* [..., d]; labels are x theta*, without noise."""

    x: Tensor
    x_test: Tensor
    target: Tensor

    def labels(self) -> Tensor:
        return (self.x @ self.target[..., None])[..., 0]

    def test_labels(self) -> Tensor:
        return (self.x_test @ self.target[..., None])[..., 0]


def draw_regression(n: int, d: int, r: int, seed: int, device: str | torch.device = "cpu") -> Regression:
    """Normal inputs; theta* with r entries above 0, norm 1. The reference's stream."""
    draw = np.random.RandomState(seed)
    x = draw.multivariate_normal(np.zeros(d), np.eye(d), n)
    x_test = draw.multivariate_normal(np.zeros(d), np.eye(d), 1000)
    drawn = draw.randn(d)
    nonzero = np.arange(d) < r
    target = np.abs(drawn * nonzero)
    target = target / np.linalg.norm(target)
    return Regression(*(torch.from_numpy(array).to(device) for array in (x, x_test, target)))


def stacked(problems: list[Regression]) -> Regression:
    """Data sets [D, ...] of equal sizes, as one."""
    return Regression(*(torch.stack(tensors) for tensors in zip(*problems, strict=True)))


def orders(n: int, steps: int, seeds: Iterable[int]) -> Tensor:
    """[steps, seeds]: which example each step takes, with replacement, from numpy's streams; the reference's is 1."""
    columns = [np.random.RandomState(seed).randint(n, size=steps) for seed in seeds]
    return torch.from_numpy(np.stack(columns, 1))


def stable_gamma(c: float, problem: Regression) -> float:
    """c / mean_i |grad h(x_i)|^2 at u = v = sqrt(theta*): the step size in units that transfer between data sets."""
    squared_gradients = problem.x.square() @ (2 * problem.target)
    return c / squared_gradients.mean().item()


# ======================================================================================
# The walk
# ======================================================================================


class Group(NamedTuple):
    """Runs with the same settings: the step gamma (one per data set, [D], or for all), divided by `divisor` after the
    step at this share of the run, `decay` (0: never); noise of intensity `delta` in the SDE: a number until the decay
    and then 0, or "true", the loss itself.
    """

    name: str
    gamma: float | Tensor
    decay: float = 0.0
    divisor: float = 1.0
    delta: float | str = 0.0

    def decay_step(self, steps: int) -> int | None:
        return int(self.decay * steps) if self.decay > 0 else None


class Noise(NamedTuple):
    """Of the SDE: `streams` random streams from one generator, the same for all groups."""

    generator: torch.Generator | None
    streams: int


class Moment(NamedTuple):
    """p = u + v and q = u - v before step `time`, float64 [groups, data sets, streams, d]; they change in place."""

    time: int
    p: Tensor
    q: Tensor

    def product(self) -> Tensor:
        """u v: what the network computes."""
        return (self.p * self.p - self.q * self.q) / 4

    def size(self) -> Tensor:
        """u^2 + v^2."""
        return (self.p * self.p + self.q * self.q) / 2


def diagonal_walk(
    x: Tensor,
    y: Tensor,
    groups: list[Group],
    steps: int,
    times: Iterable[int],
    order: Tensor | None = None,
    noise: Noise | None = None,
    start: float = 0.1,
) -> Iterator[Moment]:
    """The moments of runs of `groups`, on data sets x [D, n, d], y [D, n], at each of `times`; u = `start`, v = 0.

    With `order` [steps, K]: SGD on one example a step, loss (h - y)^2 / 2. With `noise`: the effective SDE in Euler
    steps of gamma (the paper's equation 8), theta -= gamma grad L - gamma sqrt(2 delta / n) Phi^T z, z ~ N(0, I_n).
    With neither: GD, one stream. `steps` is the length of the whole run, of which the groups' decay is a share.
    """
    data_sets, n, d = x.shape
    streams = 1
    if order is not None:
        streams = order.shape[1]
    elif noise is not None:
        streams = noise.streams
    gammas = [torch.as_tensor(group.gamma, dtype=x.dtype).expand(data_sets) for group in groups]
    gamma = torch.stack(gammas)[..., None, None].to(x)
    constants = [0.0 if group.delta == "true" else group.delta for group in groups]
    delta = torch.tensor(constants, dtype=x.dtype, device=x.device)[:, None, None, None]
    has_true_noise = torch.tensor([group.delta == "true" for group in groups], device=x.device)[:, None, None, None]
    decay_steps = [group.decay_step(steps) for group in groups]

    p = torch.full((len(groups), data_sets, streams, d), start, dtype=x.dtype, device=x.device)
    q = p.clone()
    product = torch.empty_like(p)
    change = torch.empty_like(p)
    times = set(times)
    last = max(times)
    for step in range(last + 1):
        if step in times:
            yield Moment(step, p, q)
        if step == last:
            return
        torch.mul(p, p, out=product).addcmul_(q, q, value=-1).mul_(0.25)  # u v
        if order is not None:
            rows = x[:, order[step]]
            residual = torch.mul(product, rows, out=change).sum(-1, keepdim=True).sub_(y[:, order[step], None])
            torch.mul(rows, residual.mul_(gamma), out=change)
        else:
            residual = product @ x.mT - y[:, None]
            push = residual / n
            if noise is not None:
                twice_loss = residual.square().mean(-1, keepdim=True)
                variance = torch.where(has_true_noise, twice_loss, 2 * delta) / n
                z = torch.randn(data_sets, streams, n, generator=noise.generator, dtype=x.dtype).to(x.device)
                push.addcmul_(variance.sqrt(), z, value=-1)
            change = push.mul_(gamma) @ x
        p.addcmul_(p, change, value=-1)
        q.addcmul_(q, change)
        for k, group in enumerate(groups):
            if decay_steps[k] == step:
                gamma[k] /= group.divisor
                delta[k] = 0.0


# ======================================================================================
# What is measured
# ======================================================================================

PLATEAU_START = 0.05  # share of the run: by then the loss has stabilised


class Watch(NamedTuple):
    """Training losses of all groups at many times, each [groups, seeds], and looks at the groups' plateaus, by share of
    the run.
    """

    times: range
    losses: list[Tensor]
    looks: dict[float, dict[str, Tensor]]

    def median_loss(self, group: int, low: float, high: float, steps: int) -> Tensor:
        """[seeds]: of a group's training losses, between two shares of the run."""
        inside = [low * steps <= time <= high * steps for time in self.times]
        losses = torch.stack(self.losses)[torch.tensor(inside), group]
        return losses.median(0).values


def plateau_of(watched: Watch, group: int, decay: float, steps: int) -> dict:
    """A group's loss plateau, where the large step keeps the loss from falling, by seeds.

    "start", at 5 % of the run, and "end", just before the decay: rank, l0 and |Phi|_F^2 there; train: its median over
    the 1 % of the run, or the last fifth of the plateau, before. "levels": train's medians over the spans of which the
    published run's are known, 1 to 10, 10 to 30 and 30 to 50 % of the run, up to the decay.
    """
    spans = {PLATEAU_START: 0.01, decay: (decay - PLATEAU_START) / 5}
    found = {}
    for name, share in (("start", PLATEAU_START), ("end", decay)):
        look = watched.looks[share]
        found[name] = {key: look[key][group].flatten() for key in ("jacobian", "rank", "l0")}
        found[name]["train"] = brief(watched.median_loss(group, share - spans[share], share, steps))
        found[name]["jacobian"] = brief(found[name]["jacobian"])
    levels = [(low, high) for low, high in ((0.01, 0.1), (0.1, 0.3), (0.3, 0.5)) if high <= decay]
    found["levels"] = [brief(watched.median_loss(group, low, high, steps)) for low, high in levels]
    return found


def look_at(moment: Moment, problems: Regression, y: Tensor, y_test: Tensor) -> dict[str, Tensor]:
    """Numbers [groups, data sets, streams]: losses, noise E |Phi^T xi|^2 of an SGD step, |Phi|_F^2, l0 and l2 norms."""
    product = moment.product()
    size = moment.size()
    squares = problems.x.square()
    n = problems.x.shape[1]
    residual = product @ problems.x.mT - y[:, None]
    test_residual = product @ problems.x_test.mT - y_test[:, None]
    squared_gradients = size @ squares.mT  # |phi_i|^2 of each example
    mean_square = (residual.square() * squared_gradients).mean(-1)
    square_of_mean = ((residual @ problems.x / n).square() * size).sum(-1)  # |grad L|^2
    return {
        "train": residual.square().mean(-1) / 2,
        "test": test_residual.square().mean(-1) / 2,
        "noise": mean_square - square_of_mean,
        "jacobian": (size @ squares.sum(1)[..., None])[..., 0],
        "l0": (product.abs() > 1e-50).double().sum(-1),
        "norm": size.sum(-1).sqrt(),
    }


def diagonal_runs(
    problems: list[Regression],
    groups: list[Group],
    steps: int,
    points: int,
    order: Tensor | None = None,
    noise: Noise | None = None,
    ranks: bool = True,
    plateaus: bool = False,
) -> list[dict]:
    """`records` of the groups' runs; with `ranks` also of the Jacobian's rank (threshold 1e-15, on 2 d test inputs);
    with `plateaus` also what `plateau_of` tells of each group that decays.
    """
    data = stacked(problems)
    y, y_test = data.labels(), data.test_labels()
    d = data.x.shape[2]
    # The Jacobian [X * u, X * v] has the singular values of R * sqrt(u^2 + v^2), with X = Q R
    triangle = torch.linalg.qr(data.x_test[:, : 2 * d], mode="r").R

    def look(moment: Moment, with_rank: bool) -> dict[str, Tensor]:
        numbers = without_broken(look_at(moment, data, y, y_test))
        if with_rank:
            jacobians = triangle[:, None] * moment.size().sqrt()[..., None, :]
            numbers["rank"] = jacobian_ranks(jacobians, 1e-15, gram=False)
        return numbers

    times = moments(steps, points)
    rank_times = landmarks(steps, points) if ranks else []
    watched = Watch(range(0, steps, max(steps // 1000, 1)), [], {})
    shares = {PLATEAU_START, *(group.decay for group in groups if group.decay)}
    share_at = {int(share * steps): share for share in shares}
    extra_times = {*watched.times, *share_at} if plateaus else set()
    looks = []
    for moment in diagonal_walk(data.x, y, groups, steps, extra_times | set(times), order, noise):
        if moment.time in times:
            looks.append(look(moment, with_rank=moment.time in rank_times))
        if plateaus and moment.time in watched.times:
            residual = moment.product() @ data.x.mT - y[:, None]
            watched.losses.append((residual.square().mean(-1) / 2).flatten(1))
        if plateaus and moment.time in share_at:
            watched.looks[share_at[moment.time]] = look(moment, with_rank=True)

    found = records([group._asdict() for group in groups], times, looks)
    for k, group in enumerate(groups):
        if plateaus and group.decay:
            found[k]["plateau"] = plateau_of(watched, k, group.decay, steps)
    return found


# ======================================================================================
# The loss surface, and the scalar model of stabilisation
# ======================================================================================


def losses_of(uv: Tensor, problem: Regression) -> list[Tensor]:
    """Train and test loss of (u, v) [..., 2 d]."""
    d = problem.x.shape[1]
    error = uv[..., :d] * uv[..., d:] - problem.target
    return [(error @ inputs.T).square().mean(-1) / 2 for inputs in (problem.x, problem.x_test)]


def surface(seeds: int, points: int, seed: int, grid_points: int = 121) -> dict:
    """A small problem in the plane of start, balanced solution and the end of gradient flow: losses, trajectories.

    20 examples, 30 dimensions; 10,000 steps. Gradient flow (GD, small steps), large-step GD, and SGD with several
    seeds, of which the published one, the third, is shown if it survives.
    """
    last = 10_000
    problem = draw_regression(20, 30, 3, seed)
    x = problem.x[None]
    y = problem.labels()[None]
    logarithmic, linear = np.geomspace(1, last, points), np.linspace(0, last, points)
    times = sorted({int(step) for step in (*logarithmic, *linear)})
    order = orders(20, last + 1, range(seed * seeds, (seed + 1) * seeds))
    walks = {
        "flow": diagonal_walk(x, y, [Group("flow", 0.03)], last, times),
        "gd": diagonal_walk(x, y, [Group("gd", 3.0, 0.5, 3.0)], last, times),
        "sgd": diagonal_walk(x, y, [Group("sgd", 0.6, 0.5, 3.0)], last, times, order),
    }
    paths = {}
    for name, walk in walks.items():
        points_seen = []
        for moment in walk:
            u = (moment.p + moment.q)[0, 0] / 2
            v = (moment.p - moment.q)[0, 0] / 2
            points_seen.append(torch.cat([u, v], -1))
        paths[name] = torch.stack(points_seen, 1)  # [seeds, times, 2 d]
    paths["sgd"] = paths["sgd"].abs()  # as published

    start = paths["flow"][0, 0]
    star = problem.target.sqrt().repeat(2)
    to_star = F.normalize(star - start, dim=0)
    to_flow_end = paths["flow"][0, -1] - start
    across = F.normalize(to_flow_end - (to_flow_end @ to_star) * to_star, dim=0)
    axes = torch.stack([to_star, across])
    grid = torch.linspace(-0.5, 2.3, grid_points, dtype=x.dtype)
    plane = start + grid[:, None, None] * across + grid[None, :, None] * to_star
    train_surface, test_surface = losses_of(plane, problem)

    survived = [k for k in range(seeds) if paths["sgd"][k].isfinite().all()]
    published = 2
    shown = survived[0] if survived else 0
    if published in survived:
        shown = published
    shown_paths = {"flow": paths["flow"][0], "gd": paths["gd"][0], "sgd": paths["sgd"][shown]}
    return {
        "grid": grid,
        "train": brief(train_surface),
        "test": brief(test_surface),
        "times": times,
        "shown": shown,
        "tracks": {name: brief((path - start) @ axes.T) for name, path in shown_paths.items()},
        "star": (star - start) @ axes.T,
        "final": {name: losses_of(path[:, -1], problem) for name, path in paths.items()},
    }


def cycles(levels: tuple[float, ...]) -> Tensor:
    """The loss (x^2 - y)^2 / 4 under GD, last two of 20,000 steps, at each a = eta y, in units of y^2: [a, 2]."""
    a = torch.tensor(levels, dtype=torch.float64)
    x = torch.full((len(levels),), 0.9, dtype=torch.float64)
    for _ in range(20_000):
        before = x
        x = x - a * (x * x - 1) * x
    last_two = torch.stack([before, x], 1)
    losses = (last_two * last_two - 1).square() / 4
    return losses.sort(1).values
