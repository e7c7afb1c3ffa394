"""The tests: physics and contracts. `pytest` takes under three minutes on two cores, needs no network and no GPU."""

import copy
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import claims
import core
import figures
import teacher_student
import theory
import toy_models

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)  # small tensors
    torch.set_flush_denormal(True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ======================================================================================
# models
# ======================================================================================


def test_networks_are_the_papers():
    vgg, resnet = core.vgg16(), core.resnet18()
    assert sum(p.numel() for p in vgg.parameters()) == 15_245_130
    assert sum(p.numel() for p in resnet.parameters()) == 11_220_132
    for model, classes in ((vgg, 10), (resnet, 100)):
        kinds = {type(module) for module in model.modules()}
        assert nn.GELU in kinds and nn.ReLU not in kinds and nn.Dropout not in kinds
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in vgg.modules())
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
            assert not module.bias.any()
    assert resnet.conv1.stride == (1, 1) and resnet.conv1.kernel_size == (3, 3)


def test_width_scales_every_layer():
    for make in (core.vgg16, core.resnet18):
        wide = {name: p.shape for name, p in make(10, 64).named_parameters()}
        narrow = {name: p.shape for name, p in make(10, 8).named_parameters()}
        assert wide.keys() == narrow.keys()
        for name, shape in narrow.items():
            for a, b in zip(shape, wide[name], strict=True):
                assert a == b or 8 * a == b


# ======================================================================================
# quartic well
# ======================================================================================


def fokker_planck(growth, variance, times, threshold, cell=0.15):
    """P(|theta| < threshold) without random numbers: log|theta| on a grid, drift growth - exp(2x), by eigenvectors."""
    x = np.arange(-90, 3.0, cell)
    edges = (x[1:] + x[:-1]) / 2
    potential = (np.exp(2 * x) / 2 - growth * x) * 2 / variance  # of the stationary density exp(-potential)
    # Jump rates between neighbours that keep detailed balance, symmetrised by sqrt(density)
    rate = variance / 2 / cell**2
    up, down = rate * np.exp(-np.diff(potential) / 2), rate * np.exp(np.diff(potential) / 2)
    keep = edges < 2.5
    up, down = up[keep], down[keep]
    n = keep.sum() + 1
    x, potential = x[:n], potential[:n]
    symmetric = np.diag(-np.append(up, 0) - np.append(0, down)) + np.diag(np.full(n - 1, rate), 1)
    symmetric += np.diag(np.full(n - 1, rate), -1)
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(symmetric)))
    density = np.exp(-(np.exp(2 * x) / 8) + x)  # theta_0 = 2 N(0, 1), as a density of log|theta|
    start = density / density.sum() * np.exp((potential - potential[-20]) / 2)
    below = (x < math.log(threshold)) * np.exp(-(potential - potential[-20]) / 2)
    return [min(max(below @ vectors @ (np.exp(values * t) * (vectors.T @ start)), 0.0), 1.0) for t in times]


def test_log_growth_is_the_mean_log_of_the_euler_factor():
    mean, variance = theory.log_growth(1.5, np.array([0.5, 2.0, 3.0]), 0.01)
    xi = np.random.default_rng(0).normal(size=(3, 400_000))
    logs = np.log(np.abs(1 + 1.5 * 0.01 + np.array([[0.5], [2.0], [3.0]]) * 0.1 * xi)) / 0.01
    assert np.all(abs(mean - logs.mean(1)) < 4 * logs.std(1) / math.sqrt(400_000))
    assert np.allclose(variance, logs.var(1) * 0.01, rtol=0.02)
    mean, variance = theory.log_growth(1.5, np.array([2.0]), 1e-6)
    assert mean[0] == pytest.approx(1.5 - 2, abs=1e-4) and variance[0] == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("zeta", [1.8, 2.0, 2.4, 2.9])
def test_the_reflected_brownian_motion_solves_fokker_planck(zeta):
    growth, variance = 1.5 - zeta**2 / 2, zeta**2
    times = (25, 50, 100, 200)
    exact = fokker_planck(growth, variance, times, 1e-15)
    closed = [theory.reflected_collapse(np.array([growth]), np.array([variance]), t, 1e-15).item() for t in times]
    assert np.abs(np.subtract(exact, closed)).max() < 0.01


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


def test_stationary_density_integrates_to_one_and_ends_at_the_threshold():
    edges = np.linspace(-6, 6, 241)
    for zeta in (0.1, 1.0, 1.5, 1.7):
        masses = theory.stationary_masses(1.5, zeta, edges)
        assert masses.sum() == pytest.approx(1, abs=1e-6) and np.allclose(masses, masses[::-1], atol=1e-9)
    assert theory.stationary_masses(1.5, 1.7321, edges) is None
    # zeta = 1: density proportional to |theta| exp(-theta^2), whose integral is known
    masses = theory.stationary_masses(1.5, 1.0, edges)
    right = np.exp(-(edges[120:-1] ** 2)) - np.exp(-(edges[121:] ** 2))
    assert np.allclose(masses[120:], right / 2, atol=1e-5)


# ======================================================================================
# single neuron
# ======================================================================================


def neuron_data():
    g = generator()
    x = torch.randn(32, generator=g, dtype=torch.float64)
    return x, x + 0.1 * torch.randn(32, generator=g, dtype=torch.float64)


def test_neuron_drift_is_minus_the_gradient_and_two_normals_do_the_work_of_32():
    x, y = neuron_data()
    table = toy_models.neuron_table(x, y, size=2**16)
    w = 1.5 * torch.randn(2, 200, generator=generator(1), dtype=torch.float64)
    eta, step = torch.tensor(2.0, dtype=torch.float64), 0.01

    def moved(first, second):
        w1, w2 = w.clone()
        toy_models.neuron_euler(table, w1, w2, eta, step, torch.tensor([[first], [second]], dtype=torch.float64))
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
    table = toy_models.neuron_table(x, y).float()
    eta = np.array([1.2, 1.6, 2.0, 2.4])
    matched = toy_models.neuron_matching(eta, a, power, 0.01, 0.2, "cpu")
    g, column = generator(2), torch.tensor(eta, dtype=torch.float32)[:, None]
    w1, w2 = 1e-3 * torch.randn(2, 4, 1500, generator=g)
    e1, e2 = w1.clone(), w2.clone()
    for step in range(1, 354):
        total = torch.zeros(2, 4, 1500)
        for _ in range(20):
            xi = torch.randn(2, 4, 1500, generator=g)
            toy_models.neuron_euler(table, e1, e2, column, 0.01, xi)
            total += xi
        w1, w2 = toy_models.neuron_step(table, w1, w2, *matched, 0.2, total / math.sqrt(20))
        if step in (152, 353):
            gap = (torch.hypot(w1, w2) < 0.01).float() - (torch.hypot(e1, e2) < 0.01).float()
            error = gap.std(1) / math.sqrt(1500)
            assert error.max() < 0.008 and (gap.mean(1).abs() < 0.02).all(), (step, gap.mean(1))


def test_the_origin_of_the_neuron_is_invariant():
    x, y = neuron_data()
    table = toy_models.neuron_table(x, y).float()
    matched = toy_models.neuron_matching(np.array([2.0]), 1.0, 1.0, 0.01, 0.1, "cpu")
    w1, w2 = toy_models.neuron_step(table, torch.zeros(1, 9), torch.zeros(1, 9), *matched, 0.1, torch.randn(2, 1, 9))
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
    g, g1, g2 = toy_models.pair_forces(a.detach()[..., None], x)
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


# ======================================================================================
# linear teacher-student
# ======================================================================================


def test_the_teacher_is_the_papers():
    problem = teacher_student.teacher()
    assert np.allclose(problem["values"][:6], [1.267, 1.230, 1.137, 1.033, 1.018, 0.971], atol=1e-3)
    assert problem["y"].var(correction=0).item() * problem["y"].numel() == pytest.approx(258.24, abs=0.01)
    assert torch.allclose(problem["x"].T @ problem["x"], torch.eye(64, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.svdvals(problem["w"])[:8], torch.linspace(1, 0.5, 8, dtype=torch.float64))


def test_losses_in_modes_equal_losses_of_matrices():
    problem = teacher_student.teacher()
    train, test, paper_factor = teacher_student.losses(problem)
    s = torch.rand(3, 64, generator=generator(), dtype=torch.float64)
    for modes, ours, error in zip(s, train(s), test(s), strict=True):
        student = problem["left"] * modes @ problem["right"]
        plain = (problem["x"] @ student - problem["y"]).square().mean() / 2 / problem["y"].var(correction=0)
        wrong = (student - problem["w"]).square()
        assert ours.item() == pytest.approx(plain.item())
        assert error.item() == pytest.approx(wrong.sum().item() / problem["w"].square().sum().item())
        scale = problem["y"].var(correction=0) * problem["y"].numel()
        assert error.item() * paper_factor == pytest.approx((wrong.mean() / scale).item())


def test_diagonal_equals_u_and_v_kept_apart():
    r = teacher_student.diagonal(label_noises=(0.0, 10.0), replicas=16, drop_step=300, steps=400)
    values = r["true"]
    g, sigma = generator(), torch.tensor([0.0, 10.0])[:, None, None]
    u, v = torch.ones(2, 2, 16, 64)
    for step in range(400):
        eta = 3 / 1024 * (0.1 if step >= 300 else 1)
        residual = u * v - values + sigma * torch.empty(16, 64).normal_(generator=g)
        u, v = u - eta * residual * v, v - eta * residual * u
    assert torch.allclose(r["mean"][:, -1], (u * v).mean(1), rtol=1e-3, atol=1e-5)


def test_modes_have_the_predicted_gamma_law():
    """Mean s* - eta sigma^2 / 2 and variance eta sigma^2 times the mean, for the 12 largest modes, within 4 s.e."""
    r = teacher_student.diagonal(label_noises=(15.0,), replicas=400, drop_step=6000, steps=6000)
    noise = r["eta"] * 225
    mean = r["true"][:12].double() - noise / 2
    spread = (noise * mean).sqrt()
    assert ((r["mean"][0, 0, :12] - mean).abs() < 4 * spread / 20).all()
    assert (r["std"][0, 0, :12] / spread - 1).abs().mean() < 0.1


def test_the_logistic_solves_its_equation():
    start, target = torch.rand(50, dtype=torch.float64), torch.linspace(-0.5, 1, 50, dtype=torch.float64)
    s = start.clone()
    for _ in range(20_000):
        s += 1e-4 * 2 * s * (target - s)
    assert torch.allclose(theory.logistic(start, target, 2.0), s, rtol=1e-3)
    zero = theory.logistic(start, torch.zeros(50, dtype=torch.float64), 2.0)
    assert torch.allclose(zero, start / (1 + 4 * start))


def test_the_full_batch_is_the_diagonal_model_without_noise():
    problem = teacher_student.teacher()
    r = teacher_student.minibatch(batch_sizes=(1024,), warmup_steps=1, drop_steps=(400, 500), steps=600)
    s = torch.ones(64, dtype=torch.float64)
    for step in range(600):
        eta = 3 / 1024 * 0.1 ** ((step >= 400) + (step >= 500))
        s = s * (1 - eta * (s - problem["values"])) ** 2
    assert torch.allclose(r["spectra"][0, -1].double(), s.sort(descending=True).values, rtol=2e-4)
    train, test, _ = teacher_student.losses(problem)
    assert r["train"][0, -1].item() == pytest.approx(train(s).item(), rel=1e-4)
    assert r["test"][0, -1].item() == pytest.approx(test(s).item(), rel=1e-3)


def test_a_minibatch_epoch_sees_every_example_once():
    """At a vanishing learning rate an epoch of any batch size moves as one full-batch step, to first order."""
    moved = []
    for size, steps in ((64, 16), (1024, 1)):
        r = teacher_student.minibatch(
            batch_sizes=(size,),
            replicas=1,
            learning_rate=size / 1024,
            warmup_steps=1,
            drop_steps=(99,),
            steps=steps,
        )
        moved.append(r["spectra"][0, -1] - 1)
    assert torch.allclose(moved[0], moved[1], atol=5e-3 * moved[1].abs().max().item())
    with pytest.raises(ValueError, match="must divide the 1024 examples"):
        teacher_student.minibatch(batch_sizes=(64, 48), steps=1)


# ======================================================================================
# scripts, figures, claims, README
# ======================================================================================


def run_command(*command, cwd=HERE, **options):
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, **options)


SCRIPTS = (
    "toy_models teacher_student vgg_cifar10 resnet_cifar100 sparse_features chaotic_sgd subnetworks benchmark figures"
)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a script in this process, where torch is loaded already: (exit code, stdout, stderr)."""

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(HERE / script), run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("script", [f"{name}.py" for name in SCRIPTS.split()])
def test_help_and_unknown_names(script, run_here):
    code, shown, _ = run_here(script, "--help")
    assert code == 0 and "--quick" in shown and re.search(f"(python|torchrun --nproc_per_node=8) {script}", shown)
    code, _, line = run_here(script, "nonsense")
    assert code == 2 and "unknown" in line and "nonsense" in line and line.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, run_here):
    (tmp_path / "file").write_text("")
    for command in (["toy_models.py", "quartic", "--out"], ["figures.py", "--figures"]):
        code, _, line = run_here(*command, tmp_path / "file", "--quick")
        assert code == 2 and "can't write" in line and line.count("\n") == 1


def test_a_device_that_is_not_there_is_one_line(run_here):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, line = run_here("toy_models.py", "quartic", "--device", "cuda")
    assert code == 2 and "no CUDA GPU" in line and line.count("\n") == 1


def test_results_are_replaced_whole_or_not_at_all(tmp_path, capsys):
    def good(seed=0, device=None, n=3):
        return {"values": torch.arange(n) / 3, "nothing": math.nan}

    def interrupted(seed=0, device=None):
        raise KeyboardInterrupt

    def refused(seed=0, device=None):
        raise ValueError("no such noise")

    options = ["--out", str(tmp_path), "--device", "cpu"]
    core.run_script("doc", {"a": good}, {}, [*options, "--seed", "7"])
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["settings"] == {"seed": 7, "n": 3} and saved["values"] == [0, 0.333333, 0.666667]
    assert saved["nothing"] is None and saved["quick"] is False
    assert {"torch", "numpy", "device", "date", "seconds"} <= saved["environment"].keys()
    before = (tmp_path / "a.json").read_bytes()
    for function, code in ((interrupted, 130), (refused, 2)):
        with pytest.raises(SystemExit) as caught:
            core.run_script("doc", {"a": function}, {}, options)
        assert caught.value.code == code
    with pytest.raises(TypeError):
        core.write_json(tmp_path / "a.json", {"bad": object()})
    assert (tmp_path / "a.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert "no such noise" in capsys.readouterr().err


def test_times_that_never_come_are_refused():
    for experiment, settings, words in (
        (toy_models.quartic, {"checkpoints": (150,)}, "multiples of coarse_steps, 100"),
        (toy_models.neuron, {"checkpoints": (30,)}, "multiples of coarse_steps, 20"),
        (toy_models.neuron, {"checkpoints": (200,), "steps": 100}, "up to 100"),
        (teacher_student.diagonal, {"steps": 3000}, "drop_step must lie within"),
    ):
        with pytest.raises(ValueError, match=words):
            experiment(**settings)


def test_any_setting_can_be_changed_and_a_replaced_result_is_kept(tmp_path, capsys):
    seen = []

    networks, narrow = [], {"width": 4}

    def a(mu: float = 1.5, sizes: tuple = (1, 2), name: str = "x", steps: int = 3, k=None, net=narrow, seed=0,
          device="cpu"):  # fmt: skip
        seen.append((mu, sizes, name, steps, k))
        networks.append(net)
        return {"found": mu}

    def run(*words):
        core.run_script("doc", {"a": a, "b": lambda seed=0, device="cpu": {}}, {}, [*words, "--out", str(tmp_path)])

    run("a")
    run("a", "--set", "mu=2", "sizes=4", "name=2024", "k=0.5")
    run("a", "--set", "sizes=(4, 5)", "mu=2", "name=3d", "k=mean", "net={'seed': 2}")
    assert networks[1:] == [{"width": 4}, {"width": 4, "seed": 2}]
    assert seen[1:] == [(2, (4,), "2024", 3, 0.5), (2, (4, 5), "3d", 3, "mean")]
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "replaced").glob("a_*.json"))]
    assert [old["found"] for old in kept] == [1.5, 2] and "kept as" in capsys.readouterr().out
    before = sorted(tmp_path.rglob("*.json"))
    run("a", "--set", "sizes=(4, 5)", "mu=2", "name=3d", "k=mean", "net={'seed': 2}")  # the same again: nothing to keep
    assert sorted(tmp_path.rglob("*.json")) == before
    for words, why in {
        ("a", "--set", "nu=2"): "no setting nu; there are mu, sizes, name, steps, k, net",
        ("a", "--set", "net={'breadth': 2}"): "the fields are model, dataset, learning_rate",
        ("a", "--set", "mu=much"): "expected a value like 1.5",
        ("a", "--set", "steps=2.5"): "expected a value like 3",
        ("a", "--set", "sizes=many"): "expected a value like (1, 2)",
        ("a", "--set", "sizes=(1, 0.5)"): "expected a value like (1, 2)",
        ("b", "--set", "mu=2"): "no setting mu",
    }.items():
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2 and why in capsys.readouterr().err


BAD_RESULTS = {
    "{": "Expecting property name",
    "[1, 2]": "no",
    '{"experiment": "pair", "settings": {}, "environment": {}, "quick": false}': "no result of that experiment",
    '{"experiment": "quartic", "settings": {}, "environment": {}, "quick": true}': "quick result among full",
    '{"experiment": "quartic", "settings": {}, "environment": {}, "quick": false}': "can't be drawn",
}


@pytest.mark.parametrize("content", BAD_RESULTS)
def test_a_corrupt_or_foreign_result_is_one_line(tmp_path, content):
    (tmp_path / "quartic.json").write_text(content)
    wrong = run_command("figures.py", "fig1_quartic", "--out", tmp_path, "--figures", tmp_path / "figures")
    assert wrong.returncode != 0 and BAD_RESULTS[content] in wrong.stderr and "quartic" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_folder_of_ones_own_is_drawn_into_itself_and_nothing_else_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    shutil.copy(HERE / "results" / "quartic.json", tmp_path / "mine")
    monkeypatch.setattr(figures, "run_experiments", None)
    figures.main(["--out", "mine"])
    shown = capsys.readouterr().out
    assert "fig1_quartic" in shown and "fig2_neuron" not in shown
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert found == {f"mine/{name}" for name in ("quartic.json", "figures/fig1_quartic.png", "figures/claims.md")} | {
        "mine/figures/claims.json"
    }


def test_figures_need_neither_torch_nor_core():
    code = "import figures, sys; assert not {'torch', 'core', 'torchvision'} & set(sys.modules)"
    assert run_command("-c", code).returncode == 0


def test_every_committed_result_says_where_it_comes_from():
    results = [*(HERE / "results").glob("*.json"), *(HERE / "results" / "later").glob("*.json")]
    assert results
    for path in results:
        saved = json.loads(path.read_text())
        assert saved["quick"] is False and saved["experiment"] == path.stem.removeprefix("benchmark_")
        assert {"torch", "numpy", "device", "date", "seconds"} <= saved["environment"].keys() and saved["settings"]
        assert path.stat().st_size < 2**20


def test_the_readme_shows_the_committed_claims_which_follow_from_the_committed_results():
    results = {path.stem: json.loads(path.read_text()) for path in (HERE / "results").glob("*.json")}
    table = claims.judge(results, list(figures.FIGURES))
    assert f"{claims.markdown(table)}\n{claims.tally(table)}" == (HERE / "figures" / "claims.md").read_text()
    assert json.loads((HERE / "figures" / "claims.json").read_text()) == table
    readme, holds = (HERE / "README.md").read_text(), [row["holds"] for row in table]
    yes, no, open_, waiting = (holds.count(kind) for kind in (True, False, "not resolved", "not run"))
    totals = f"{yes} hold, {no} fail, {open_} are not resolved, {waiting} wait for runs"
    assert claims.markdown(table) in readme and claims.tally(table) in readme
    assert totals in " ".join(readme.split())


def test_published_curves_judge_no_other_settings():
    names = ("quartic", "pair", "diagonal")
    results = {name: json.loads((HERE / "results" / f"{name}.json").read_text()) for name in names}
    shown = ["fig1_quartic", "fig3_pair", "fig5_teacher_student"]
    published = [row["holds"] for row in claims.judge(results, shown) if row["id"].endswith("-published")]
    assert published == [True] * 3
    for name, change in {"quartic": {"mu": 2.0}, "pair": {"momentum": 0.5}, "diagonal": {"learning_rate": 2.0}}.items():
        results[name]["settings"] |= change
    published = [row["holds"] for row in claims.judge(results, shown) if row["id"].endswith("-published")]
    assert published == ["not resolved"] * 3


def test_a_claim_does_not_hold_on_nothing():
    """One value of what is varied, one seed, or measurements that are missing decide no claim."""
    results = {p.stem: json.loads(p.read_text()) for p in (HERE / "results").glob("*.json")}
    quartic, pair, diagonal, minibatch = (results[name] for name in ("quartic", "pair", "diagonal", "minibatch"))
    quartic["collapse"], quartic["collapse_theory"] = quartic["collapse"][:1], quartic["collapse_theory"][:1]
    for name in ("test", "test_std"):
        diagonal[name], minibatch[name] = diagonal[name][:1], minibatch[name][:1]
    for name in ("rate", "distances"):
        pair[name] = np.full(np.shape(pair[name]), None).tolist()
    results["neuron"]["rate"] = [None] * len(results["neuron"]["rate"])
    results["delay"]["settings"]["seeds"] = 1
    results["sparse_deep"]["runs"] = [run for run in results["sparse_deep"]["runs"] if run["schedule"] == "small"]
    results["sparse_diagonal"]["settings"]["steps"] = results["sparse_regression"]["settings"]["steps"] = 3001
    for row in results["beyond_causes"]["rows"]:
        row |= {name: row[name][:1] for name in ("exponent", "curvature", "noise", "decay")}
    table = {row["id"]: row["holds"] for row in claims.judge(results, list(claims.CLAIMS))}
    undecided = """quartic-threshold neuron-threshold neuron-rate pair-noise pair-published student-test minibatch-size
        delay-published-sgd delay-published-pruned delay-slow deep-sparsity deep-error diagonal-reference
        diagonal-published-test diagonal-published-rank diagonal-gd-published diagonal-norm surface-published
        regression-rank regression-sparsity causes-noise causes-decay"""
    assert {name: table[name] for name in undecided.split()} == dict.fromkeys(undecided.split(), "not resolved")
    for name in ("neuron", "pair"):  # and what is there is drawn
        needs, draw = figures.FIGURES[{"neuron": "fig2_neuron", "pair": "fig3_pair"}[name]]
        draw(*(results[need] for need in needs))


def test_claims_can_fail():
    """Each claim about Stochastic Collapse turns false when its measurement is spoilt."""
    names = ("quartic", "neuron", "pair", "diagonal", "minibatch")  # the deep claims have a test of their own
    good = {name: json.loads((HERE / "results" / f"{name}.json").read_text()) for name in names}
    spoil = {
        "histogram": lambda r: [row[::-1] if k else [0] * len(row) for k, row in enumerate(r["histogram"])],
        "collapse": lambda r: [[1 - p for p in row] for row in r["collapse"]],
        "rate": lambda r: [None if x is None else -0.5 * x + 0.1 for x in r["rate"]],
        "distances": lambda r: [[[1.0] * len(t) for t in rows] for rows in r["distances"]],
        "mean": lambda r: [[r["true"]] * len(rows) for rows in r["mean"]],
        "test": lambda r: r["test"][::-1],
        "train": lambda r: r["train"][::-1],
    }
    bad = {
        name: r | {key: change(r) for key, change in spoil.items() if key in r and key != "settings"}
        for name, r in good.items()
    }
    table = claims.judge(bad, ["fig1_quartic", "fig2_neuron", "fig3_pair", "fig5_teacher_student", "fig5_minibatch"])
    assert len(table) == 16
    for row in table:
        assert row["holds"] is False, row["id"]
    assert {row["holds"] for row in claims.judge({}, list(claims.CLAIMS))} == {"not run"}
    quick = {name: r | {"quick": True} for name, r in good.items()}
    assert {row["holds"] for row in claims.judge(quick, ["fig1_quartic"])} == {"quick"}


def deep_result(fractions, varied="learning_rate"):
    """A result of two values by three seeds; fractions [value] of independent neurons, with a little spread."""
    runs = []
    for value, fraction in enumerate(fractions):
        for seed in range(3):
            columns = {"width": [100, 100], "independent": [100, 100 * fraction + seed], "effective_rank": [90, 80]}
            log = [{"step": 5, "groups": columns, "paper": columns, "train_loss": 1.0, "test_accuracy": 0.5}]
            run = {varied: value, "model": "vgg16", "dataset": "synthetic", "width": 4, "steps": 5, "seed": seed}
            runs.append({"run": run, "log": log, "diverged_at": None})
    return {"experiment": "vgg_lr", "varied": varied, "runs": runs, "branches": [], "quick": False}


@pytest.mark.parametrize(
    ("fractions", "holds"), [((0.9, 0.2), True), ((0.2, 0.9), False), ((0.5, 0.49), "not resolved")]
)
def test_deep_claims_hold_fail_or_are_not_resolved(fractions, holds):
    result = deep_result(fractions)
    rows = {row["id"]: row for row in claims.judge({"vgg_lr": result}, ["fig4_independent"])}
    assert rows["vgg-learning-rate"]["holds"] == holds and rows["resnet-learning-rate"]["holds"] == "not run"
    figures.FIGURES["fig4_independent"][1](result, None, None, None, None, None)
    alone = result | {"runs": [record for k, record in enumerate(result["runs"]) if k % 3 == 0]}
    assert claims.judge({"vgg_lr": alone}, ["fig4_independent"])[0]["holds"] == "not resolved"

    drop = {"step": 4, "groups": {"width": [100], "independent": [0]}, "test_accuracy": 0}
    branches, whole = [], result["runs"][:3]
    for step, fraction in zip((10, 20), fractions, strict=True):
        for seed in range(3):
            line = copy.deepcopy(drop) | {"test_accuracy": 0.9 - fraction / 10 + 0.001 * seed * (step == 10)}
            line["train_loss"] = 1.0
            run = {"start": f"x/weights_{step}.pt", "seed": seed}
            branches.append({"run": run, "log": [line], "diverged_at": None})
            at_drop = {"width": [100], "independent": [100 * fraction + seed * (step == 10)]}
            whole[seed]["log"].append(line | {"step": step, "groups": at_drop})
    lost = branches[0] | {"run": branches[0]["run"] | {"seed": 3}, "log": branches[0]["log"] * 2, "diverged_at": 5}
    result = result | {"runs": whole, "branches": [lost, *reversed(branches)]}
    rows = {row["id"]: row for row in claims.judge({"vgg_drop": result}, ["fig6_drop"])}
    assert rows["vgg-later-drop"]["holds"] == holds
    figures.FIGURES["fig6_drop"][1](result, None)
    gone = {"runs": [run | {"diverged_at": 3} for run in result["runs"]], "branches": []}
    assert figures.FIGURES["fig6_drop"][1](result | gone, None) is None
    assert claims.judge({"vgg_drop": result | gone}, ["fig6_drop"])[0]["holds"] == "not resolved"


def readme_commands():
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [part.strip() for line in lines for part in line.split("&&")]
    return sorted({command for command in commands if command.startswith("python ")})


def test_the_readmes_commands_run_in_quick_form(tmp_path, run_here):
    """In order of cost: figures.py runs all CPU experiments; a script that has run there is not run again."""
    commands = readme_commands()
    assert "python figures.py" in commands and any(command.startswith("python toy_models.py") for command in commands)
    out = ["--out", tmp_path / "results"]
    folders = [*out, "--figures", tmp_path / "figures"]
    ran = run_command("figures.py", "--quick", *folders)
    assert ran.returncode == 0, ran.stderr
    drawn = {path.stem for path in (tmp_path / "figures" / "quick").glob("*.png")}
    assert drawn == {"fig1_quartic", "fig2_neuron", "fig3_pair", "fig5_teacher_student", "fig5_minibatch"}
    assert "torchrun --nproc_per_node=8 vgg_cifar10.py noise" in ran.stdout  # says what is missing
    assert "quick" in (tmp_path / "figures" / "quick" / "claims.md").read_text()
    assert not list((tmp_path / "results").glob("*.json")) and not list((tmp_path / "figures").glob("*.png"))
    jobs = {}  # command as it is run here -> one of the README's
    for command in commands:
        script, *rest = command.split()[1:]
        assert (HERE / script).exists()
        if script == "figures.py":
            rest = [word for word in rest if word not in ("--fresh", "--quick", "--out", "mine")]
            jobs[(script, *rest, "--quick", *folders)] = command
        elif script == "toy_models.py":
            jobs[(script, "quartic", "--quick", *out)] = command
        else:
            assert run_here(script, "--help")[0] == 0, command
    assert len(jobs) >= 3
    for job, command in jobs.items():
        ran = run_command(*job)
        assert ran.returncode == 0, (command, ran.stderr)


def test_readme_python_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    code = f"import torch; torch.set_num_threads(1)\nfor block in {blocks!r}:\n    exec(block, {{}})"  # each by itself
    ran = run_command("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HERE)})
    assert ran.returncode == 0 and len(blocks) == 3, ran.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_experiments_run_on_a_gpu():
    r = toy_models.quartic(trajectory_steps=100, noise_levels=20, device="cuda")
    gap = r["collapse"].cpu().numpy() - np.array(r["collapse_theory"])
    assert np.abs(gap).max() < 0.08
    toy_models.neuron(replicas=50, steps=1000, checkpoints=(1000,), rate_replicas=10, device="cuda")
    toy_models.pair(steps=201, device="cuda")
    teacher_student.diagonal(replicas=8, drop_step=100, steps=200, device="cuda")
    teacher_student.minibatch(replicas=1, drop_steps=(100, 150), steps=200, device="cuda")
