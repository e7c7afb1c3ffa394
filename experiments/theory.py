"""The closed forms of Stochastic Collapse that the experiments are judged by: nothing simulated, nothing fitted."""

import math

import numpy as np
import torch
from torch import Tensor

# ======================================================================================
# Quartic well and single neuron
# ======================================================================================


def log_growth(drift: float | np.ndarray, noise: float | np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, per unit time, of log|theta| under Euler steps theta *= 1 + drift step + noise sqrt(step) xi.

    `drift` and `noise` broadcast. For step -> 0 these are drift - noise^2 / 2 and noise^2: the
    mean is (minus) the paper's alpha, and the difference is the bias of the paper's own chain.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)  # the mean over a standard normal xi, as a weighted sum
    drift = np.atleast_1d(drift)[:, None]
    noise = np.atleast_1d(noise)[:, None]
    factors = 1 + drift * step + noise * math.sqrt(step) * nodes
    logs = np.log(np.abs(factors))
    total = weights.sum()
    mean = logs @ weights / total
    deviations = logs - mean[:, None]
    variance = deviations**2 @ weights / total
    return mean / step, variance / step


def normal_distribution(z: np.ndarray) -> np.ndarray:
    """P(xi < z) of a standard normal xi."""
    values = [0.5 * math.erfc(-one / math.sqrt(2)) for one in z.flat]
    return np.array(values).reshape(z.shape)


def reflected_collapse(growth: np.ndarray, variance: np.ndarray, time: float, threshold: float) -> np.ndarray:
    """Theory of P(|theta(time)| < threshold): log|theta| as a Brownian motion below a reflecting wall.

    Far below the well, log|theta| has drift `growth` and variance `variance`; the cubic force
    acts like a wall at log sqrt(variance) + log Gamma(1 + k) / 2k, k = growth / variance, the place
    that keeps the mass of the stationary density theta^(2k-1) exp(-theta^2 / variance). Then the
    law of a reflected Brownian motion with drift applies (Harrison 1985, section 1.8).
    """
    k = growth / variance
    safe_k = np.where(abs(k) < 1e-9, 1e-9, k)  # the wall has a limit at k = 0, its formula hasn't
    of_gamma = [math.lgamma(1 + one) / (2 * one) for one in safe_k]
    wall = 0.5 * np.log(variance) + np.array(of_gamma)
    depth = wall - math.log(threshold)
    drifted = growth * time
    spread = np.sqrt(variance * time)
    free = normal_distribution((-depth - drifted) / spread)
    exponent = -2 * growth * depth / variance
    weight = np.exp(np.minimum(exponent, 700))  # exp of more would overflow
    mirrored = weight * normal_distribution((-depth + drifted) / spread)
    return np.clip(free + mirrored, 0, 1)


def stationary_masses(mu: float, zeta: float, edges: np.ndarray) -> np.ndarray | None:
    """Stationary probability of each bin.

    None above zeta = sqrt(2 mu), where there is no stationary density, and without noise, or nearly, where it is two
    peaks narrower than the grid of x.
    """
    if zeta**2 >= 2 * mu or zeta < 1e-4:
        return None
    exponent = 2 * mu / zeta**2 - 2
    x = np.linspace(0, 6, 600_001)[1:] - 5e-6  # midpoints: the density may diverge, integrably, at 0
    log_density = exponent * np.log(x) - x**2 / zeta**2
    density = np.exp(log_density - log_density.max())
    both_sides = np.concatenate([-x, x])
    densities = np.concatenate([density, density])
    masses, _ = np.histogram(both_sides, edges, weights=densities)
    total = 2 * density.sum()
    return masses / total


# ======================================================================================
# Linear teacher-student
# ======================================================================================


def logistic(start: Tensor, target: Tensor, time: float) -> Tensor:
    """s(time) of ds/dt = 2 s (target - s), any sign of target."""
    decay = torch.exp(-2 * target * time)
    is_zero = target.abs() <= 1e-9  # there (1 - decay) / target is its limit, 2 time
    safe_target = target.where(~is_zero, 1)
    rest = torch.where(is_zero, 2 * time, (1 - decay) / safe_target)
    return start / (decay + start * rest)


def diagonal_theory(
    values: Tensor, label_noise: float, eta: float, drop_factor: float, drop_step: int, snapshot_steps: list[int]
) -> dict[str, Tensor]:
    """Predicted mean of each mode at the snapshots, [snapshot, mode], nothing fitted: two bounds, `lower` and `upper`.

    Before the drop, log s drifts at 2 eta (a - s), a = s* - eta sigma^2 / 2, with variance
    4 eta^2 sigma^2 per step: its stationary law is Gamma with shape a / eta sigma^2 and scale eta
    sigma^2, of mean a (`lower` at the drop; `upper` is s*). After it each value follows the
    logistic with target s* - drop_factor eta sigma^2 / 2 (`lower`) or s* (`upper`), and the
    means are taken over the Gamma law. The paper starts one logistic at the mean instead,
    which Jensen's inequality makes too fast, with a time scale that lacks the learning rate.
    """
    values = values.double().cpu()
    noise = eta * label_noise**2
    a = values - noise / 2
    log_s = torch.linspace(-60, 3, 6301, dtype=torch.float64)  # the grid of the Gamma law
    s = log_s.exp()
    scale = max(noise, 1e-9)
    log_density = (a[:, None] * log_s - s) / scale
    alive = a > 0
    weights = torch.softmax(log_density, 1) * alive[:, None]

    targets = {"lower": values - drop_factor * noise / 2, "upper": values}
    bounds = {"lower": [a.clamp_min(0)], "upper": [values]}  # at the drop
    for step in snapshot_steps[1:]:
        time = (step - drop_step) * eta * drop_factor
        for name, target in targets.items():
            recovered = logistic(s, target[:, None], time)
            bounds[name].append((weights * recovered).sum(1))
    return {name: torch.stack(rows) for name, rows in bounds.items()}
