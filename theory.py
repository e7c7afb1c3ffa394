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
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    drift, noise = np.atleast_1d(drift)[:, None], np.atleast_1d(noise)[:, None]
    logs = np.log(np.abs(1 + drift * step + noise * math.sqrt(step) * nodes))
    mean = logs @ weights / weights.sum()
    variance = (logs - mean[:, None]) ** 2 @ weights / weights.sum()
    return mean / step, variance / step


def reflected_collapse(growth: np.ndarray, variance: np.ndarray, time: float, threshold: float) -> np.ndarray:
    """Theory of P(|theta(time)| < threshold): log|theta| as a Brownian motion below a reflecting wall.

    Far below the well, log|theta| has drift `growth` and variance `variance`; the cubic force
    acts like a wall at log sqrt(variance) + log Gamma(1 + k) / 2k, k = growth / variance, the place
    that keeps the mass of the stationary density theta^(2k-1) exp(-theta^2 / variance). Then the
    law of a reflected Brownian motion with drift applies (Harrison 1985, section 1.8).
    """
    k = growth / variance
    wall = 0.5 * np.log(variance) + np.array([math.lgamma(1 + x) / (2 * x) for x in np.where(abs(k) < 1e-9, 1e-9, k)])
    depth, spread = wall - math.log(threshold), np.sqrt(variance * time)
    normal = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
    late = normal((-depth - growth * time) / spread)
    mirror = np.exp(np.minimum(-2 * growth * depth / variance, 700)) * normal((-depth + growth * time) / spread)
    return np.clip(late + mirror, 0, 1)


def stationary_masses(mu: float, zeta: float, edges: np.ndarray) -> np.ndarray | None:
    """Stationary probability of each bin; None above zeta = sqrt(2 mu), where there is no stationary density."""
    if zeta**2 >= 2 * mu:
        return None
    exponent = 2 * mu / zeta**2 - 2
    x = np.linspace(0, 6, 600_001)[1:] - 5e-6  # midpoints: the density may diverge, integrably, at 0
    log_density = exponent * np.log(x) - x**2 / zeta**2
    density = np.exp(log_density - log_density.max())
    masses = np.histogram(np.concatenate([-x, x]), edges, weights=np.concatenate([density, density]))[0]
    return masses / (2 * density.sum())


# ======================================================================================
# Linear teacher-student
# ======================================================================================


def logistic(start: Tensor, target: Tensor, time: float) -> Tensor:
    """s(time) of ds/dt = 2 s (target - s), any sign of target."""
    decay = torch.exp(-2 * target * time)
    rest = torch.where(target.abs() > 1e-9, (1 - decay) / target.where(target.abs() > 1e-9, 1), 2 * time)
    return start / (decay + start * rest)


def diagonal_theory(
    values: Tensor, label_noise: float, eta: float, drop_factor: float, drop_step: int, snapshot_steps: list[int]
) -> dict[str, Tensor]:
    """Predicted mean of each mode at the snapshots, [snapshot, mode], nothing fitted.

    Before the drop, log s drifts at 2 eta (a - s), a = s* - eta sigma^2 / 2, with variance
    4 eta^2 sigma^2 per step: its stationary law is Gamma with shape a / eta sigma^2 and scale eta
    sigma^2, of mean a (`lower` at the drop; `upper` is s*). After it each value follows the
    logistic with target s* - drop_factor eta sigma^2 / 2 (`lower`) or s* (`upper`), and the
    means are taken over the Gamma law. The paper starts one logistic at the mean instead
    (`paper_lower`), which Jensen's inequality makes too fast, with a time scale that lacks the
    learning rate (corrected here).
    """
    values = values.double().cpu()
    noise = eta * label_noise**2
    a = values - noise / 2
    mean = a.clamp_min(0)
    logs = torch.linspace(-60, 3, 6301, dtype=torch.float64)  # of s, the grid of the Gamma law
    weights = torch.softmax((a[:, None] * logs - logs.exp()) / max(noise, 1e-9), 1) * (a > 0)[:, None]
    bands = {"lower": [mean], "upper": [values], "paper_lower": [mean]}
    for step in snapshot_steps[1:]:
        time = (step - drop_step) * eta * drop_factor
        for name, target in (("lower", values - drop_factor * noise / 2), ("upper", values)):
            bands[name].append((weights * logistic(logs.exp(), target[:, None], time)).sum(1))
        bands["paper_lower"].append(logistic(mean, values - drop_factor * noise / 2, time))
    return {name: torch.stack(rows) for name, rows in bands.items()}
