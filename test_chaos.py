"""Tests of chaotic_sgd.py and curvature.py: physics and contracts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chaotic_sgd
import core
from curvature import curvature, eigh, initial, losses, project, tangent_step

ROOT = Path(__file__).parent
MLP = ("mlp", "sigmoid")
SETTINGS = {"task": MLP, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}


SMALL = core.synthetic_dataset(256, 64)


@pytest.fixture(autouse=True)
def one_thread_and_few_images(monkeypatch):
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    load = chaotic_sgd.load_dataset
    monkeypatch.setattr(chaotic_sgd, "load_dataset", lambda *which: SMALL if which[0] == "synthetic" else load(*which))


def networks(count, batch, architecture="mlp", scale=1.5):
    """Some networks [S, P], away from the initial scale, and a batch [S, b, 257] for each."""
    draw = torch.Generator().manual_seed(3)
    theta = scale * torch.stack([initial(seed, (architecture, "sigmoid")) for seed in range(count)])
    x = F.pad(torch.randn(count, batch, 256, generator=draw, dtype=torch.float64), (0, 1), value=1.0)
    return theta, x, torch.randint(10, (count, batch), generator=draw)


def problem(seeds=(0,), steps=40, task=MLP):
    """A small learnable problem without files, in the form that `setup` gives."""
    return chaotic_sgd.setup("synthetic", "nowhere", task, steps, 8, list(seeds), "cpu")


def basis(maps, size, n):
    """The orthonormal basis Q [P, n] that `lower` and `add` stand for."""
    return maps[1](torch.zeros(1, size, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[None], 1.0)[0]


@pytest.mark.parametrize("task", [MLP, ("mlp", "relu"), ("cnn", "relu")])
def test_curvature_is_the_full_hessian(task):
    theta, x, y = networks(1, 8, task[0])
    hessian, *maps = curvature(theta, x, y, task)
    full = torch.func.hessian(lambda one: losses(one[None], x, y, task)[0][0])(theta[0])
    q = basis(maps, len(full), hessian.shape[-1])
    assert task[0] == "cnn" or q.shape == (5350, 336)
    torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1], dtype=q.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(q @ hessian[0] @ q.T, full, rtol=0, atol=1e-10)
    assert full.abs().max() > 1e-3
    vectors = torch.randn(1, len(full), 3, dtype=torch.float64)
    torch.testing.assert_close(maps[0](vectors)[0], q.T @ vectors[0])


@pytest.mark.parametrize("batch", [1, 3, 9, 30])
def test_curvature_at_other_batch_sizes(batch):
    theta, x, y = networks(2, batch)
    hessian, lower, add = curvature(theta, x, y, MLP)
    v = torch.randn(2, 5350, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = add(torch.zeros_like(v), hessian @ lower(v), 1.0)
    gradient = torch.func.grad(lambda one: losses(one, x, y, MLP)[0].sum())
    for i in range(4):
        _, expected = torch.func.jvp(gradient, (theta,), (v[..., i],))
        torch.testing.assert_close(found[..., i], expected, rtol=0, atol=1e-10)


def test_networks_in_one_tensor_do_not_see_each_other():
    theta, x, y = networks(3, 8)
    together, alone = curvature(theta, x, y, MLP)[0], curvature(theta[2:], x[2:], y[2:], MLP)[0]
    torch.testing.assert_close(eigh(together)[0][2], eigh(alone)[0][0], rtol=0, atol=1e-13)


def cgd(hessian, gradient, lr=1.0, prune="chaotic", **rule):
    """CGD's gradient for a given Hessian [n, n]: what the reference code's unit tests call."""
    w, v = torch.linalg.eigh(hessian[None])
    keep = chaotic_sgd.keep_mask(w[0], lr, prune, **rule)[None]
    identity = (lambda vector: vector), (lambda vector, c, factor: vector.add_(c, alpha=factor))
    return project(gradient[None], keep, v, *identity)[0]


@pytest.mark.parametrize(
    "diagonal, prune, k, kept",
    [
        ((0.5, 0.5, 2.1, -3), "chaotic", None, (1, 1, 0, 0)),
        ((0.5, 0.5, 6, -3), "chaotic", 1, (1, 1, 0, 1)),
        ((0.5, 0.5, 2, -3), "neg", None, (1, 1, 1, 0)),
        ((0.5, 0.5, -4, -3), "neg", 1, (1, 1, 0, 1)),
        ((0.6, 0.5, -4, -3), "pos", 1, (0, 1, 1, 1)),
    ],
)
def test_cgd_rule_on_the_reference_codes_oracles(diagonal, prune, k, kept):
    hessian = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    result = cgd(hessian, torch.ones(4, dtype=torch.float64), prune=prune, k=k)
    torch.testing.assert_close(result, torch.tensor(kept, dtype=torch.float64))


@pytest.mark.parametrize("prune", ["chaotic", "neg", "pos"])
def test_cgd_rule_on_random_symmetric_matrices(prune):
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        a = torch.randn(30, 30, generator=draw, dtype=torch.float64)
        hessian, gradient = a + a.T, torch.randn(30, generator=draw, dtype=torch.float64)
        w, v = torch.linalg.eigh(hessian)
        inside = {"chaotic": (w >= 0) & (w <= 2 / 0.3), "neg": w > 0, "pos": w < 0}[prune]
        expected = sum((v[:, i] @ gradient) * v[:, i] for i in range(30) if inside[i])
        kept = cgd(hessian, gradient, 0.3, prune)
        torch.testing.assert_close(kept, expected)
        torch.testing.assert_close(cgd(hessian, kept, 0.3, prune), kept)  # idempotent
        assert abs(kept @ (gradient - kept)) < 1e-12  # orthogonal
        extent = {"chaotic": (1 - 0.3 * w).abs(), "neg": -w, "pos": w}[prune]
        for k in (0, 3, 100):
            gone = ~chaotic_sgd.keep_mask(w, 0.3, prune, k)
            assert gone.sum() == min(k, (~inside).sum()) and not (gone & inside).any()
            torch.testing.assert_close(
                extent[gone].sort().values, extent[~inside].sort().values[max(len(w[~inside]) - k, 0) :]
            )
            rand = ~chaotic_sgd.keep_mask(w, 0.3, prune, k, "rand", torch.Generator().manual_seed(k))
            assert rand.sum() <= k and not (rand & inside).any() and rand.any() == (k > 0)


def trained(prune, steps, seeds=(0,), start=0, **changes):
    """Final parameters [S, P] and curves of a small training."""
    setting, state = problem(seeds, steps)
    settings = {"steps": steps, "seeds": list(seeds), "starts": (steps,)} | SETTINGS | changes
    states, curves = chaotic_sgd.train(setting, state, start, prune, **settings)
    return states[steps][0], curves


def first_step():
    """Parameters, gradient and eigenpairs of the first step of `trained`."""
    (images, labels, *_, order), (theta, _) = problem()
    x, y = images[order[:, 0, :8]], labels[order[:, 0, :8]]
    (gradient,) = torch.autograd.grad(losses(leaf := theta.clone().requires_grad_(), x, y, MLP)[0].sum(), leaf)
    hessian, *maps = curvature(theta, x, y, MLP)
    return theta, gradient, *eigh(hessian), maps


@pytest.mark.parametrize("prune", ["chaotic", "neg", "pos"])
def test_a_cgd_step_is_the_projected_gradient(prune):
    theta, gradient, w, v, maps = first_step()
    keep = w < 0 if prune == "pos" else w > 0
    kept = project(gradient, keep, v, *maps)
    result, curves = trained(prune, 1)
    torch.testing.assert_close(result, theta - SETTINGS["learning_rate"] * kept)
    assert curves["kept"].item() == pytest.approx((kept.norm() / gradient.norm()).item() ** 2)
    torch.testing.assert_close(project(kept, keep, v, *maps), kept)  # idempotent
    assert abs(kept[0] @ (gradient - kept)[0]) < 1e-14  # orthogonal
    torch.testing.assert_close(kept + project(gradient, ~keep, v, *maps), gradient)  # nothing is outside
    assert 0.02 < kept.norm() / gradient.norm() < 1


@pytest.mark.parametrize("prune, directions", [("chaotic", None), ("neg", 5350)])
def test_noise_fills_the_pruned_directions_alone(prune, directions):
    _, gradient, w, v, maps = first_step()
    change = (trained(prune, 1, noise=0.5)[0] - trained(prune, 1)[0]) / SETTINGS["learning_rate"]
    assert project(change, w > 0, v, *maps).norm() < 1e-12
    count = (w < 0).sum() if directions is None else directions - (w > 0).sum()
    assert change.square().sum().item() == pytest.approx(0.25 * count.item(), rel=0.3)
    mean = (trained(prune, 1, noise="mean")[0] - trained(prune, 1)[0]) / SETTINGS["learning_rate"]
    torch.testing.assert_close(mean, change * gradient.abs().mean() / 0.5)


def test_momentum_accumulates_the_projected_gradient():
    theta, gradient, w, v, maps = first_step()
    setting, _ = problem()
    velocity = project(gradient, w >= 0, v, *maps)
    middle = theta - 0.1 * velocity
    settings = SETTINGS | {"momentum": 0.9}
    steps = chaotic_sgd.sgd(setting, (middle, velocity), range(1, 3), "", **settings)
    _, _, batch, gradient, *_ = next(steps)
    hessian, *maps = curvature(middle, *batch, MLP)
    w, v = eigh(hessian)
    expected = middle - 0.1 * (0.9 * velocity + project(gradient, w >= 0, v, *maps))
    torch.testing.assert_close(trained("chaotic", 2, momentum=0.9)[0], expected)


def test_neg_is_chaotic_while_no_eigenvalue_exceeds_two_over_the_learning_rate():
    chaotic, curves = trained("chaotic", 20)
    assert curves["largest_eigenvalue"].max() < 2 / SETTINGS["learning_rate"]
    torch.testing.assert_close(trained("neg", 20)[0], chaotic, rtol=0, atol=1e-12)
    assert (trained(None, 20)[0] - chaotic).norm() > 1e-3


def test_seeds_in_one_tensor_train_as_they_do_alone():
    together, curves = trained("chaotic", 12, seeds=(0, 1, 2), k=5, rule="rand", noise="mean")
    alone, alone_curves = trained("chaotic", 12, seeds=(2,), k=5, rule="rand", noise="mean")
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(curves["loss"][:, 2:], alone_curves["loss"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_tangent_map_is_the_derivative_of_sgd(momentum):
    setting, (theta, _) = problem(steps=12)
    settings = SETTINGS | {"momentum": momentum}
    v = torch.randn(1, 5350, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 70
    eps, copies = 1e-5, torch.cat([theta, theta + 1e-5 * v[0].T, theta - 1e-5 * v[0].T])
    start, dv = v.clone(), torch.zeros_like(v)
    for t, (moved, _), (x, y), *_ in chaotic_sgd.sgd(
        setting, (copies, torch.zeros_like(copies)), range(13), "", **settings
    ):
        if t < 12:
            tangent_step(v, dv, *curvature(moved[:1], x[:1], y[:1], MLP), 0.1, momentum)
    difference = (moved[1:3] - moved[3:5]).T / (2 * eps)
    torch.testing.assert_close(v[0], difference, rtol=0, atol=1e-7)
    assert (v - start).abs().max() > 1e-3


def test_perturbed_copies_see_identical_batches():
    setting, (theta, velocity) = problem(steps=30)
    copies = torch.cat([theta, theta, theta + 0.01])
    steps = chaotic_sgd.sgd(setting, (copies, torch.zeros_like(copies)), range(31), "", **SETTINGS)
    alone = chaotic_sgd.sgd(setting, (theta + 0.01, velocity), range(31), "", **SETTINGS)
    for (t, (many, _), (x, y), *_), (_, (one, _), *_) in zip(steps, alone, strict=True):
        order = setting[-1][0, 0, 8 * t : 8 * t + 8]
        assert all(torch.equal(x[i], setting[0][order]) and torch.equal(y[i], setting[1][order]) for i in range(3))
        assert torch.equal(many[0], many[1])
        torch.testing.assert_close(many[2:], one, rtol=0, atol=1e-12)
    assert len({tuple(row.tolist()) for row in problem((0, 1))[0][-1][:, 0]}) == 2  # seeds do differ


def test_lyapunov_spectrum_of_the_cnn_against_the_dense_product():
    task = ("cnn", "sigmoid")
    setting, state = problem(steps=2, task=task)
    settings = SETTINGS | {"task": task, "learning_rate": 0.5}
    found = chaotic_sgd.lyapunov(setting, state, steps=2, checkpoints=[1, 2], draws=2, seed=0, **settings)
    product = torch.eye(1158, dtype=torch.float64)
    for _, (theta, _), batch, *_ in chaotic_sgd.sgd(setting, state, range(2), "", **settings):
        dense = torch.func.hessian(lambda one, x, y: losses(one[None], x, y, task)[0][0])(theta[0], *batch)
        product -= 0.5 * dense @ product
    sigma = torch.linalg.svdvals(product)
    torch.testing.assert_close(found["exponents"][-1], sigma.log().flip(0) / 2, rtol=0, atol=1e-6)
    stretch = (product @ found["directions"].T).norm(dim=0)
    torch.testing.assert_close(stretch[[0, 3]], sigma[[0, -1]], rtol=1e-5, atol=0)
    assert (stretch[1:3] > 1).all() and (stretch[4:6] < 1).all()
    similarity, baseline, control = found["similarity"]
    torch.testing.assert_close(similarity[[0, 1], [0, 1]], torch.eye(2).expand(2, 2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(control, baseline, rtol=0, atol=0.1)
    assert (similarity[0, 1].diagonal() > baseline[0, 1].diagonal() + 0.3).all()


def test_images_are_resized_and_standardised(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {f"{split}_images": draw.integers(0, 256, (20, 28, 28), dtype=np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays, train_labels=np.arange(20) % 10, test_labels=np.arange(20) % 10)
    (train, _, test, _, order), (theta, _) = chaotic_sgd.setup("mine", tmp_path, MLP, 5, 8, [0, 1], "cpu")
    assert train.shape == (20, 257) and order.shape == (2, 2, 20) and theta.shape == (2, 5350)
    assert train[:, :-1].mean().abs() < 1e-12 and train[:, :-1].std().item() == pytest.approx(1)
    raw = F.interpolate(torch.from_numpy(arrays["test_images"])[:, None].double(), size=16, mode="bilinear")[:, 0]
    assert np.corrcoef(raw.flatten(), test[:, :-1].flatten())[0, 1] == pytest.approx(1)
    assert (train[:, -1] == 1).all() and sorted(order[1, 1].tolist()) == list(range(20))


def test_an_interrupted_run_keeps_its_finished_pieces(tmp_path, monkeypatch):
    settings = {"variants": ("sgd", "chaotic@2", "pos"), "dataset": "synthetic", "steps": 5, "seeds": 1}
    whole = chaotic_sgd.pruning(**settings, runs=None)
    train, calls = chaotic_sgd.train, []

    def counted(*args, **kwargs):
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(chaotic_sgd, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        chaotic_sgd.pruning(**settings, runs=tmp_path)
    resumed = chaotic_sgd.pruning(**settings, runs=tmp_path)
    assert calls == [None, "chaotic", "pos", "pos"]
    for name, run in whole["runs"].items():
        torch.testing.assert_close(resumed["runs"][name]["loss"], run["loss"], rtol=0, atol=0, equal_nan=True)


def command(*arguments, cwd=None):
    line = [sys.executable, str(ROOT / "chaotic_sgd.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_quick_run_through_the_command_line(tmp_path):
    options = ("--quick", "--dataset", "synthetic", "--seeds", 1, "--out", tmp_path, "--steps", 40, "--k", 20)
    done = command("pruning", "--activation", "relu", "--momentum", 0.5, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "quick" / "pruning.json").read_text())
    assert result["quick"] and result["settings"]["k"] == 20 and "--momentum 0.5" in result["command"]
    assert set(result["runs"]) == {"sgd", "chaotic@0", "pos@0", "neg@0"}
    assert all(np.isfinite(run["loss"]).all() and len(run["loss"]) == 1 for run in result["runs"].values())
    losses = {name: run["loss"][0][0] for name, run in result["runs"].items()}
    assert losses["sgd"] != losses["chaotic@0"] == losses["neg@0"] != losses["pos@0"]


def test_quick_divergence_and_subspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("divergence", "subspace"):
        chaotic_sgd.main([name, "--quick", "--dataset", "synthetic", "--out", str(tmp_path), "--steps", "1"])
    copies, spaces = (json.loads((tmp_path / "quick" / f"{n}.json").read_text()) for n in ("divergence", "subspace"))
    assert np.shape(copies["distance"]) == np.shape(copies["tangent"]) == (2, len(copies["kinds"]))
    assert copies["distance"][0] == pytest.approx([0.1] * len(copies["kinds"]))
    assert copies["distance"][1] == pytest.approx(copies["tangent"][1], rel=1e-3)
    assert np.shape(spaces["similarity"]) == (3, 1, 1, 2, 2) and np.shape(spaces["exponents"]) == (1, 200)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("delay", "--steps", 100), "no variant chaotic@100 in 100 steps"),
        (("pruning", "--variants", "sgd", "chaos@5"), "no variant chaos@5"),
        (("pruning", "--dataset", "nothing"), "no data set 'nothing'"),
        (("pruning", "--architecture", "transformer"), "invalid choice"),
        (("pruning", "--seeds", 0), "at least 1"),
        (("pruning", "--learning-rate", 0), "learning rate"),
        (("pruning", "--k", -1), "k"),
        (("pruning", "--noise", "loud"), "noise"),
        (("pruning", "--learning-rate", "1e300", "--activation", "relu"), "lower the learning rate"),
        (("training",), "unknown experiment training"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chaotic_sgd.py"])
    dataset = () if "--dataset" in arguments else ("--dataset", "synthetic")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        chaotic_sgd.main([*map(str, arguments), *dataset, "--out", str(tmp_path), "--quick"])
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json"))
