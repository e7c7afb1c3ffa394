"""Tests of chaotic_sgd.py, exact curvature, CGD and Lyapunov matrices: against literal ways, and contracts."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import chaotic_sgd
from experiments import chaotic_training, lyapunov
from experiments.chaotic_training import Pruning, Sgd, State, gradient_of, keep_mask, setup, sgd_step
from experiments.curvature import (
    CoordinateBasis,
    Task,
    curvature,
    eigh,
    initial,
    losses,
    project,
    tangent_step,
    with_ones,
)
from lib.data import synthetic_dataset

MLP = Task("mlp", "sigmoid")
SGD = Sgd(MLP, batch_size=8, learning_rate=0.1, momentum=0.0)
SMALL = synthetic_dataset(256, 64)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    torch.set_flush_denormal(True)
    load = chaotic_training.load_dataset

    def load_small(name, root):
        return SMALL if name == "synthetic" else load(name, root)

    monkeypatch.setattr(chaotic_training, "load_dataset", load_small)


def networks(count, batch, architecture="mlp", scale=1.5):
    """Some networks [S, P], away from the initial scale, and a batch [S, b, 257] for each."""
    draw = torch.Generator().manual_seed(3)
    theta = scale * torch.stack([initial(seed, Task(architecture, "sigmoid")) for seed in range(count)])
    x = with_ones(torch.randn(count, batch, 256, generator=draw, dtype=torch.float64))
    return theta, x, torch.randint(10, (count, batch), generator=draw)


def problem(seeds=(0,), steps=40, sgd=SGD):
    """A small learnable problem without files, and the initial networks."""
    return setup("synthetic", "nowhere", sgd, steps, list(seeds), "cpu")


def matrix_of(basis, size, n):
    """The orthonormal matrix Q [P, n] that a basis stands for."""
    return basis.add(torch.zeros(1, size, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)[None], 1.0)[0]


@pytest.mark.parametrize(
    ("task", "batch"),
    [
        (MLP, 1),
        (MLP, 3),
        (MLP, 8),
        (MLP, 9),
        (MLP, 30),
        (Task("mlp", "relu"), 8),
        (Task("cnn", "relu"), 3),
    ],
)
def test_curvature_is_the_full_hessian(task, batch):
    """By its products with random vectors: a wrong entry would show in all of them."""
    theta, x, y = networks(2, batch, task.architecture)
    hessian, basis = curvature(theta, x, y, task)
    v = torch.randn(2, theta.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = basis.add(torch.zeros_like(v), hessian @ basis.lower(v), 1.0)
    gradient = torch.func.grad(lambda one: losses(one, x, y, task)[0].sum())
    for i in range(4):
        _, expected = torch.func.jvp(gradient, (theta,), (v[..., i],))
        torch.testing.assert_close(found[..., i], expected, rtol=0, atol=1e-10)
        assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("task", [MLP, Task("cnn", "relu")])
def test_the_basis_is_orthonormal(task):
    theta, x, y = networks(1, 8 if task == MLP else 2, task.architecture)
    hessian, basis = curvature(theta, x, y, task)
    size = theta.shape[1]
    q = matrix_of(basis, size, hessian.shape[-1])
    assert task.architecture == "cnn" or q.shape == (5350, 336)
    torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1], dtype=q.dtype), rtol=0, atol=1e-12)
    vectors = torch.randn(1, size, 3, dtype=torch.float64)
    torch.testing.assert_close(basis.lower(vectors)[0], q.T @ vectors[0])


def test_networks_in_one_tensor_do_not_see_each_other():
    theta, x, y = networks(3, 8)
    together = curvature(theta, x, y, MLP).hessian
    alone = curvature(theta[2:], x[2:], y[2:], MLP).hessian
    torch.testing.assert_close(eigh(together)[0][2], eigh(alone)[0][0], rtol=0, atol=1e-13)


def cgd(hessian, gradient, pruning, lr=1.0):
    """CGD's gradient for a given Hessian [n, n]: what the reference code's unit tests call."""
    w, v = torch.linalg.eigh(hessian[None])
    keep = keep_mask(w[0], lr, pruning)[None]
    return project(gradient[None], keep, v, CoordinateBasis(torch.arange(len(hessian))))[0]


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
    result = cgd(hessian, torch.ones(4, dtype=torch.float64), Pruning(prune, k))
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
        kept = cgd(hessian, gradient, Pruning(prune), 0.3)
        torch.testing.assert_close(kept, expected)
        torch.testing.assert_close(cgd(hessian, kept, Pruning(prune), 0.3), kept)  # idempotent
        assert abs(kept @ (gradient - kept)) < 1e-12  # orthogonal
        extent = {"chaotic": (1 - 0.3 * w).abs(), "neg": -w, "pos": w}[prune]
        for k in (0, 3, 100):
            gone = ~keep_mask(w, 0.3, Pruning(prune, k))
            assert gone.sum() == min(k, (~inside).sum()) and not (gone & inside).any()
            torch.testing.assert_close(
                extent[gone].sort().values, extent[~inside].sort().values[max(len(w[~inside]) - k, 0) :]
            )
            rand = ~keep_mask(w, 0.3, Pruning(prune, k, "rand"), torch.Generator().manual_seed(k))
            assert rand.sum() <= k and not (rand & inside).any() and rand.any() == (k > 0)


def trained(pruning, steps, seeds=(0,), sgd=SGD):
    """Final parameters [S, P] and curves of a small training."""
    data, state = problem(seeds, steps)
    states, curves = chaotic_training.train(data, state, sgd, 0, steps, list(seeds), pruning, (steps,))
    return states[steps].theta, curves


def full_gradient(theta, x, y):
    return gradient_of(theta, x, y, MLP, 0).gradient


def first_step():
    """Parameters, gradient, eigenpairs and basis of the first step of `trained`."""
    data, (theta, _) = problem()
    x, y = data.batch(0, 8, 1)
    hessian, basis = curvature(theta, x, y, MLP)
    return theta, full_gradient(theta, x, y), *eigh(hessian), basis


@pytest.mark.parametrize("prune", ["chaotic", "neg", "pos"])
def test_a_cgd_step_is_the_projected_gradient(prune):
    theta, gradient, w, v, basis = first_step()
    keep = w < 0 if prune == "pos" else w > 0
    kept = project(gradient, keep, v, basis)
    result, curves = trained(Pruning(prune), 1)
    torch.testing.assert_close(result, theta - SGD.learning_rate * kept)
    assert curves["kept"].item() == pytest.approx((kept.norm() / gradient.norm()).item() ** 2)
    torch.testing.assert_close(project(kept, keep, v, basis), kept)  # idempotent
    assert abs(kept[0] @ (gradient - kept)[0]) < 1e-14  # orthogonal
    torch.testing.assert_close(kept + project(gradient, ~keep, v, basis), gradient)  # nothing is outside
    assert 0.02 < kept.norm() / gradient.norm() < 1


@pytest.mark.parametrize("prune, directions", [("chaotic", None), ("neg", 5350)])
def test_noise_fills_the_pruned_directions_alone(prune, directions):
    _, gradient, w, v, basis = first_step()
    without, _ = trained(Pruning(prune), 1)
    with_noise, _ = trained(Pruning(prune, noise=0.5), 1)
    change = (with_noise - without) / SGD.learning_rate
    assert project(change, w > 0, v, basis).norm() < 1e-12
    count = (w < 0).sum() if directions is None else directions - (w > 0).sum()
    assert change.square().sum().item() == pytest.approx(0.25 * count.item(), rel=0.3)
    with_mean, _ = trained(Pruning(prune, noise="mean"), 1)
    mean = (with_mean - without) / SGD.learning_rate
    torch.testing.assert_close(mean, change * gradient.abs().mean() / 0.5)


def test_momentum_accumulates_the_projected_gradient():
    theta, gradient, w, v, basis = first_step()
    data, _ = problem()
    velocity = project(gradient, w >= 0, v, basis)
    middle = theta - 0.1 * velocity
    x, y = data.batch(1, 8, 1)
    hessian, basis = curvature(middle, x, y, MLP)
    w, v = eigh(hessian)
    expected = middle - 0.1 * (0.9 * velocity + project(full_gradient(middle, x, y), w >= 0, v, basis))
    result, _ = trained(Pruning("chaotic"), 2, sgd=SGD._replace(momentum=0.9))
    torch.testing.assert_close(result, expected)


def test_neg_is_chaotic_while_no_eigenvalue_exceeds_two_over_the_learning_rate():
    chaotic, curves = trained(Pruning("chaotic"), 20)
    assert curves["largest_eigenvalue"].max() < 2 / SGD.learning_rate
    torch.testing.assert_close(trained(Pruning("neg"), 20)[0], chaotic, rtol=0, atol=1e-12)
    assert (trained(None, 20)[0] - chaotic).norm() > 1e-3


def test_seeds_in_one_tensor_train_as_they_do_alone():
    pruning = Pruning("chaotic", k=5, rule="rand", noise="mean")
    together, curves = trained(pruning, 12, seeds=(0, 1, 2))
    alone, alone_curves = trained(pruning, 12, seeds=(2,))
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(curves["loss"][:, 2:], alone_curves["loss"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_tangent_map_is_the_derivative_of_sgd(momentum):
    sgd = SGD._replace(momentum=momentum)
    data, (theta, _) = problem(steps=12)
    v = torch.randn(1, 5350, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 70
    eps = 1e-5
    copies = torch.cat([theta, theta + eps * v[0].T, theta - eps * v[0].T])
    start, dv = v.clone(), torch.zeros_like(v)
    state = State(copies, torch.zeros_like(copies))
    for step in range(12):
        x, y = data.batch(step, 8, 5)
        tangent_step(v, dv, curvature(state.theta[:1], x[:1], y[:1], MLP), 0.1, momentum)
        state = sgd_step(state, full_gradient(state.theta, x, y), sgd)
    difference = (state.theta[1:3] - state.theta[3:5]).T / (2 * eps)
    torch.testing.assert_close(v[0], difference, rtol=0, atol=1e-7)
    assert (v - start).abs().max() > 1e-3


def test_perturbed_copies_see_identical_batches():
    data, state = problem(steps=30)
    for step in (0, 29):
        x, y = data.batch(step, 8, 3)
        examples = data.order[0, 0, 8 * step : 8 * step + 8]
        assert all(torch.equal(x[i], data.train_x[examples]) for i in range(3))
        assert all(torch.equal(y[i], data.train_y[examples]) for i in range(3))
    shift = torch.full((1, 5350), 0.01, dtype=torch.float64)
    displacements = torch.cat([0 * shift, shift])
    parting = lyapunov.follow_copies(data, state, SGD, displacements, steps=30, every=10)
    assert parting.times.tolist() == [0, 10, 20, 30] and not parting.distance[:, 0].any()
    moved = State(state.theta + 0.01, torch.zeros_like(state.theta))
    for step in range(30):
        moved = sgd_step(moved, full_gradient(moved.theta, *data.batch(step, 8, 1)), SGD)
    torch.testing.assert_close(parting.theta[2:], moved.theta, rtol=0, atol=1e-12)
    two_seeds, _ = problem((0, 1))
    assert not torch.equal(*two_seeds.order[:, 0])  # seeds do differ


def test_lyapunov_spectrum_of_the_cnn_against_the_dense_product():
    sgd = SGD._replace(task=Task("cnn", "sigmoid"), learning_rate=0.5, batch_size=4)
    data, state = problem(steps=2, sgd=sgd)
    found = lyapunov.lyapunov(data, state, sgd, checkpoints=[1, 2], draws=2, seed=0)
    product = torch.eye(1158, dtype=torch.float64)

    def loss(one, x, y):
        return losses(one[None], x, y, sgd.task)[0][0]

    for step in range(2):
        x, y = data.batch(step, 4, 1)
        product -= 0.5 * torch.func.hessian(loss)(state.theta[0], x, y) @ product
        state = sgd_step(state, gradient_of(state.theta, x, y, sgd.task, step).gradient, sgd)
    sigma = torch.linalg.svdvals(product)
    torch.testing.assert_close(found["exponents"][-1], sigma.log().flip(0) / 2, rtol=0, atol=1e-6)
    stretch = (product @ found["directions"].T).norm(dim=0)
    torch.testing.assert_close(stretch[[0, 3]], sigma[[0, -1]], rtol=1e-5, atol=0)
    assert (stretch[1:3] > 1).all() and (stretch[4:6] < 1).all()
    similarity, baseline, control = found["similarity"]
    torch.testing.assert_close(similarity[[0, 1], [0, 1]], torch.eye(2).expand(2, 2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(similarity[0, 1], similarity[1, 0].T)
    torch.testing.assert_close(control, baseline, rtol=0, atol=0.1)
    assert (similarity[0, 1].diagonal() > baseline[0, 1].diagonal() + 0.3).all()


def test_images_are_resized_and_standardised(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {f"{split}_images": draw.integers(0, 256, (20, 28, 28), dtype=np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays, train_labels=np.arange(20) % 10, test_labels=np.arange(20) % 10)
    data, (theta, _) = setup("mine", tmp_path, SGD, 5, [0, 1], "cpu")
    train, test, order = data.train_x, data.test_x, data.order
    assert train.shape == (20, 257) and order.shape == (2, 2, 20) and theta.shape == (2, 5350)
    assert train[:, :-1].mean().abs() < 1e-12 and train[:, :-1].std().item() == pytest.approx(1)
    raw = F.interpolate(torch.from_numpy(arrays["test_images"])[:, None].double(), size=16, mode="bilinear")[:, 0]
    assert np.corrcoef(raw.flatten(), test[:, :-1].flatten())[0, 1] == pytest.approx(1)
    assert (train[:, -1] == 1).all() and sorted(order[1, 1].tolist()) == list(range(20))


def test_an_interrupted_run_keeps_its_finished_pieces(tmp_path, monkeypatch):
    settings = {"variants": ("sgd", "chaotic@2", "pos"), "dataset": "synthetic", "steps": 5, "seeds": 1}
    whole = chaotic_sgd.pruning(**settings, runs=None)
    train, calls = chaotic_sgd.train, []

    def counted(*arguments, pruning=None, **settings):
        calls.append(pruning and pruning.prune)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, pruning=pruning, **settings)

    monkeypatch.setattr(chaotic_sgd, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        chaotic_sgd.pruning(**settings, runs=tmp_path)
    resumed = chaotic_sgd.pruning(**settings, runs=tmp_path)
    assert calls == [None, "chaotic", "pos", "pos"]
    for name, run in whole["runs"].items():
        torch.testing.assert_close(resumed["runs"][name]["loss"], run["loss"], rtol=0, atol=0, equal_nan=True)


def test_quick_run_through_the_command_line(tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    options = ("--quick", "--dataset", "synthetic", "--seeds", 1, "--out", tmp_path, "--steps", 40, "--k", 20)
    code, _, said = run_here("chaotic_sgd.py", "pruning", "--activation", "relu", "--momentum", 0.5, *options)
    assert code == 0, said
    result = json.loads((tmp_path / "quick" / "pruning.json").read_text())
    assert result["quick"] and result["settings"]["k"] == 20 and "--momentum 0.5" in result["command"]
    assert set(result["runs"]) == {"sgd", "chaotic@0", "pos@0", "neg@0"}
    assert all(np.isfinite(run["loss"]).all() and len(run["loss"]) == 1 for run in result["runs"].values())
    losses = {name: run["loss"][0][0] for name, run in result["runs"].items()}
    assert losses["sgd"] != losses["chaotic@0"] == losses["neg@0"] != losses["pos@0"]


def test_checkpoints_after_the_end_are_said(capsys):
    assert chaotic_sgd.times_of((10, 1000, 5), 100) == [5, 10, 100]
    chaotic_sgd.tell_late_checkpoints((10, 100), 100)
    assert capsys.readouterr().out == ""
    chaotic_sgd.tell_late_checkpoints((10, 1000, 5000), 100)
    assert capsys.readouterr().out == "note: checkpoints 1000, 5000 are left out: the run ends at step 100\n"


def test_other_data_are_not_taken_for_the_same(tmp_path, monkeypatch):
    """Pieces are found again by all that they depend on: here one pixel differs."""
    settings = {"variants": ("sgd",), "dataset": "synthetic", "steps": 3, "seeds": 1, "runs": tmp_path / "runs"}
    first = chaotic_sgd.pruning(**settings)["runs"]["sgd"]["loss"]
    images = SMALL.train_images.clone()
    images[0, 0, 0, 0] ^= 255
    monkeypatch.setattr(chaotic_training, "load_dataset", lambda *_: SMALL._replace(train_images=images))
    other = chaotic_sgd.pruning(**settings)["runs"]["sgd"]["loss"]
    assert not torch.equal(first, other) and len(list((tmp_path / "runs").iterdir())) == 2


def test_quick_divergence_and_subspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("divergence", "subspace"):
        chaotic_sgd.main(
            [name, "--quick", "--dataset", "synthetic", "--out", str(tmp_path), "--steps", "1", "--set", "batch_size=4"]
        )
    copies, spaces = (json.loads((tmp_path / "quick" / f"{n}.json").read_text()) for n in ("divergence", "subspace"))
    (run,) = copies["runs"]
    assert np.shape(run["distance"]) == np.shape(run["tangent"]) == (2, len(run["kinds"]))
    assert run["distance"][0] == pytest.approx([0.1] * len(run["kinds"]))
    assert run["distance"][1] == pytest.approx(run["tangent"][1], rel=1e-3)
    small = copies["small"]
    assert np.array(small["distance"])[0, :, 0] == pytest.approx(small["perturbations"])
    (run,) = spaces["runs"]
    assert np.shape(run["similarity"]) == (3, 1, 1, 2, 2) and np.shape(run["exponents"]) == (1, 200)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("delay", "--steps", 100), "no variant chaotic@100 in 100 steps"),
        (("pruning", "--variants", "sgd", "chaos@5"), "no variant chaos@5"),
        (("pruning", "--dataset", "nothing"), "no data set 'nothing'"),
        (("pruning", "--architecture", "transformer"), "invalid choice"),
        (("pruning", "--seeds", 0), "seeds: expected a whole number, at least 1, not 0"),
        (("pruning", "--learning-rate", 0), "learning_rate: expected a number, above 0"),
        (("pruning", "--k", -1), "k: expected"),
        (("pruning", "--noise", "loud"), "noise"),
        (("pruning", "--noise", -1), "noise: expected a number, at least 0 or mean"),
        (("pruning", "--momentum", "nan"), "momentum: expected a number"),
        (("pruning", "--learning-rate", "1e30", "--activation", "relu"), "lower the learning rate"),
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
