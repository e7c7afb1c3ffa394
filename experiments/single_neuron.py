"""One neuron w2 tanh(w1 x) on m points, SGD with label noise as an SDE (*Stochastic Collapse*, figure 2).

m independent label noises give the two weights a covariance that two normals can have as well, and all that drift and
noise need are means over the m points which depend on w1 alone: a table of them does the work of the data.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.theory import log_growth
from lib.errors import InputError
from lib.progress import progress


class Coefficients(NamedTuple):
    """Means <> over the points at some w1, with t = tanh(w1 x) and d = x (1 - t^2): rows of `neuron_table`."""

    pull_1: Tensor  # <y d>
    pull_2: Tensor  # <y t / w1>
    mixed: Tensor  # <d t / w1>
    squared: Tensor  # <t^2 / w1^2>
    noise_1: Tensor  # the noise of the weights is [[w2 noise_1, 0], [w1 noise_21, w1 noise_22]] times two normals
    noise_21: Tensor
    noise_22: Tensor


class Matched(NamedTuple):
    """Drift, noise and Ito term of `neuron_step` for each noise level, [levels, 1] each."""

    drift: Tensor
    noise: Tensor
    ito: Tensor


def neuron_table(x: Tensor, y: Tensor, size: int = 4096) -> Tensor:
    """The `Coefficients` [7, size] on a grid of z = w1^2 / (1 + w1^2) in [0, 1), float64.

    The weights' covariance is [[w2^2 <d^2>, w1 w2 <d t / w1>], [., w1^2 <t^2 / w1^2>]]; the last three rows are its
    Cholesky factor, without the weights.
    """
    z = torch.arange(size, dtype=torch.float64) / size
    w1 = (z / (1 - z)).sqrt()[:, None].clamp_min(1e-7)
    t = torch.tanh(w1 * x)
    d = x * (1 - t * t)
    d_squared = d.square().mean(1)
    mixed = (d * t / w1).mean(1)
    squared = (t / w1).square().mean(1)
    noise_1 = d_squared.sqrt()
    is_flat = d_squared == 0  # tanh is +-1 at all points: then d is 0, and mixed as well
    left_over = squared - mixed * mixed / d_squared.where(~is_flat, 1)
    rows = Coefficients(
        pull_1=(y * d).mean(1),
        pull_2=(y * t / w1).mean(1),
        mixed=mixed,
        squared=squared,
        noise_1=noise_1,
        noise_21=mixed / noise_1.where(~is_flat, 1),
        noise_22=left_over.clamp_min(0).sqrt(),
    )
    return torch.stack(rows)


def coefficients_at(table: Tensor, w1: Tensor) -> Coefficients:
    """The rows of the table at every w1 (any shape), each a new tensor in the shape of w1.

    A w1 that is not finite gets some row; what is computed of it is not finite either.
    """
    square = w1 * w1
    z = square.div_(square + 1)
    size = table.shape[1]
    index = z.mul_(size).to(torch.int64).clamp_(0, size - 1).flatten()
    return Coefficients(*(torch.index_select(row, 0, index).view_as(w1) for row in table))


def neuron_euler(table: Tensor, w1: Tensor, w2: Tensor, eta: Tensor, step: float, xi: Tensor) -> None:
    """One Euler-Maruyama step of the single neuron, in place; xi [2, ...] standard normal."""
    at = coefficients_at(table, w1)
    amplitude = (eta * step).sqrt()
    drift_1 = step * w2 * (at.pull_1 - w1 * w2 * at.mixed)
    drift_2 = step * w1 * (at.pull_2 - w1 * w2 * at.squared)
    kick_1 = amplitude * w2 * at.noise_1 * xi[0]
    kick_2 = amplitude * w1 * (at.noise_21 * xi[0] + at.noise_22 * xi[1])
    w2 += drift_2 + kick_2
    w1 += drift_1 + kick_1


def match_euler(eta: np.ndarray, a: float, power: float, euler_step: float, h: float, device) -> Matched:
    """What `neuron_step` of length h needs to grow at the origin as Euler steps of length `euler_step` do.

    a = <x y> and power = <x^2>. At the origin w1 + w2 and w1 - w2 grow independently; the mean growth of both and the
    variance of the first are matched. For euler_step -> 0: drift h, noise sqrt(eta h), Ito term -eta h / 2.
    """
    amplitude = np.sqrt(eta * power)
    growth_of_sum, variance = log_growth(a, amplitude, euler_step)
    growth_of_difference, _ = log_growth(-a, amplitude, euler_step)

    def column(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device)[:, None]

    return Matched(
        drift=column((growth_of_sum - growth_of_difference) / 2 / a * h),
        noise=column(np.sqrt(variance * h / power)),
        ito=column((growth_of_sum + growth_of_difference) / 2 / power * h),
    )


def neuron_step(table: Tensor, w1: Tensor, w2: Tensor, matched: Matched, h: float, xi: Tensor) -> tuple[Tensor, Tensor]:
    """The weights after one step of length h: dw = M(w) w with M frozen and exponentiated, so that 0 stays 0.

    M = [[damping_1 + ito, up], [down, damping_2 + ito]]. This is the hot loop: it takes no new memory where an old
    tensor isn't needed any more. So of `at` only the pulls and noise_22 are still what they were when it ends.
    """
    at = coefficients_at(table, w1)
    kick = xi * matched.noise

    # up = noise_1 kick_1 + drift pull_1;  down = noise_21 kick_1 + noise_22 kick_2 + drift pull_2
    up = at.noise_1.mul_(kick[0])
    up.addcmul_(matched.drift, at.pull_1)
    down = at.noise_21.mul_(kick[0])
    down.addcmul_(at.noise_22, kick[1])
    down.addcmul_(matched.drift, at.pull_2)

    # damping_1 = -h mixed w2^2;  damping_2 = -h squared w1^2
    ito = matched.ito * at.mixed
    damping_1 = at.mixed.mul_(w2).mul_(w2).mul_(-h)
    damping_2 = at.squared.mul_(w1).mul_(w1).mul_(-h)

    # exp(M) is exp of half the trace, times exp of the traceless part N = [[tilt, up], [down, -tilt]]
    half_trace = ito.add_(damping_1, alpha=0.5).add_(damping_2, alpha=0.5)
    scale = half_trace.exp_()
    tilt = damping_1.sub_(damping_2).mul_(0.5)

    # N^2 is a number s times the identity, so exp(N) = cosh(sqrt s) + N sinh(sqrt s) / sqrt s
    s = (up * down).addcmul_(tilt, tilt)
    even, odd = cosh_and_sinh(s)
    even.mul_(scale)
    odd.mul_(scale)
    new_w1 = (tilt * w1).addcmul_(up, w2)  # N w, its first row
    new_w1.mul_(odd).addcmul_(even, w1)
    new_w2 = (down * w1).addcmul_(tilt, w2, value=-1)
    new_w2.mul_(odd).addcmul_(even, w2)
    return new_w1, new_w2


def cosh_and_sinh(s: Tensor) -> tuple[Tensor, Tensor]:
    """cosh(sqrt s) and sinh(sqrt s) / sqrt s, for any sign of s: their series up to s^6."""
    even = torch.full_like(s, 1 / math.factorial(12))
    odd = torch.full_like(s, 1 / math.factorial(13))
    for power in (10, 8, 6, 4, 2, 0):
        even.mul_(s).add_(1 / math.factorial(power))
        odd.mul_(s).add_(1 / math.factorial(power + 1))
    return even, odd


def simulate_collapse(
    table: Tensor,
    w1: Tensor,
    w2: Tensor,
    matched: Matched,
    h: float,
    steps: range,
    checkpoints: tuple,
    threshold: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A `neuron_step` of length h at each of `steps`, from w1, w2 [levels, replicas].

    Returns the share of replicas with |w| < threshold at the start and at the checkpoints, [1 + checkpoints, levels],
    and the end points [levels, replicas, 2].
    """

    def share_collapsed() -> Tensor:
        return (torch.hypot(w1, w2) < threshold).float().mean(1).cpu()

    xi = torch.empty(2, *w1.shape, device=w1.device)
    collapsed = [share_collapsed()]
    for step in tqdm(steps, desc="neuron: collapse", **progress):
        w1, w2 = neuron_step(table, w1, w2, matched, h, xi.normal_(generator=generator))
        if step in checkpoints:
            collapsed.append(share_collapsed())
    ends = torch.stack([w1, w2], -1)
    if not ends.isfinite().all():
        raise InputError("the neuron's weights are not finite: choose a lower euler_step or initial, or more points")
    return torch.stack(collapsed), ends


def measure_rates(
    table: Tensor,
    eta: np.ndarray,
    a: float,
    power: float,
    euler_step: float,
    steps: int,
    replicas: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """log|w| gained per unit time by the plain Euler chain near the origin, and its standard error, [levels].

    Only gains in the linear regime, 1e-30 < |w| < 1e-3, count. The walk's own noise, known and of mean zero, is taken
    off them: the same mean with less scatter.
    """
    device = generator.device
    levels = len(eta)
    amplitude = torch.as_tensor(np.sqrt(eta * power * euler_step), device=device, dtype=torch.float32)[:, None]
    rises = amplitude**2 < 2 * a * euler_step
    start = torch.where(rises, 1e-16, 1e-5)  # room to rise or to fall
    w1, w2 = start * torch.randn(2, levels, replicas, generator=generator, device=device)
    xi = torch.empty(2, *w1.shape, device=device)
    walk = torch.zeros_like(w1)
    column = torch.as_tensor(eta, dtype=torch.float32, device=device)[:, None]
    every = max(1, steps // 35)
    settled = steps * 4 // 7  # by then w1 - w2 has died out
    sizes, walks = [], []
    for step in tqdm(range(1, steps + 1), desc="neuron: rates", **progress):
        neuron_euler(table, w1, w2, column, euler_step, xi.normal_(generator=generator))
        walk.addcmul_(amplitude, xi[0])
        if step % every == 0 and step >= settled:
            sizes.append(torch.hypot(w1, w2).log().double())
            walks.append(walk.double())

    sizes = torch.stack(sizes)
    walks = torch.stack(walks)
    starts = sizes[:-1]
    linear = ((starts < math.log(1e-3)) & (starts > math.log(1e-30))).double()
    gains = sizes[1:] - starts - walks[1:] + walks[:-1]
    total = (gains * linear).nan_to_num(0).sum(0) / (every * euler_step)
    counts = linear.sum(0)
    rate = total.sum(1) / counts.sum(1)
    deviations = total - rate[:, None] * counts  # of each replica: they are independent, its gains are not
    error = deviations.square().sum(1).sqrt() / counts.sum(1)
    return rate, error
