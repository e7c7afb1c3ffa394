"""Tests of teacher_student.py, against plain loops and closed forms."""

import numpy as np
import pytest
import torch

import teacher_student
from lib.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ======================================================================================
# linear teacher-student
# ======================================================================================


def test_the_teacher_is_the_papers():
    problem = teacher_student.teacher()
    assert np.allclose(problem.values[:6], [1.267, 1.230, 1.137, 1.033, 1.018, 0.971], atol=1e-3)
    assert problem.y.var(correction=0).item() * problem.y.numel() == pytest.approx(258.24, abs=0.01)
    assert torch.allclose(problem.x.T @ problem.x, torch.eye(64, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.svdvals(problem.w)[:8], torch.linspace(1, 0.5, 8, dtype=torch.float64))


def test_losses_in_modes_equal_losses_of_matrices():
    problem = teacher_student.teacher()
    s = torch.rand(3, 64, generator=generator(), dtype=torch.float64)
    train = teacher_student.train_loss(problem, s)
    test = teacher_student.relative_test_loss(problem, s)
    paper_factor = teacher_student.paper_test_factor(problem)
    for modes, ours, error in zip(s, train, test, strict=True):
        student = problem.left * modes @ problem.right
        plain = (problem.x @ student - problem.y).square().mean() / 2 / problem.y.var(correction=0)
        wrong = (student - problem.w).square()
        assert ours.item() == pytest.approx(plain.item())
        assert error.item() == pytest.approx(wrong.sum().item() / problem.w.square().sum().item())
        scale = problem.y.var(correction=0) * problem.y.numel()
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


def test_the_full_batch_is_the_diagonal_model_without_noise():
    problem = teacher_student.teacher()
    r = teacher_student.minibatch(batch_sizes=(1024,), warmup_steps=1, drop_steps=(400, 500), steps=600)
    s = torch.ones(64, dtype=torch.float64)
    for step in range(600):
        eta = 3 / 1024 * 0.1 ** ((step >= 400) + (step >= 500))
        s = s * (1 - eta * (s - problem.values)) ** 2
    assert torch.allclose(r["spectra"][0, -1].double(), s.sort(descending=True).values, rtol=2e-4)
    assert r["train"][0, -1].item() == pytest.approx(teacher_student.train_loss(problem, s).item(), rel=1e-4)
    assert r["test"][0, -1].item() == pytest.approx(teacher_student.relative_test_loss(problem, s).item(), rel=1e-3)


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


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="must divide the 1024 examples"):
        teacher_student.minibatch(batch_sizes=(64, 48), steps=1)
    with pytest.raises(InputError, match="drop_step must lie within"):
        teacher_student.diagonal(steps=3000)


def test_the_shift_at_the_drop_has_the_error_of_its_replicas():
    """Against the spread of the mean shift over disjoint sets of replicas."""
    settings = {"label_noises": (10.0,), "replicas": 16, "drop_step": 800, "steps": 800}
    runs = [teacher_student.diagonal(**settings, seed=seed) for seed in range(24)]
    largest = slice(0, teacher_student.LARGEST)
    shifts = torch.stack([(run["true"] - run["mean"][0, 0])[largest].mean() for run in runs])
    errors = torch.stack([run["shift_error"][0] for run in runs])
    assert shifts.std().item() == pytest.approx(errors.square().mean().sqrt().item(), rel=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_experiments_run_on_a_gpu():
    teacher_student.diagonal(replicas=8, drop_step=100, steps=200, device="cuda")
    teacher_student.minibatch(replicas=1, drop_steps=(100, 150), steps=200, device="cuda")
