"""Three toy models in which SGD's noise makes an invariant set attractive (Stochastic Collapse, figures 1-3).

  quartic   figure 1: the double well theta^4/4 - mu theta^2/2 with noise zeta theta dB. The origin, a
            maximum of the loss, attracts once zeta > sqrt(2 mu).                          about 3 s
  neuron    figure 2: one neuron w2 tanh(w1 x) with label noise. The origin, a saddle, attracts
            above the theorem's noise level; rates against the linearised exponent.       about 12 s
  pair      figure 3: two GELU neurons merge under SGD with momentum and label noise; decay
            rates against the Lyapunov exponent of the linearised random map.               about 3 s

  python toy_models.py                 all three, with the paper's settings, on one CPU core
  python toy_models.py quartic --quick

Every experiment is a function whose keyword defaults are the paper's settings. Change any of them:
  python toy_models.py quartic --set mu=2.0 --out mine
  python figures.py --out mine
"""

import math

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core import progress, run_script
from theory import log_growth, reflected_collapse, stationary_masses

# ======================================================================================
# Figure 1: quartic well,  d theta = -(theta^3 - mu theta) dt + zeta theta dB   (Ito)
# ======================================================================================


def quartic(
    mu: float = 1.5,
    euler_step: float = 0.0025,
    trajectory_noises: tuple = (0.1, 1.0, 2.5),
    trajectory_steps: int = 10_000,
    trajectories: int = 4000,
    noise_levels: int = 100,
    replicas: int = 1000,
    checkpoints: tuple = (10_000, 20_000, 40_000, 80_000),
    coarse_steps: int = 100,
    threshold: float = 1e-15,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Trajectories and histograms beside the stationary density, and the probability of collapse.

    Trajectories: Euler-Maruyama as in the paper, theta_0 = 2 N(0, 1). Collapse (|theta| <
    `threshold` at that step; `noise_levels` zetas on [0, 3] x `replicas`): y = 1 / theta^2 obeys a
    *linear* equation, so `coarse_steps` Euler steps become one exact multiplication y' = A (y + h) + h
    with log A matched in mean and variance to the Euler chain (`log_growth`); the trapezoid for
    the source is the only approximation.
    """
    if any(t % coarse_steps for t in checkpoints):
        raise ValueError(f"checkpoints must be multiples of coarse_steps, {coarse_steps}")
    generator = torch.Generator(device).manual_seed(seed)

    def normals(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    # Trajectories and histograms over the second half of the run
    zetas = torch.tensor(trajectory_noises, device=device)[:, None]
    theta = (2 * normals(trajectories)).repeat(len(zetas), 1)
    kick = torch.empty_like(theta)
    edges = np.linspace(-3, 3, 121)
    counts = torch.zeros(len(zetas), len(edges) - 1)
    every = max(1, trajectory_steps // 250)
    paths = [theta[:, :50].cpu().clone()]
    for step in tqdm(range(1, trajectory_steps + 1), desc="quartic: trajectories", **progress):
        kick.normal_(generator=generator).mul_(zetas * math.sqrt(euler_step)).add_(1 + mu * euler_step)
        theta.mul_(kick.addcmul_(theta, theta, value=-euler_step))
        if step % every == 0:
            paths.append(theta[:, :50].cpu().clone())
            if step > trajectory_steps // 2:
                counts += torch.stack([torch.histc(row, len(edges) - 1, -3, 3) for row in theta.cpu()])
    total = trajectories * sum(step > trajectory_steps // 2 for step in range(every, trajectory_steps + 1, every))

    # Probability of collapse
    grid = np.linspace(0, 3, noise_levels)
    growth, variance = log_growth(mu, grid, euler_step)
    h = coarse_steps * euler_step
    drift = torch.tensor(-2 * growth * h, device=device)[:, None]
    spread = torch.tensor(-2 * np.sqrt(variance * h), device=device)[:, None]
    y = (2 * normals(replicas, dtype=torch.float64)).pow(-2).repeat(noise_levels, 1)  # one theta_0 for all zetas
    noise, factor, collapsed = torch.empty_like(y, dtype=torch.float32), torch.empty_like(y), {}
    for step in tqdm(range(coarse_steps, max(checkpoints) + 1, coarse_steps), desc="quartic: collapse", **progress):
        factor.copy_(noise.normal_(generator=generator)).mul_(spread).add_(drift).exp_()
        y.add_(h).mul_(factor).add_(h)
        if step in checkpoints:
            collapsed[step] = (y > threshold**-2).double().mean(1)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        theory = [reflected_collapse(growth[1:], variance[1:], t * euler_step, threshold) for t in checkpoints]
        limit = (mu - grid[1:] ** 2 / 2, grid[1:] ** 2)  # of Euler step -> 0
        theory_sde = [reflected_collapse(*limit, t * euler_step, threshold) for t in checkpoints]
    return {
        "times": np.arange(len(paths)) * every,
        "paths": torch.stack(paths, -1),
        "bin_edges": edges,
        "histogram": counts / total,
        "stationary": [stationary_masses(mu, zeta, edges) for zeta in trajectory_noises],
        "noises": grid,
        "collapse": torch.stack([collapsed[t] for t in checkpoints]),
        "collapse_theory": [np.concatenate([[0.0], row]) for row in theory],
        "collapse_theory_sde": [np.concatenate([[0.0], row]) for row in theory_sde],
    }


# ======================================================================================
# Figure 2: single neuron  f(x) = w2 tanh(w1 x)  on m points, SGD with label noise as an SDE
# ======================================================================================


def neuron_table(x: Tensor, y: Tensor, size: int = 4096) -> Tensor:
    """[7, size] of what drift and noise need, on z = w1^2 / (1 + w1^2) in [0, 1), float64.

    With t = tanh(w1 x), d = x (1 - t^2) and <> the mean over the m points, the rows are <y d>,
    <y t / w1>, <d t / w1>, <t^2 / w1^2>, and the factor [[q, 0], [l, r]] of the noise: m
    independent label noises give the two weights the covariance [[w2^2 <d^2>, w1 w2 <d t / w1>],
    [., w1^2 <t^2 / w1^2>]], so two normals do the work of m.
    """
    z = torch.arange(size, dtype=torch.float64) / size
    w1 = (z / (1 - z)).sqrt()[:, None].clamp_min(1e-7)
    t = torch.tanh(w1 * x)
    d = x * (1 - t * t)
    yd, yt, dt, tt, dd = (v.mean(1) for v in (y * d, y * t / w1, d * t / w1, (t / w1).square(), d.square()))
    q = dd.sqrt()
    return torch.stack([yd, yt, dt, tt, q, dt / q, (tt - dt * dt / dd).clamp_min(0).sqrt()])


def neuron_coefficients(table: Tensor, w1: Tensor) -> list[Tensor]:
    """The rows of `neuron_table` at every w1 (any shape), each in the shape of w1."""
    z = w1 * w1
    index = z.div_(z + 1).mul_(table.shape[1]).to(torch.int64).clamp_(max=table.shape[1] - 1).flatten()
    return [torch.index_select(row, 0, index).view_as(w1) for row in table]


def neuron_euler(table: Tensor, w1: Tensor, w2: Tensor, eta: Tensor, step: float, xi: Tensor) -> None:
    """One Euler-Maruyama step of the single neuron, in place; xi [2, ...] standard normal."""
    yd, yt, dt, tt, q, left, right = neuron_coefficients(table, w1)
    amplitude = (eta * step).sqrt()
    change1 = step * w2 * (yd - w1 * w2 * dt) + amplitude * w2 * q * xi[0]
    w2 += step * w1 * (yt - w1 * w2 * tt) + amplitude * w1 * (left * xi[0] + right * xi[1])
    w1 += change1


def neuron_matching(eta: np.ndarray, a: float, power: float, euler_step: float, h: float, device) -> tuple[Tensor, ...]:
    """Drift, noise and Ito term of `neuron_step`, [levels, 1] each, that match Euler steps at the origin.

    There w1 + w2 and w1 - w2 grow independently; the mean growth of both and the variance of the
    first are matched. For euler_step -> 0: drift h, noise sqrt(eta h), Ito term -eta h / 2.
    """
    amplitude = np.sqrt(eta * power)
    along, variance = log_growth(a, amplitude, euler_step)  # of w1 + w2
    across, _ = log_growth(-a, amplitude, euler_step)  # of w1 - w2
    matched = (along - across) / 2 / a * h, np.sqrt(variance * h / power), (along + across) / 2 / power * h
    return tuple(torch.as_tensor(value, dtype=torch.float32, device=device)[:, None] for value in matched)


def neuron_step(
    table: Tensor, w1: Tensor, w2: Tensor, drift: Tensor, noise: Tensor, ito: Tensor, h: float, xi: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of length h: dw = M(w) w with M = [[damp1, up], [down, damp2]] frozen and exponentiated."""
    yd, yt, dt, tt, q, left, right = neuron_coefficients(table, w1)
    xi = xi * noise
    up = q.mul_(xi[0]).addcmul_(drift, yd)
    down = left.mul_(xi[0]).addcmul_(right, xi[1]).addcmul_(drift, yt)
    mean = ito * dt
    damp1, damp2 = dt.mul_(w2).mul_(w2).mul_(-h), tt.mul_(w1).mul_(w1).mul_(-h)
    mean.add_(damp1, alpha=0.5).add_(damp2, alpha=0.5).exp_()
    tilt = damp1.sub_(damp2).mul_(0.5)
    # The traceless part [[tilt, up], [down, -tilt]] squares to s: its exponential is cosh + sinh, as series in s
    s = (up * down).addcmul_(tilt, tilt)
    cosh, sinh = torch.full_like(s, 1 / 479001600), torch.full_like(s, 1 / 6227020800)
    for k in (10, 8, 6, 4, 2, 0):
        cosh.mul_(s).add_(1 / math.factorial(k))
        sinh.mul_(s).add_(1 / math.factorial(k + 1))
    cosh.mul_(mean), sinh.mul_(mean)
    return (
        (tilt * w1).addcmul_(up, w2).mul_(sinh).addcmul_(cosh, w1),
        (down * w1).addcmul_(tilt, w2, value=-1).mul_(sinh).addcmul_(cosh, w2),
    )


def neuron(
    noise_levels: tuple = ((0.0, 1.0, 5), (1.05, 2.5, 40), (2.6, 4.0, 5)),
    points: int = 32,
    replicas: int = 1000,
    euler_step: float = 0.01,
    steps: int = 100_000,
    coarse_steps: int = 20,
    checkpoints: tuple = (3040, 7080, 15_160, 31_320, 63_640, 100_000),
    initial: float = 1e-3,
    threshold: float = 1e-2,
    rate_noises: int = 40,
    rate_replicas: int = 500,
    rate_steps: int = 3500,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Probability that the neuron vanishes (|w| < `threshold`), end points, and rates of collapse.

    Each noise level eta is the paper's eta zeta^2 with zeta = 1; `noise_levels` are (first, last,
    number). x ~ N(0, 1), y = x + 0.1 N(0, 1). Steps of `coarse_steps` Euler steps: the equation is
    dw = M(w) w with M frozen over the step and exponentiated exactly (Ito correction included);
    its drift and noise are matched at the origin to the Euler chain's own log-growth, so that the
    published chain is reproduced, its bias included. The rates are measured on the plain Euler
    chain, started deep inside (|w| about 1e-12).
    """
    if any(t % coarse_steps or t > steps for t in checkpoints):
        raise ValueError(f"checkpoints must be multiples of coarse_steps, {coarse_steps}, up to {steps:,}")
    generator = torch.Generator(device).manual_seed(seed)
    data = torch.Generator().manual_seed(seed)
    x = torch.randn(points, generator=data, dtype=torch.float64)
    y = x + 0.1 * torch.randn(points, generator=data, dtype=torch.float64)
    correlation, power = float((x * y).mean()), float((x * x).mean())  # a, and b^2 / eta
    table = neuron_table(x, y).to(device, torch.float32)

    # Probability of collapse
    eta = np.concatenate([np.linspace(*level) for level in noise_levels])
    h = coarse_steps * euler_step
    matched = neuron_matching(eta, correlation, power, euler_step, h, device)
    w1, w2 = initial * torch.randn(2, replicas, generator=generator, device=device)[:, None].repeat(1, len(eta), 1)
    xi = torch.empty(2, *w1.shape, device=device)
    collapsed = [(torch.hypot(w1, w2) < threshold).float().mean(1).cpu()]
    for step in tqdm(range(coarse_steps, steps + 1, coarse_steps), desc="neuron: collapse", **progress):
        w1, w2 = neuron_step(table, w1, w2, *matched, h, xi.normal_(generator=generator))
        if step in checkpoints:
            collapsed.append((torch.hypot(w1, w2) < threshold).float().mean(1).cpu())
    ends = torch.stack([w1, w2], -1)[:, :40].cpu()

    # Rates: log|w| gained per unit time while the walk is in the linear regime. The walk's own
    # noise, known and of mean zero, is taken off the gains: the same mean with less scatter.
    rate_eta = np.linspace(0.05, 2.5, rate_noises) * 2 * correlation / power  # in units of the theorem's threshold
    amplitude = torch.as_tensor(np.sqrt(rate_eta * power * euler_step), device=device, dtype=torch.float32)[:, None]
    start = torch.where(amplitude**2 < 2 * correlation * euler_step, 1e-16, 1e-5)  # room to rise or to fall
    w1, w2 = start * torch.randn(2, rate_noises, rate_replicas, generator=generator, device=device)
    xi, walk, logs = torch.empty(2, *w1.shape, device=device), torch.zeros_like(w1), []
    every, column = max(1, rate_steps // 35), torch.as_tensor(rate_eta, dtype=torch.float32, device=device)[:, None]
    for step in tqdm(range(1, rate_steps + 1), desc="neuron: rates", **progress):
        neuron_euler(table, w1, w2, column, euler_step, xi.normal_(generator=generator))
        walk.addcmul_(amplitude, xi[0])
        if step % every == 0 and step >= rate_steps * 4 // 7:  # by then w1 - w2 has died out
            logs.append(torch.stack([torch.hypot(w1, w2).log(), walk]).double())
    logs, walks = torch.stack(logs, 1)
    linear = ((logs[:-1] < math.log(1e-3)) & (logs[:-1] > math.log(1e-30))).double()
    gains = ((logs[1:] - logs[:-1] - walks[1:] + walks[:-1]) * linear).nan_to_num(0).sum(0) / (every * euler_step)
    counts = linear.sum(0)
    rate = gains.sum(1) / counts.sum(1)
    error = (gains - rate[:, None] * counts).square().sum(1).sqrt() / counts.sum(1)
    rate_chain, _ = log_growth(correlation, np.sqrt(rate_eta * power), euler_step)
    return {
        "x": x,
        "y": y,
        "noises": eta / 2,  # the paper's axis: eta zeta^2 sigma'(0) / 2
        "threshold": correlation / power,
        "checkpoint_steps": [0, *checkpoints],
        "collapse": torch.stack(collapsed),
        "ends": ends,
        "rate_noises": rate_eta / 2,
        "rate": rate,
        "rate_error": error,
        "rate_theory": correlation - rate_eta * power / 2,
        "rate_theory_chain": rate_chain,
    }


# ======================================================================================
# Figure 3: two neurons  f(x) = sum_k b_k gelu(a_k x),  SGD with momentum and label noise
# ======================================================================================


def pair_forces(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(a x), and its first and second derivative in a; a and x broadcast."""
    z = a * x
    square = z * z
    density = torch.exp(-0.5 * square).mul_(1 / math.sqrt(2 * math.pi))
    cumulative = torch.erf(z * math.sqrt(0.5)).add_(1).mul_(0.5)
    value, slope = z * cumulative, torch.addcmul(cumulative, z, density).mul_(x)
    return value, slope, square.neg_().add_(2).mul_(density).mul_(x * x)


def pair_noise(seeds: int, first: int, steps: int, points: int) -> Tensor:
    """[steps, seeds, points] label noises: the reference's own stream, which is re-seeded for each replica."""
    noise = torch.empty(seeds, steps * points)
    for k in range(seeds):
        generator = torch.Generator().manual_seed(first + k)
        torch.empty(4).uniform_(generator=generator)  # spent on the initial weights of its layers
        for part in noise[k].split(14):  # below 16 torch draws one by one, so the pieces' size doesn't matter
            part.normal_(generator=generator)
    return noise.view(seeds, steps, points).transpose(0, 1)


def pair(
    learning_rates: tuple = (0.1, 0.2, 0.3, 0.4, 0.5),
    label_noises: tuple = (0.0, 0.1, 0.2, 0.4, 0.8),
    replicas: int = 8,
    extra_replicas: int = 56,
    steps: int = 10_001,
    points: int = 8,
    momentum: float = 0.9,
    a: tuple = (1.0, 0.6),
    b: tuple = (-0.6, -0.4),
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Squared distance (a1 - a2)^2 + (b1 - b2)^2 of two neurons over SGD steps, and its decay rate.

    Loss 1/2N sum (f - y - sigma xi)^2 with fresh label noise xi at every step. Conditions: the
    learning rates at sigma 0.1, then the label noises at learning rate 0.1. The first `replicas`
    repeat the reference's random stream; `extra_replicas` more sharpen the decay rates. In the
    same tensor runs the *merged* network (both neurons equal) under noise of its own, with the
    linearised difference carried along: delta v' = momentum delta v + H delta, delta' = delta -
    learning_rate delta v', H the Hessian of the batch across the set. Its growth per step is the
    top Lyapunov exponent: the predicted rate.
    """
    generator = torch.Generator().manual_seed(seed)
    x, _, y, _ = (torch.randn(points, generator=generator) for _ in range(4))  # the reference: x, x test, y, y test
    paper = pair_noise(replicas, seed, steps, points)
    conditions = [(rate, 0.1) for rate in learning_rates] + [(0.1, sigma) for sigma in label_noises]
    rate, sigma = torch.tensor(conditions, dtype=torch.float64, device=device).T[..., None]
    x, y = x.double().to(device), y.double().to(device)
    total = replicas + extra_replicas
    shape = (len(conditions), total)
    draws = torch.Generator(device).manual_seed(seed)

    # Weights [a or b, neuron, network, condition, replica]; network 0 as in the paper, 1 merged. The batch comes last,
    # the points first: so the inner loops are long.
    start = torch.tensor([a, b], dtype=torch.float64, device=device)
    start = torch.stack([start, start.mean(1, keepdim=True).expand(2, 2)], 2)
    weights = start[..., None, None].repeat(1, 1, 1, *shape)
    velocity = torch.zeros_like(weights)
    delta = torch.randn(2, *shape, generator=draws, dtype=torch.float64, device=device)
    delta_velocity, growth = torch.zeros_like(delta), torch.zeros(shape, dtype=torch.float64, device=device)
    every, burn_in = 10, steps // 5
    distances, xi = [], torch.empty(points, 2, 1, total, dtype=torch.float32, device=device)
    x, y = x.view(-1, 1, 1, 1, 1), y.view(-1, 1, 1, 1)
    sigma, paper = sigma / points, paper.transpose(1, 2).to(device)
    force, pull = torch.empty_like(weights), torch.empty_like(delta)
    # Views: everything below changes in place
    first, second, merged, slot = weights[0], weights[1], weights[1, 0, 1], xi[:, 0, 0, :replicas]
    (force_a, force_b), (pull_a, pull_b), (delta_a, delta_b) = force, pull, delta
    for step in tqdm(range(steps), desc="pair", **progress):
        if step % every == 0:
            distances.append((weights[:, 0, 0] - weights[:, 1, 0]).square().sum(0).cpu())
            size = torch.sqrt(delta.square().sum(0) + delta_velocity.square().sum(0))
            delta.div_(size), delta_velocity.div_(size)
            growth += size.log() if step > burn_in else 0
        xi.normal_(generator=draws)
        slot.copy_(paper[step])
        g, g1, g2 = pair_forces(first, x)
        residual = (second * g).sum(1).sub_(y).div_(points).sub_(sigma * xi)
        along = residual[:, 1]  # of the merged network: its batch's Hessian across the set is [[aa, ab], [ab, 0]]
        aa, ab = merged * (g2[:, 0, 1] * along).sum(0), (g1[:, 0, 1] * along).sum(0)
        torch.mul(ab, delta_a, out=pull_b)
        torch.mul(ab, delta_b, out=pull_a).addcmul_(aa, delta_a)
        delta_velocity.mul_(momentum).add_(pull)
        delta.addcmul_(rate, delta_velocity, value=-1)
        residual = residual[:, None]
        torch.sum(g1.mul_(residual), 0, out=force_a).mul_(second)
        torch.sum(g.mul_(residual), 0, out=force_b)
        velocity.mul_(momentum).add_(force)
        weights.addcmul_(rate, velocity, value=-1)
    times = np.arange(len(distances)) * every
    distances = torch.stack(distances, -1)
    exponents = growth / (times[-1] - times[times <= burn_in][-1])
    thin = slice(None, None, max(1, 50 // every))
    return {
        "times": times[thin],
        "learning_rates": [condition[0] for condition in conditions],
        "label_noises": [condition[1] for condition in conditions],
        "distances": distances[:, :replicas, thin],
        **pair_rates(distances, exponents, every, burn_in),
    }


def pair_rates(distances: Tensor, exponents: Tensor, every: int, burn_in: int, block: int = 100) -> dict:
    """Growth of log(squared distance) per step in the linear regime beside twice the predicted exponent.

    distances [conditions, replicas, times], recorded each `every` steps; exponents [conditions,
    replicas] per step. Blocks of `block` steps count if they start with a squared distance in
    (1e-24, 1e-3), above rounding and small enough to linearise. Standard errors are over replicas;
    NaN where no replica was ever that close, or the distance has stopped changing (no label noise).
    """
    logs = distances[:, :, burn_in // every :: block // every].log()
    linear = (logs[..., :-1] < math.log(1e-3)) & (logs[..., :-1] > math.log(1e-24)) & torch.isfinite(logs[..., 1:])
    gains = torch.where(linear, logs[..., 1:] - logs[..., :-1], 0).sum(-1) / block
    counts = linear.double().sum(-1)
    rate = gains.sum(1) / counts.sum(1)
    error = (gains - rate[:, None] * counts).square().sum(1).sqrt() / counts.sum(1)
    predicted = 2 * exponents
    return {
        "rate": rate,
        "rate_error": error,
        "rate_theory": predicted.mean(1),
        "rate_theory_error": predicted.std(1) / predicted.shape[1] ** 0.5,
    }


if __name__ == "__main__":
    run_script(
        __doc__,
        {"quartic": quartic, "neuron": neuron, "pair": pair},
        quick={
            "quartic": {"trajectories": 500, "noise_levels": 25, "replicas": 300},
            "neuron": {"replicas": 100, "steps": 15_160, "checkpoints": (3040, 7080, 15_160), "rate_replicas": 50},
            "pair": {"steps": 3001, "extra_replicas": 8},
        },
    )
