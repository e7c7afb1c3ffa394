"""Toy models in which SGD's noise makes an invariant set attractive (Stochastic Collapse, figures 1-3).

  quartic   figure 1: the double well theta^4/4 - mu theta^2/2, mu = 1.5, with noise zeta theta dB. The
            origin, a maximum of the loss, attracts once zeta > sqrt(2 mu) = 1.73. 100 zetas on [0, 3] x 1,000
            replicas, 80,000 Euler steps of 0.0025: P(collapse) = 0.5 at zeta 2.35, 2.06, 1.89, 1.80
            after 10,000, 20,000, 40,000, 80,000 steps.                                    about 4 s
  neuron    figure 2: one neuron w2 tanh(w1 x) on 32 points with label noise. The origin, a saddle,
            attracts above the theorem's noise level, about 1. 50 levels x 1,000 replicas, 100,000 Euler
            steps of 0.01; rates of collapse against the linearised exponent.             about 12 s
  pair      figure 3: two GELU neurons merge under SGD with momentum 0.9 and label noise; learning
            rates 0.1 to 0.5, label noises 0 to 0.8, 10,001 steps, 8 + 56 replicas; decay rates
            against the Lyapunov exponent of the linearised random map.                    about 7 s
  invariance   are the invariant sets exact in networks? MLP, VGG-16 and ResNet-18, narrow and in float64,
            start on one and train: the distance to it stays 0, to the bit.               about 50 s

  python toy_models.py                 all, with the paper's settings, on one CPU core
  python toy_models.py quartic --quick

Every experiment is a function whose keyword defaults are the paper's settings. Change any of them:
  python toy_models.py quartic --set mu=2.0 --out mine
  python figures.py --out mine
"""

import lib.interrupts  # noqa: F401  # isort: skip  (first: from here on Ctrl-C leaves no traceback)

import numpy as np
import torch

from experiments import invariance as invariant_sets
from experiments import quartic_well, single_neuron, two_neurons
from experiments.theory import log_growth, reflected_collapse, stationary_masses
from lib.command import run_script
from lib.errors import InputError
from lib.settings import Count, CountOrZero, Momentum, NotNegative, Number, Positive, Seed, checked

# ======================================================================================
# Figure 1: quartic well,  d theta = -(theta^3 - mu theta) dt + zeta theta dB   (Ito)
# ======================================================================================


@checked
def quartic(
    mu: Positive = 1.5,
    euler_step: Positive = 0.0025,
    trajectory_noises: tuple[NotNegative, ...] = (0.1, 1.0, 2.5),
    trajectory_steps: Count = 10_000,
    trajectories: Count = 4000,
    paths: Count = 50,
    noise_levels: Count = 100,
    replicas: Count = 1000,
    checkpoints: tuple[Count, ...] = (10_000, 20_000, 40_000, 80_000),
    coarse_steps: Count = 100,
    threshold: Positive = 1e-15,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Trajectories (`paths` of them are kept) and histograms beside the stationary density; probability of collapse.

    Collapse: |theta| < `threshold` at a checkpoint (not ever before it), for `noise_levels` zetas on [0, 3] x
    `replicas`. `coarse_steps` Euler steps are taken as one (`quartic_well.simulate_collapse`); the theory is that of
    the Euler chain, `collapse_theory`, and that of its limit of small steps, `collapse_theory_sde`.
    """
    if any(step % coarse_steps for step in checkpoints):
        raise InputError(f"checkpoints must be multiples of coarse_steps, {coarse_steps}")
    generator = torch.Generator(device).manual_seed(seed)
    walks = quartic_well.simulate_trajectories(
        mu, trajectory_noises, trajectories, paths, trajectory_steps, euler_step, generator
    )
    zetas = np.linspace(0, 3, noise_levels)
    collapse = quartic_well.simulate_collapse(
        mu, zetas, replicas, checkpoints, euler_step, coarse_steps, threshold, generator
    )

    chain_growth, chain_variance = log_growth(mu, zetas, euler_step)
    sde_growth = mu - zetas**2 / 2
    sde_variance = zetas**2

    def theory(growth: np.ndarray, variance: np.ndarray) -> list[np.ndarray]:
        """P(collapse) at each checkpoint; without noise (the first zeta) nothing collapses."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rows = [reflected_collapse(growth[1:], variance[1:], t * euler_step, threshold) for t in checkpoints]
        return [np.concatenate([[0.0], row]) for row in rows]

    edges = quartic_well.HISTOGRAM_EDGES
    return {
        "times": walks["times"],
        "paths": walks["paths"],
        "bin_edges": edges,
        "histogram": walks["histogram"],
        "stationary": [stationary_masses(mu, zeta, edges) for zeta in trajectory_noises],
        "noises": zetas,
        "collapse": collapse,
        "collapse_theory": theory(chain_growth, chain_variance),
        "collapse_theory_sde": theory(sde_growth, sde_variance),
    }


# ======================================================================================
# Figure 2: single neuron  f(x) = w2 tanh(w1 x)  on m points, SGD with label noise as an SDE
# ======================================================================================


@checked
def neuron(
    noise_levels: tuple = ((0.0, 1.0, 5), (1.05, 2.5, 40), (2.6, 4.0, 5)),
    points: Count = 32,
    replicas: Count = 1000,
    euler_step: Positive = 0.01,
    steps: Count = 100_000,
    coarse_steps: Count = 20,
    checkpoints: tuple[Count, ...] = (3040, 7080, 15_160, 31_320, 63_640, 100_000),
    initial: Positive = 1e-3,
    threshold: Positive = 1e-2,
    rate_noises: Count = 40,
    rate_replicas: Count = 500,
    rate_steps: Count = 3500,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Probability that the neuron vanishes (|w| < `threshold`), end points, and rates of collapse.

    Each noise level eta is the paper's eta zeta^2 with zeta = 1; `noise_levels` are (first, last,
    number). x ~ N(0, 1), y = x + 0.1 N(0, 1). `coarse_steps` Euler steps are taken as one
    (`single_neuron.neuron_step`), whose drift and noise are matched at the origin to the Euler chain's own log-growth,
    so that the published chain is reproduced, its bias included. The rates are measured on the plain
    Euler chain, started deep inside (|w| about 1e-16 or 1e-5).
    """
    if any(step % coarse_steps or step > steps for step in checkpoints):
        raise InputError(f"checkpoints must be multiples of coarse_steps, {coarse_steps}, up to {steps:,}")
    checkpoints = tuple(sorted(set(checkpoints)))
    eta = noise_grid(noise_levels)
    generator = torch.Generator(device).manual_seed(seed)
    data = torch.Generator().manual_seed(seed)
    x = torch.randn(points, generator=data, dtype=torch.float64)
    y = x + 0.1 * torch.randn(points, generator=data, dtype=torch.float64)
    a = float((x * y).mean())  # growth of w1 + w2 at the origin, without noise
    power = float((x * x).mean())  # eta times this is the variance of its noise
    table = single_neuron.neuron_table(x, y).to(device, torch.float32)

    h = coarse_steps * euler_step
    matched = single_neuron.match_euler(eta, a, power, euler_step, h, device)
    start = initial * torch.randn(2, replicas, generator=generator, device=device)
    w1, w2 = start[:, None].repeat(1, len(eta), 1)  # the same for all noise levels
    coarse = range(coarse_steps, steps + 1, coarse_steps)
    collapse, ends = single_neuron.simulate_collapse(
        table, w1, w2, matched, h, coarse, checkpoints, threshold, generator
    )

    in_thresholds = np.linspace(0.05, 2.5, rate_noises)  # at 1 the exponent at the origin changes its sign
    rate_eta = in_thresholds * 2 * a / power
    rate, rate_error = single_neuron.measure_rates(
        table, rate_eta, a, power, euler_step, rate_steps, rate_replicas, generator
    )
    chain_rate, _ = log_growth(a, np.sqrt(rate_eta * power), euler_step)
    return {
        "x": x,
        "y": y,
        "noises": eta / 2,  # the paper's axis: eta zeta^2 sigma'(0) / 2
        "threshold": a / power,
        "checkpoint_steps": [0, *checkpoints],
        "collapse": collapse,
        "ends": ends[:, :40].cpu(),
        "rate_noises": rate_eta / 2,
        "rate": rate,
        "rate_error": rate_error,
        "rate_theory": a - rate_eta * power / 2,
        "rate_theory_chain": chain_rate,
    }


def noise_grid(levels: tuple) -> np.ndarray:
    """Noise levels from stretches (first, last, number), one after the other."""
    grids = []
    for stretch in levels:
        is_stretch = isinstance(stretch, tuple | list) and len(stretch) == 3
        if not is_stretch or not all(np.isfinite(stretch)) or min(stretch) < 0 or stretch[2] < 1:
            raise InputError(f"noise_levels: expected stretches (first, last, number), not {stretch!r}")
        first, last, number = stretch
        grids.append(np.linspace(first, last, int(number)))
    if not grids:
        raise InputError("noise_levels: expected at least one stretch (first, last, number)")
    return np.concatenate(grids)


# ======================================================================================
# Figure 3: two neurons  f(x) = sum_k b_k gelu(a_k x),  SGD with momentum and label noise
# ======================================================================================


@checked
def pair(
    learning_rates: tuple[Positive, ...] = (0.1, 0.2, 0.3, 0.4, 0.5),
    label_noises: tuple[NotNegative, ...] = (0.0, 0.1, 0.2, 0.4, 0.8),
    replicas: Count = 8,
    extra_replicas: CountOrZero = 56,
    steps: Count = 10_001,
    points: Count = 8,
    momentum: Momentum = 0.9,
    a: tuple[Number, ...] = (1.0, 0.6),
    b: tuple[Number, ...] = (-0.6, -0.4),
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Squared distance (a1 - a2)^2 + (b1 - b2)^2 of two neurons over SGD steps, and its decay rate.

    Loss 1/2N sum (f - y - sigma xi)^2 with fresh label noise xi at every step. Conditions: the
    learning rates at sigma 0.1, then the label noises at learning rate 0.1. The first `replicas`
    repeat the reference's random stream; `extra_replicas` more sharpen the decay rates. The predicted rate is twice
    the top Lyapunov exponent of the linearised difference of a merged network (`two_neurons.simulate_pairs`).
    """
    if len(a) != 2 or len(b) != 2:
        raise InputError("a and b: expected two numbers each, one per neuron")
    every = 10
    burn_in = steps // 5
    shortest = 5 * every + 1
    if steps < shortest:
        raise InputError(f"steps: expected at least {shortest}, so that rates can be measured, not {steps}")
    conditions = [(rate, 0.1) for rate in learning_rates] + [(0.1, sigma) for sigma in label_noises]
    rates, sigmas = torch.tensor(conditions, dtype=torch.float64, device=device).T

    generator = torch.Generator().manual_seed(seed)
    x, _, y, _ = (torch.randn(points, generator=generator) for _ in range(4))  # the reference: x, x test, y, y test
    streams = range(seed * replicas, (seed + 1) * replicas)
    noise = two_neurons.reference_noise(streams, steps, points)
    distances, exponents = two_neurons.simulate_pairs(
        x.double().to(device),
        y.double().to(device),
        start=torch.tensor([a, b], dtype=torch.float64, device=device),
        learning_rates=rates,
        label_noises=sigmas,
        noise_of_first=noise.transpose(1, 2).to(device),
        replicas=replicas + extra_replicas,
        momentum=momentum,
        every=every,
        burn_in=burn_in,
        draws=torch.Generator(device).manual_seed(seed),
    )
    shown = slice(None, None, 50 // every)  # a fifth of the times is enough to draw
    times = np.arange(distances.shape[2]) * every
    return {
        "times": times[shown],
        "learning_rates": [rate for rate, _ in conditions],
        "label_noises": [sigma for _, sigma in conditions],
        "distances": distances[:, :replicas, shown],
        **two_neurons.pair_rates(distances, exponents.to(distances.device), every, burn_in),
    }


# ======================================================================================
# The sets themselves: vanished neurons and equal neurons stay so, whatever the batches
# ======================================================================================


@checked
def invariance(
    learning_rate: Positive = 0.05,
    momentum: Momentum = 0.9,
    weight_decay: NotNegative = 5e-4,
    steps: Count = 60,
    batch_size: Count = 16,
    offset: Positive = 1e-6,
    seed: Seed = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """SGD on random images that starts on an invariant set, without and with momentum and weight decay. On the CPU.

    "rows": network, set ("sign": a neuron without effect; "permutation": two equal ones), the `largest` normalised
    distance to the set over the run, how far the weights `moved` relative to their norm, and as `control` the largest
    distance of a run that starts `offset` off the set.
    """
    rows = []
    for case in invariant_sets.CASES:
        for which in invariant_sets.SETS:
            for pulls in ({"momentum": 0.0, "weight_decay": 0.0}, {"momentum": momentum, "weight_decay": weight_decay}):
                training = {"learning_rate": learning_rate, "steps": steps, "batch_size": batch_size} | pulls
                rows.append(invariant_sets.try_set(case, which, offset, seed, **training))
    return {"rows": rows}


QUICK = {
    "quartic": {"trajectories": 500, "noise_levels": 25, "replicas": 300},
    "neuron": {"replicas": 100, "steps": 15_160, "checkpoints": (3040, 7080, 15_160), "rate_replicas": 50},
    "pair": {"steps": 3001, "extra_replicas": 8},
    "invariance": {"steps": 3},
}

if __name__ == "__main__":
    experiments = {"quartic": quartic, "neuron": neuron, "pair": pair, "invariance": invariance}
    run_script(__doc__, experiments, QUICK)
