"""Tests of toy_models.py and its pieces: physics, against plain loops and solvers without random numbers."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import toy_models
from experiments import single_neuron, theory, two_neurons
from lib.errors import InputError
from tests.fokker_planck import fokker_planck


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ======================================================================================
# quartic well
# ======================================================================================


def test_quartic_collapse_equals_the_euler_chain_and_fokker_planck():
    """The coarse recursion against the paper's own small steps (at one time) and against a solver without noise."""
    r = toy_models.quartic(trajectory_steps=10, trajectories=10, noise_levels=11, replicas=4000)
    grid, steps = r["noises"], (10_000, 20_000, 40_000, 80_000)
    growth, variance = theory.log_growth(1.5, grid, 0.0025)
    for k in (6, 7, 8, 9):
        exact = fokker_planck(growth[k], variance[k], [t * 0.0025 for t in steps], 1e-15)
        error = 3 * np.sqrt(np.multiply(exact, np.subtract(1, exact)) / 4000)
        assert np.all(np.abs(r["collapse"][:, k].numpy() - exact) < 0.01 + error), grid[k]
    # Literal chain, float64, zeta = 2.1 and 2.4
    g = generator(5)
    zeta = torch.tensor([[grid[7]], [grid[8]]])
    theta = 2 * torch.randn(2, 3000, generator=g, dtype=torch.float64)
    for _ in range(10_000):
        xi = torch.randn(2, 3000, generator=g)
        theta = theta + -(theta**3 - 1.5 * theta) * 0.0025 + zeta * 0.05 * theta * xi
    chain = (theta.abs() < 1e-15).double().mean(1)
    ours = r["collapse"][0, [7, 8]]
    error = (chain * (1 - chain) / 3000 + ours * (1 - ours) / 4000).sqrt()
    assert ((chain - ours).abs() < 0.02 + 3 * error).all()


# ======================================================================================
# single neuron
# ======================================================================================


def neuron_data():
    g = generator()
    x = torch.randn(32, generator=g, dtype=torch.float64)
    return x, x + 0.1 * torch.randn(32, generator=g, dtype=torch.float64)


def test_neuron_drift_is_minus_the_gradient_and_two_normals_do_the_work_of_32():
    x, y = neuron_data()
    table = single_neuron.neuron_table(x, y, size=2**16)
    w = 1.5 * torch.randn(2, 200, generator=generator(1), dtype=torch.float64)
    eta, step = torch.tensor(2.0, dtype=torch.float64), 0.01

    def moved(first, second):
        w1, w2 = w.clone()
        single_neuron.neuron_euler(table, w1, w2, eta, step, torch.tensor([[first], [second]], dtype=torch.float64))
        return torch.stack([w1, w2]) - w

    weights = w.clone().requires_grad_()
    output = weights[1, :, None] * torch.tanh(weights[0, :, None] * x)
    loss = 0.5 * (output - y).square().mean(1).sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert torch.allclose(moved(0.0, 0.0), -step * gradient, rtol=2e-3, atol=1e-6)  # the table's own resolution
    # Covariance of sum_i sqrt(eta dt / m) grad f(x_i) xi_i with independent xi_i
    per_point = torch.func.vmap(torch.func.jacrev(lambda v: v[1] * torch.tanh(v[0] * x)))(w.T.contiguous())
    expected = eta * step / 32 * per_point.mT @ per_point
    kicks = torch.stack([moved(1.0, 0.0) - moved(0.0, 0.0), moved(0.0, 1.0) - moved(0.0, 0.0)])
    ours = torch.einsum("kin,kjn->nij", kicks, kicks)
    assert torch.allclose(ours, expected, rtol=2e-3, atol=1e-6)


def test_neuron_step_equals_the_euler_chain_on_the_same_noise():
    """20 Euler steps against one exponential step driven by their summed noise: collapse probabilities within 0.02.

    The same noise cancels the sampling error: the standard error of the difference is about 0.006.
    """
    x, y = neuron_data()
    a, power = float((x * y).mean()), float((x * x).mean())
    table = single_neuron.neuron_table(x, y).float()
    eta = np.array([1.2, 1.6, 2.0, 2.4])
    matched = single_neuron.match_euler(eta, a, power, 0.01, 0.2, "cpu")
    g, column = generator(2), torch.tensor(eta, dtype=torch.float32)[:, None]
    w1, w2 = 1e-3 * torch.randn(2, 4, 1500, generator=g)
    e1, e2 = w1.clone(), w2.clone()
    for step in range(1, 354):
        total = torch.zeros(2, 4, 1500)
        for _ in range(20):
            xi = torch.randn(2, 4, 1500, generator=g)
            single_neuron.neuron_euler(table, e1, e2, column, 0.01, xi)
            total += xi
        w1, w2 = single_neuron.neuron_step(table, w1, w2, matched, 0.2, total / math.sqrt(20))
        if step in (152, 353):
            gap = (torch.hypot(w1, w2) < 0.01).float() - (torch.hypot(e1, e2) < 0.01).float()
            error = gap.std(1) / math.sqrt(1500)
            assert error.max() < 0.008 and (gap.mean(1).abs() < 0.02).all(), (step, gap.mean(1))


def test_rows_of_the_neuron_are_of_the_checkpoints_they_name():
    small = {"replicas": 20, "steps": 400, "rate_noises": 2, "rate_replicas": 2, "rate_steps": 40}
    small |= {"threshold": 0.002, "noise_levels": ((2.0, 3.0, 3),)}
    in_order = toy_models.neuron(**small, checkpoints=(40, 200, 400))
    jumbled = toy_models.neuron(**small, checkpoints=(400, 40, 200, 40))
    assert jumbled["checkpoint_steps"] == in_order["checkpoint_steps"] == [0, 40, 200, 400]
    assert torch.equal(jumbled["collapse"], in_order["collapse"]) and len(in_order["collapse"]) == 4


def test_a_single_point_drives_the_neuron_along_its_gradient():
    """Where tanh is 1 the data push w2 alone; on one point both weights get the same noise."""
    x = torch.tensor([1.5], dtype=torch.float64)
    table = single_neuron.Coefficients(*single_neuron.neuron_table(x, x))
    assert all(row.isfinite().all() for row in table)
    w1 = math.sqrt(4095)  # of the last column
    assert table.noise_1[-1] == 0 and table.noise_22[-1] == pytest.approx(1 / w1)
    assert table.noise_22[0] == pytest.approx(0, abs=1e-7)


def test_one_noise_level_and_one_replica_are_enough(recwarn):
    small = {"trajectory_steps": 20, "trajectories": 5, "replicas": 5, "checkpoints": (100,)}
    one = toy_models.quartic(**small, noise_levels=1, trajectory_noises=(0.0,))
    assert one["collapse_theory"] == [[0.0]] and one["stationary"] == [None]
    pair = toy_models.pair(replicas=1, extra_replicas=0, steps=60)
    assert pair["rate_theory"].isfinite().all() and pair["rate_theory_error"].isnan().all()
    assert not recwarn.list


def test_the_origin_of_the_neuron_is_invariant():
    x, y = neuron_data()
    table = single_neuron.neuron_table(x, y).float()
    matched = single_neuron.match_euler(np.array([2.0]), 1.0, 1.0, 0.01, 0.1, "cpu")
    w1, w2 = single_neuron.neuron_step(table, torch.zeros(1, 9), torch.zeros(1, 9), matched, 0.1, torch.randn(2, 1, 9))
    assert not w1.any() and not w2.any()


def test_neuron_rates_match_the_linearised_exponent():
    r = toy_models.neuron(replicas=2, steps=20, checkpoints=(20,), rate_noises=12, rate_replicas=200)
    gap = (r["rate"] - torch.from_numpy(r["rate_theory_chain"])).abs()
    assert (gap < 4 * r["rate_error"] + 0.01).all()
    assert (r["rate_error"] < 0.02).all() and r["rate"][0] > 0.8 and r["rate"][-1] < -1.5


# ======================================================================================
# two neurons
# ======================================================================================


def test_pair_forces_are_derivatives_of_gelu():
    a, x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    g, g1, g2 = two_neurons.gelu_derivatives(a.detach()[..., None], x)
    value = F.gelu(a[..., None] * x)
    assert torch.allclose(g, value)
    for k in range(5):
        (first,) = torch.autograd.grad(value[..., k].sum(), a, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), a, retain_graph=True)
        assert torch.allclose(g1[..., k], first) and torch.allclose(g2[..., k], second)


def test_pair_repeats_a_plain_training_loop_on_the_same_noise():
    """Against nn.Linear, autograd and torch.optim.SGD, seed by seed as the reference draws its noise."""
    r = toy_models.pair(learning_rates=(0.1, 0.3), label_noises=(0.4,), replicas=2, extra_replicas=1, steps=301)
    torch.manual_seed(0)
    x, _, y, _ = (torch.randn(8, 1) for _ in range(4))
    for condition, (rate, sigma) in enumerate([(0.1, 0.1), (0.3, 0.1), (0.1, 0.4)]):
        for seed in range(2):
            torch.manual_seed(seed)
            first, second = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
            with torch.no_grad():
                first.weight.copy_(torch.tensor([[1.0], [0.6]]))
                second.weight.copy_(torch.tensor([[-0.6, -0.4]]))
            optimizer = torch.optim.SGD([first.weight, second.weight], lr=rate, momentum=0.9)
            for step in range(301):
                if step == 300:
                    d = (first.weight[0] - first.weight[1]).square() + (
                        second.weight[0, 0] - second.weight[0, 1]
                    ).square()
                    assert r["distances"][condition, seed, r["times"].tolist().index(300)] == pytest.approx(
                        d.item(), rel=1e-3
                    )
                loss = 0.5 * (second(F.gelu(first(x))) - y - sigma * torch.randn(8, 1)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def test_pair_rate_is_the_lyapunov_exponent():
    r = toy_models.pair(learning_rates=(0.2,), label_noises=(0.2,), replicas=1, extra_replicas=15, steps=4001)
    error = 3 * torch.hypot(r["rate_error"], r["rate_theory_error"])
    assert ((r["rate"] - r["rate_theory"]).abs() < error).all() and (error < 0.15 * r["rate"].abs()).all()


def test_equal_neurons_stay_equal_to_the_bit():
    r = toy_models.pair(
        learning_rates=(0.3,), label_noises=(0.8,), extra_replicas=0, steps=501, a=(0.7, 0.7), b=(-0.5, -0.5)
    )
    assert not r["distances"].any()


@pytest.mark.parametrize(
    "experiment, settings, words",
    [
        (toy_models.quartic, {"checkpoints": (150,)}, "multiples of coarse_steps, 100"),
        (toy_models.neuron, {"checkpoints": (30,)}, "multiples of coarse_steps, 20"),
        (toy_models.neuron, {"checkpoints": (200,), "steps": 100}, "up to 100"),
        (toy_models.neuron, {"noise_levels": ((0, 1),)}, "first, last, number"),
        (toy_models.neuron, {"noise_levels": ()}, "at least one stretch"),
        (toy_models.pair, {"a": (1.0, 0.5, 0.2)}, "two numbers each"),
        (toy_models.pair, {"steps": 20}, "at least 51"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(experiment, settings, words):
    with pytest.raises(InputError, match=words):
        experiment(**settings)


def test_another_seed_shares_no_noise():
    """--seed K is a new sample: none of its label noises are those of another K."""
    own = [two_neurons.reference_noise(range(seed * 8, (seed + 1) * 8), 4, 8) for seed in (0, 1)]
    for one in own[0].unbind(1):
        assert all((one - other).abs().min() > 0 for other in own[1].unbind(1))
    small = {"trajectory_steps": 20, "trajectories": 50, "noise_levels": 4, "replicas": 20, "checkpoints": (100,)}
    paths = [toy_models.quartic(**small, seed=seed)["paths"] for seed in (0, 0, 1)]
    assert torch.equal(paths[0], paths[1]) and not (paths[0] == paths[2]).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_experiments_run_on_a_gpu():
    r = toy_models.quartic(trajectory_steps=100, noise_levels=20, device="cuda")
    gap = r["collapse"].cpu().numpy() - np.array(r["collapse_theory"])
    assert np.abs(gap).max() < 0.08
    toy_models.neuron(replicas=50, steps=1000, checkpoints=(1000,), rate_replicas=10, device="cuda")
    toy_models.pair(steps=201, device="cuda")
